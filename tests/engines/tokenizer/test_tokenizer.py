"""The tokenizer is lossless, and transformers gives the ids of SentencePiece."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from engines.context import StageFailedError, StopRequested
from engines.data.encoders import SentencePieceEncoder
from engines.data.special_pieces import SPACE_MARK, SPECIAL_PIECES
from engines.data.text import prepare_text
from engines.events.attempts import Phase, Progress
from engines.tokenizer.parity import EDGE_TEXTS, check_parity, check_text
from engines.tokenizer.stage import run
from engines.tokenizer.train import CHUNK_CHARACTERS, TrainingText, chunks, train_model
from recipes.problems import OperatorError
from tests.engines.small_corpora import fresh, stdlib_text, tokenizer_of, write_tree
from tests.stage_context import make_context

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stdlib_text(tmp_path_factory.mktemp("text"), "json", "email")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    return tokenizer_of(text, tmp_path_factory.mktemp("tokenizer") / "out", vocab_size=1500)


@pytest.fixture(scope="module")
def processor(folder: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SentencePieceEncoder:
    return SentencePieceEncoder(folder)


@pytest.fixture(scope="module")
def hugging_face(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


code_like = st.text(alphabet=st.sampled_from(list(" \n\t\r()[]:.,=\"'#_`<>|/0123456789abdefinorst")), max_size=200)
any_text = st.text(max_size=60)


@settings(max_examples=300)
@given(text=code_like | any_text | st.sampled_from(SPECIAL_PIECES) | st.text(alphabet=" ▁\u2028\x00\ufeff", max_size=9))
def test_any_text_comes_back_and_has_the_same_ids_in_transformers(
    processor: SentencePieceProcessor, hugging_face: Any, text: str
) -> None:
    ids = processor.encode(text)
    assert processor.decode(ids) == text.replace(SPACE_MARK, " ")
    assert hugging_face.decode(ids) == text.replace(SPACE_MARK, " ")
    assert hugging_face.encode(text, add_special_tokens=False, split_special_tokens=True) == ids
    assert all(token >= len(SPECIAL_PIECES) for token in ids)


def test_whole_files_of_held_out_code_have_the_same_ids(encoder: SentencePieceEncoder, hugging_face: Any) -> None:
    import argparse
    import typing

    for module in (argparse, typing):
        check_text(hugging_face, encoder, Path(str(module.__file__)).read_text())


def test_newlines_tabs_and_runs_of_spaces_are_pieces(processor: SentencePieceProcessor) -> None:
    pieces = {processor.id_to_piece(token) for token in range(processor.vocab_size())}
    assert {"\n", ":\n", "\n\n", SPACE_MARK * 4, SPACE_MARK * 8} <= pieces


def test_special_pieces_have_the_first_ids_and_no_text_spells_them(processor: SentencePieceProcessor) -> None:
    assert [processor.id_to_piece(token) for token in range(5)] == list(SPECIAL_PIECES)
    assert processor.is_unknown(0)
    assert all(processor.is_control(token) for token in range(1, 5))
    assert processor.eos_id() == 2


def test_the_chat_template_gives_control_ids_and_marks_the_answers(hugging_face: Any) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Yes 😀"}]
    encoded = hugging_face.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    answer = [token for token, marked in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if marked]
    assert hugging_face.decode(answer) == "Yes 😀<|im_end|>"
    prompt = hugging_face.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert encoded["input_ids"][: len(prompt)] == prompt


@pytest.mark.parametrize("with_config", [False, True])
def test_it_loads_the_same_beside_a_model_and_after_being_saved_again(
    tmp_path: Path, folder: Path, encoder: SentencePieceEncoder, with_config: bool
) -> None:
    from transformers import AutoTokenizer

    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    if with_config:
        files["config.json"] = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}).encode()
    copy = write_tree(tmp_path / "copy", files)
    AutoTokenizer.from_pretrained(copy).save_pretrained(tmp_path / "saved")
    for place in (copy, tmp_path / "saved"):
        loaded = AutoTokenizer.from_pretrained(place)
        assert loaded.chat_template
        assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (1, 2, 0)
        for text in EDGE_TEXTS:
            check_text(loaded, encoder, text)


def test_the_same_text_gives_the_same_bytes(tmp_path: Path, text: Path, folder: Path) -> None:
    again = tokenizer_of(text, tmp_path / "again", vocab_size=1500)
    for file in sorted(folder.iterdir()):
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


@given(st.text(alphabet="ab \n", max_size=300).map(lambda text: text * 200))
@settings(max_examples=50)
def test_chunks_add_up_to_the_text_and_none_is_too_long(text: str) -> None:
    cut = list(chunks(text))
    assert "".join(cut) == text
    assert all(0 < len(chunk) <= CHUNK_CHARACTERS for chunk in cut)


def test_a_line_longer_than_sentencepieces_limit_is_learnt_from(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "src", {"a.py": "zebraquagga " * 20_000, "b.py": "x = 1\n" * 50})
    prepare_text(str(source), fresh(tmp_path / "text"), val_fraction=0, test_fraction=0)
    out = tokenizer_of(tmp_path / "text", tmp_path / "out", vocab_size=300)
    assert any("zebra" in piece for piece in json.loads((out / "vocab.json").read_text()))


def test_only_the_train_split_is_used(tmp_path: Path) -> None:
    for split, words in (("train", "apple banana "), ("val", "quixotic "), ("test", "zymurgy ")):
        line = json.dumps({"path": f"{split}.py", "text": words * 200})
        write_tree(tmp_path / "text", {f"{split}.jsonl": line + "\n"})
    vocab = json.loads((tokenizer_of(tmp_path / "text", tmp_path / "out", vocab_size=280) / "vocab.json").read_text())
    assert "q" not in vocab
    assert "z" not in vocab
    assert f"{SPACE_MARK}banana" in vocab


@pytest.mark.parametrize(
    ("vocab_size", "message"), [(100_000, "too large.*allowed up to"), (300, "too small.*allowed at least")]
)
def test_a_vocabulary_that_does_not_fit_names_the_size_that_does(text: Path, vocab_size: int, message: str) -> None:
    with pytest.raises(OperatorError, match=message) as raised:
        train_model(TrainingText(text, max_bytes=None, seed=0), vocab_size=vocab_size)
    fitting = int(raised.value.hint.split("vocab_size = ")[1].split()[0])
    model = train_model(TrainingText(text, max_bytes=None, seed=0), vocab_size=fitting)
    assert SentencePieceProcessor(model_proto=model).vocab_size() == fitting


def test_an_empty_train_split_is_reported(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train.jsonl": ""})
    with pytest.raises(OperatorError, match=r"train split .* is empty"):
        TrainingText(tmp_path, max_bytes=None, seed=0)


def test_a_stop_while_the_text_is_read_is_raised(text: Path) -> None:
    def report(done: float, total: float | None, unit: str) -> None:
        raise StopRequested

    with pytest.raises(StopRequested):
        train_model(TrainingText(text, max_bytes=None, seed=0), vocab_size=700, report=report)


def test_the_gate_refuses_a_tokenizer_whose_ids_differ(
    tmp_path: Path, folder: Path, encoder: SentencePieceEncoder
) -> None:
    broken = write_tree(tmp_path, {file.name: file.read_bytes() for file in folder.iterdir()})
    content = json.loads((broken / "tokenizer.json").read_text())
    content["pre_tokenizer"]["prepend_scheme"] = "first"
    (broken / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(StageFailedError, match="different ids for"):
        check_parity(broken, encoder, ["def f():"])


STAGE = {"name": "tokenizer", "kind": "tokenizer", "data": "text", "vocab_size": 700}


def stage_output(tmp_path: Path, data: Path, name: str, **fields: Any) -> tuple[list[str], dict[str, float]]:
    context = make_context(tmp_path / name, STAGE | fields, inputs={"data": data})
    result = run(context)
    assert [e.name for e in context.events() if isinstance(e, Phase)] == [
        "choosing text",
        "training",
        "converting",
        "comparing",
    ]
    last = {e.unit: (e.done, e.total) for e in context.events() if isinstance(e, Progress)}
    assert set(last) == {"bytes", "texts"}
    assert all(done == total for done, total in last.values())
    assert sorted(file.name for file in context.out.iterdir()) == [
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
    ]
    return list(json.loads((context.out / "vocab.json").read_text())), result.metrics


def test_every_field_of_the_recipe_reaches_the_vocabulary(tmp_path: Path, text: Path) -> None:
    default, metrics = stage_output(tmp_path, text, "default")
    assert len(default) == 700
    assert metrics["parity_texts"] > 1560
    assert len(stage_output(tmp_path, text, "size", vocab_size=800)[0]) == 800
    digits, _ = stage_output(tmp_path, text, "digits", split_digits=False, vocab_size=2500)
    assert any(piece.isdecimal() and len(piece) > 1 for piece in digits)
    assert not any(
        piece.isdecimal() and len(piece) > 1 for piece in stage_output(tmp_path, text, "d", vocab_size=2500)[0]
    )
    covered, _ = stage_output(tmp_path, text, "coverage", character_coverage=0.98)
    single = [sum(len(piece) == 1 for piece in pieces) for pieces in (covered, default)]
    assert single[0] < single[1]
    little, metrics = stage_output(tmp_path, text, "little", max_bytes=60_000, seed=1)
    assert metrics["bytes"] == 60_000
    assert little != default
    assert little != stage_output(tmp_path, text, "seed", max_bytes=60_000, seed=2)[0]
