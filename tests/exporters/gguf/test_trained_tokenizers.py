"""A tokenizer that Cockpit trains gives the same ids in training, in transformers, and in llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engines.data.encoders import Encoder, SentencePieceEncoder, WholeEncoder
from engines.data.hard_strings import HARD_STRINGS, ORDINARY
from engines.llama.process import LlamaProcess
from engines.tokenizer.byte_level import train_byte_level, write_byte_level
from engines.tokenizer.convert import write_tokenizer
from engines.tokenizer.parity import check_parity, held_out_snippets
from engines.tokenizer.train import TrainingText, train_model
from exporters.gguf.write import read_model, write_gguf
from tests.engines.small_corpora import fresh, stdlib_text, tiny_model

pytestmark = pytest.mark.torch
SNIPPETS = 1500


def sentencepiece(text: TrainingText, out: Path) -> Encoder:
    write_tokenizer(train_model(text, vocab_size=900), out)
    return SentencePieceEncoder(out)


def byte_level(text: TrainingText, out: Path) -> Encoder:
    write_byte_level(train_byte_level(text, vocab_size=900), out)
    return WholeEncoder(out)


def digits_together(text: TrainingText, out: Path) -> Encoder:
    write_byte_level(train_byte_level(text, vocab_size=900, split_digits=False), out)
    return WholeEncoder(out)


@pytest.mark.parametrize("train", [sentencepiece, byte_level, digits_together])
def test_snippets_and_hard_strings_have_one_list_of_ids_everywhere(
    tmp_path: Path, train: Callable[[TrainingText, Path], Encoder]
) -> None:
    data = stdlib_text(tmp_path, "json", "email")
    tokenizer = fresh(tmp_path / "tokenizer")
    encoder = train(TrainingText(data, max_bytes=None, seed=0), tokenizer)
    texts = [*ORDINARY, *HARD_STRINGS, *held_out_snippets(data, SNIPPETS, 1)]
    check_parity(tokenizer, encoder, texts)
    model = read_model(tiny_model(tokenizer, tmp_path / "model"))
    write_gguf(model, model.plan("F16"), tmp_path / "m.gguf", None)
    with LlamaProcess(tmp_path / "m.gguf", 64, 1) as llama:
        theirs = [llama.tokenize(text, parse_special=False) for text in texts]
    different = [text for text, ids, other in zip(texts, encoder.encode(texts), theirs, strict=True) if ids != other]
    assert different == []
    assert len(texts) > SNIPPETS + 60
