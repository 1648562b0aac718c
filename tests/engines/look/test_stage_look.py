"""A look at data finds what the stage would refuse, and counts what it would train on."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from engines.look.answer import DEFECTS, Job
from engines.look.stage_look import look_at
from tests.engines.look.looked_at import TABLE, VOCABULARY, look, row, write_data, write_model

GOOD = [row(f"What is {n}?", "A number" + "!" * (n % 5)) for n in range(10)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    write_data(tmp_path / "data", GOOD)
    return tmp_path


def test_rows_tokens_and_the_trained_share_are_counted(place: Path) -> None:
    found = look(place)
    (train,) = found.splits
    assert found.defects == []
    assert (train.rows, train.examples, train.truncated_rows, train.dropped_rows) == (10, 10, 0, 0)
    answers = sum(len("A number") + n % 5 + 1 for n in range(10))
    assert train.scored_tokens == answers, "one token a byte, and the end token"
    assert sum(bar[2] for bar in train.histogram) == 10
    assert (found.examples, found.steps, found.checkpoints, found.evaluations) == (10, 3, 1, 0)
    assert found.tokens == train.tokens
    assert train.formats == ["messages in JSON Lines"]


def spoilt_line(text: str) -> Callable[[Path], object]:
    """The fourth row replaced."""
    return lambda place: write_data(place / "data", [*GOOD[:3], text, *GOOD[4:]])


def turns(*pairs: tuple[str, Any], **more: Any) -> str:
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in pairs], **more})


@pytest.mark.parametrize(
    ("spoil", "field", "words"),
    [
        (spoilt_line(GOOD[0] + ","), "data", "train.jsonl:4: "),
        (spoilt_line("[1, 2]"), "data", "train.jsonl:4: a row must be an object"),
        (spoilt_line('{"text": "alone"}'), "data", "train.jsonl:4: "),
        (spoilt_line(turns(("user", "q"), ("assistant", " "))), "data", "train.jsonl:4: "),
        (spoilt_line(turns(("user", "q"))), "data", "train.jsonl:4: the last turn must be the assistant's"),
        (spoilt_line(turns(("assistant", "a"))), "data", "train.jsonl:4: the row has no user turn"),
        (spoilt_line(turns(("human being", "q"), ("assistant", "a"))), "data", "train.jsonl:4: "),
        (spoilt_line(turns(("user", "q"), ("system", "s"), ("assistant", "a"))), "data", "train.jsonl:4: "),
        (spoilt_line('{"messages": [], "messages": []}'), "data", "train.jsonl:4: "),
        (spoilt_line(turns(("user", 7), ("assistant", "a"))), "data", "train.jsonl:4: "),
        (spoilt_line(turns(("user", "q"), ("assistant", "a"), images=["x.png"])), "data", "train.jsonl:4: "),
        (lambda place: (place / "data/train.jsonl").write_bytes(b"\xff\xfe\xfa\n"), "data", "train.jsonl"),
        (lambda place: write_data(place / "data", []), "data", "the train split has no rows"),
        (lambda place: (place / "data/train.jsonl").unlink(), "data", "data"),
        (lambda place: (place / "model/tokenizer.json").write_text("{}"), "model", "is not a tokenizer"),
        (lambda place: write_model(place / "model", ""), "data", "no chat template"),
        (lambda place: write_model(place / "model", "{{ 1 / 0 }}"), "data", "train.jsonl:1: "),
        (lambda place: write_model(place / "model", "{{ messages[-1].content }}"), "data", "train.jsonl:1: "),
        (lambda place: write_model(place / "model", vocab_size=100), "model", "the model's embedding has 100 rows"),
        (
            lambda place: write_model(place / "model", pad_token="[PAD]"),
            "model",
            f"pad_token '[PAD]' is token {VOCABULARY}, and the model's embedding has {VOCABULARY} rows",
        ),
    ],
)  # fmt: skip
def test_each_defect_is_found_with_its_place(
    place: Path, spoil: Callable[[Path], object], field: str, words: str
) -> None:
    spoil(place)
    found = look(place)
    assert any(words in defect.message and defect.field == field for defect in found.defects), found.defects


def test_all_rows_too_long_is_a_defect_with_the_longest(place: Path) -> None:
    (defect,) = look(place, max_length=16).defects
    assert "none of the 10 rows" in defect.message
    assert "the longest has" in defect.message


def test_every_bad_row_is_counted_and_the_first_are_named(place: Path) -> None:
    write_data(place / "data", [GOOD[0], *["{"] * 30])
    found = look(place)
    assert len(found.defects) == DEFECTS
    assert found.more_defects == 10
    assert "train.jsonl:2" in found.defects[0].message


def test_bad_rows_that_the_stage_leaves_out_are_counted_and_are_no_defects(place: Path) -> None:
    write_data(place / "data", [*GOOD, "{", "["])
    found = look(place, on_bad_row="skip")
    assert found.defects == []
    assert found.splits[0].skipped_rows == 2
    assert found.examples == 10
    assert any("left out" in warning for warning in found.warnings)


def test_a_bad_row_of_the_val_split_is_found_too(place: Path) -> None:
    write_data(place / "data", [GOOD[0], "{"], "val")
    (defect,) = look(place, eval_steps=1).defects
    assert "val.jsonl:2" in defect.message


def test_a_held_out_split_may_be_empty_as_a_prepare_stage_without_one_leaves_it(place: Path) -> None:
    write_data(place / "data", [], "val")
    found = look(place)
    assert found.defects == []
    assert any("the val split has no rows" in warning for warning in found.warnings)
    write_data(place / "data", [], "train")
    assert any("the train split has no rows" in defect.message for defect in look(place).defects)


def test_evaluations_that_will_not_take_place_are_reported(place: Path) -> None:
    found = look(place, eval_steps=2)
    assert found.evaluations == 0
    assert any("no val split" in warning for warning in found.warnings)
    best = look(place, eval_steps=2, save_steps=2, load_best_model_at_end=True).warnings
    assert any(warning.startswith("load_best_model_at_end is set, but no step is evaluated") for warning in best)
    write_data(place / "data", [row("q", "long " * 100)], "val")
    too_long = look(place, eval_steps=2)
    assert too_long.evaluations == 0
    words = "none of the 1 rows of the val split has an answer within 96 tokens; the longest has"
    assert any(words in warning for warning in too_long.warnings)
    write_data(place / "data", [], "val")
    assert any("val split of the data has no rows" in warning for warning in look(place, eval_steps=2).warnings)
    write_data(place / "data", GOOD[:2], "val")
    assert look(place, eval_steps=2).evaluations == 2, "at step 2, and at the last of three"


def test_without_a_model_rows_are_read_and_no_tokens_are_counted(place: Path) -> None:
    found = look_at(Job({**TABLE, "max_steps": 7}, str(place / "data")), label_s=60, read_s=60)
    assert found.splits[0].rows == 10
    assert found.unlabelled == "the model does not exist yet"
    assert (found.steps, found.examples, found.tokens) == (7, None, None)
    (place / "model/tokenizer.json").unlink()  # transformers may convert another file
    assert look(place).unlabelled == "the model's folder has no tokenizer.json"
    assert look(place).defects == []


def test_large_data_is_labelled_in_part_read_further_and_that_is_reported(place: Path) -> None:
    write_data(place / "data", [*GOOD, "{"])
    job = Job(dict(TABLE), str(place / "data"), str(place / "model"))
    ticks = count()
    found = look_at(job, label_s=4, read_s=1000, clock=lambda: float(next(ticks)))
    (train,) = found.splits
    assert not train.labelled_all
    assert 0 < train.labelled < 10
    assert train.rows == 11, "a defect in the rows that are only read is found"
    assert "train.jsonl:11" in found.defects[0].message
    assert found.steps is None, "no guess"


def test_an_evaluation_stops_where_its_stage_stops(place: Path) -> None:
    table = {"name": "e", "kind": "evaluate", "model": "./model", "data": "./data", "split": "train", "max_tokens": 20}
    found = look_at(Job(table, str(place / "data"), str(place / "model")), label_s=60, read_s=60)
    assert found.splits[0].scored_tokens >= 20
    assert not found.splits[0].read_all
