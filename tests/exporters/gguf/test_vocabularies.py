"""Vocabularies by their structure: what llama.cpp reads is what the tokenizer's files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.data.hard_strings import HARD_STRINGS
from engines.llama.process import LlamaProcess
from exporters.gguf.pre_tokenizers import pre_tokenizer_name
from exporters.gguf.vocab import CONTROL, read_vocabulary
from exporters.gguf.write import read_model, write_gguf
from exporters.proof.parity_data import encode
from recipes.problems import OperatorError
from tests.exporters.small_models import build_byte_level_tokenizer, build_model, copy_folder

pytestmark = pytest.mark.torch
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}
DEEPSEEK = [
    {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    for pattern in ("[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[一-龥ࠀ-一가-퟿]+")
]


def named(parts: list[dict[str, Any]], **model: Any) -> str:
    return pre_tokenizer_name({"pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}, "model": model})[0]


def test_deepseek_coder_is_known_by_its_five_parts() -> None:
    assert named([*DEEPSEEK, DIGITS, BYTES]) == "deepseek-coder"
    for wrong in (
        [*DEEPSEEK[::-1], DIGITS, BYTES],
        [*DEEPSEEK, {**DIGITS, "individual_digits": False}, BYTES],
        [*DEEPSEEK, DIGITS, {**BYTES, "use_regex": True}],
        [{**DEEPSEEK[0], "behavior": "Removed"}, *DEEPSEEK[1:], DIGITS, BYTES],
        [{**DEEPSEEK[0], "invert": True}, *DEEPSEEK[1:], DIGITS, BYTES],
    ):
        with pytest.raises(OperatorError, match="no counterpart"):
            named(wrong)


def ids_in_llama(folder: Path, path: Path) -> list[list[int]]:
    model = read_model(folder)
    write_gguf(model, model.plan("F16"), path, None)
    with LlamaProcess(path, 64, 1) as llama:
        return [llama.tokenize(text, parse_special=False) for text in HARD_STRINGS]


def test_a_deepseek_coder_tokenizer_gives_the_same_ids_in_llama_cpp(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    words = build_byte_level_tokenizer(tmp_path / "words")
    text = json.loads((words / "tokenizer.json").read_text())
    text["normalizer"] = None
    text["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*DEEPSEEK, DIGITS, BYTES]}
    (words / "tokenizer.json").write_text(json.dumps(text))
    settings = json.loads((words / "tokenizer_config.json").read_text())
    (words / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "LlamaTokenizerFast"}))
    folder = build_model(tmp_path / "model", words)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    code = "def f(x):\n    return x"
    assert tokenizer.decode(encode(tokenizer, code, special=False)) == code, (
        "whitespace survives the label of a Llama tokenizer"
    )
    assert ids_in_llama(folder, tmp_path / "m.gguf") == [
        encode(tokenizer, text, special=False) for text in HARD_STRINGS
    ]


def test_added_tokens_at_the_beginning_of_a_byte_level_vocabulary_keep_their_ids(tmp_path: Path) -> None:
    words = build_byte_level_tokenizer(tmp_path / "words")
    text = json.loads((words / "tokenizer.json").read_text())
    text["model"]["vocab"] = {token: index + 2 for token, index in text["model"]["vocab"].items()}
    size = max(text["model"]["vocab"].values()) + 1
    rest = [{**entry, "id": size + n} for n, entry in enumerate(text["added_tokens"])]
    extra = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    text["added_tokens"] = [{"id": 0, "content": "<zero>", **extra}, {"id": 1, "content": "<one>", **extra}, *rest]
    text["added_tokens"] = [entry for entry in text["added_tokens"] if entry["content"] not in text["model"]["vocab"]]
    (words / "tokenizer.json").write_text(json.dumps(text))
    vocabulary = read_vocabulary(words, {"vocab_size": size + 50})
    assert vocabulary.tokens[:2] == [b"<zero>", b"<one>"]
    assert vocabulary.types[:2] == [CONTROL, CONTROL]


def test_a_sentencepiece_tokenizer_from_json_alone_gives_the_same_ids(tmp_path: Path, tokenizer: Path) -> None:
    whole = build_model(tmp_path / "whole", tokenizer)
    bare = copy_folder(whole, tmp_path / "bare")
    (bare / "tokenizer.model").unlink()
    assert read_vocabulary(bare, {"vocab_size": 640}).model == "llama"
    assert ids_in_llama(bare, tmp_path / "bare.gguf") == ids_in_llama(whole, tmp_path / "whole.gguf")


@pytest.mark.parametrize(
    ("normalizer", "before", "wanted"),
    [
        (None, None, False),
        ({"type": "Prepend", "prepend": "▁"}, None, True),
        ({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]}, None, True),
        (None, {"type": "Metaspace", "prepend_scheme": "first"}, True),
        (None, {"type": "Metaspace", "prepend_scheme": "never"}, False),
    ],
)
def test_a_prefix_space_is_read_from_either_place(tmp_path: Path, normalizer: Any, before: Any, wanted: bool) -> None:
    model = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": {"<unk>": 0, "a": 1}, "merges": []}
    text = {"model": model, "normalizer": normalizer, "pre_tokenizer": before}
    (tmp_path / "tokenizer.json").write_text(json.dumps(text))
    vocabulary = read_vocabulary(tmp_path, {"vocab_size": 4})
    assert vocabulary.add_space_prefix is wanted
    assert bool(vocabulary.warnings) is wanted
