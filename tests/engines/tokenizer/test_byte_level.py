"""A byte-level tokenizer gives every text back, has the ids of transformers, and is the same file for the same text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.context import StopRequested
from engines.data.encoders import WholeEncoder
from engines.data.tokens import prepare_tokens
from engines.tokenizer.byte_level import SPECIAL_TOKENS, train_byte_level, write_byte_level
from engines.tokenizer.parity import check_parity, check_text, held_out_snippets
from engines.tokenizer.stage import run
from engines.tokenizer.train import TrainingText
from recipes.problems import OperatorError
from recipes.stages.tokenizer import TokenizerStage
from tests.engines.small_corpora import fresh, stdlib_text, write_tree
from tests.stage_context import make_context

pytestmark = pytest.mark.torch
SIZE = 900


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stdlib_text(tmp_path_factory.mktemp("text"), "json", "email")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    out = fresh(tmp_path_factory.mktemp("tokenizer") / "out")
    write_byte_level(train_byte_level(TrainingText(text, max_bytes=None, seed=0), vocab_size=SIZE), out)
    return out


@pytest.fixture(scope="module")
def encoder(folder: Path) -> WholeEncoder:
    return WholeEncoder(folder)


@pytest.fixture(scope="module")
def hugging_face(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@settings(max_examples=200)
@given(
    text=st.text(max_size=60)
    | st.sampled_from(SPECIAL_TOKENS)
    | st.text(alphabet=" ▁\u2028\x00\ufeff<|>s/_", max_size=9)
)
def test_any_text_comes_back_has_the_ids_of_transformers_and_no_special_token(
    encoder: WholeEncoder, hugging_face: Any, text: str
) -> None:
    check_text(hugging_face, encoder, text)
    assert all(token >= len(SPECIAL_TOKENS) for token in encoder.encode([text])[0])


def test_more_than_1500_snippets_and_80_hard_strings_have_the_same_ids(
    folder: Path, encoder: WholeEncoder, text: Path
) -> None:
    snippets = held_out_snippets(text, 1500, 42)
    assert len(snippets) == 1500
    assert check_parity(folder, encoder, snippets) > 1580


def test_special_tokens_have_the_first_ids_in_transformers_too(folder: Path, hugging_face: Any) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    assert list(vocabulary)[:5] == list(SPECIAL_TOKENS)
    assert list(vocabulary.values()) == list(range(SIZE))
    ids = hugging_face.bos_token_id, hugging_face.eos_token_id, hugging_face.pad_token_id
    assert ids == (1, 2, 0)


def test_the_same_text_gives_the_same_file_with_any_number_of_threads(tmp_path: Path, text: Path, folder: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from engines.tokenizer.byte_level import train_byte_level\n"
        "from engines.tokenizer.train import TrainingText\n"
        f"text = TrainingText(Path(sys.argv[1]), max_bytes=None, seed=0)\n"
        f"sys.stdout.write(train_byte_level(text, vocab_size={SIZE}))"
    )
    for threads in ("1", "3"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)}
        made = subprocess.run([sys.executable, "-c", script, text], capture_output=True, env=environment, check=True)
        assert made.stdout.decode() + "\n" == (folder / "tokenizer.json").read_text()


@pytest.mark.parametrize("split_digits", [True, False])
def test_digits_are_alone_or_in_groups_of_three(tmp_path: Path, split_digits: bool) -> None:
    line = json.dumps({"path": "a", "text": "the year 2026 and 123456 bytes\n" * 50})
    write_tree(tmp_path, {"train.jsonl": line})
    text = TrainingText(tmp_path, max_bytes=None, seed=0)
    vocabulary = json.loads(train_byte_level(text, vocab_size=275, split_digits=split_digits))["model"]["vocab"]
    numbers = [token for token in vocabulary if token.isdecimal() and len(token) > 1]
    assert bool(numbers) is not split_digits
    assert all(len(number) <= 3 for number in numbers)


def test_a_vocabulary_that_the_text_does_not_fill_names_the_size_that_it_does(text: Path) -> None:
    with pytest.raises(OperatorError, match=r"vocab_size — too large for .* allowed up to") as raised:
        train_byte_level(TrainingText(text, max_bytes=3000, seed=0), vocab_size=50_000)
    fitting = int(str(raised.value.hint).split("vocab_size = ")[1].split()[0])
    made = json.loads(train_byte_level(TrainingText(text, max_bytes=3000, seed=0), vocab_size=fitting))
    assert len(made["model"]["vocab"]) == fitting


def test_a_stop_while_the_text_is_read_is_raised(text: Path) -> None:
    def report(done: float, total: float | None, unit: str) -> None:
        raise StopRequested

    with pytest.raises(StopRequested):
        train_byte_level(TrainingText(text, max_bytes=None, seed=0), vocab_size=700, report=report)


def test_the_stage_trains_it_and_documents_come_back_from_its_tokens(tmp_path: Path, text: Path) -> None:
    stage = {"name": "tokenizer", "kind": "tokenizer", "data": "text", "vocab_size": 700, "algorithm": "byte-level"}
    context = make_context(tmp_path / "run", stage, inputs={"data": text})
    result = run(context)
    assert result.metrics["vocab_size"] == 700
    assert result.metrics["parity_texts"] > 1580
    names = {file.name for file in context.out.iterdir()}
    assert names == {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "vocab.json"}
    counts = prepare_tokens(text, context.out, fresh(tmp_path / "tokens"))
    assert [counts[name] for name in ("unknown_tokens", "changed", "left_out", "space_marks")] == [0, 0, 0, 0]


def test_a_share_of_characters_is_refused_for_bytes() -> None:
    with pytest.raises(ValueError, match=r"character_coverage — a byte-level tokenizer has no characters; got 0\.99"):
        TokenizerStage(name="t", data="d", algorithm="byte-level", character_coverage=0.99)
