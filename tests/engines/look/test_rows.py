"""Rows one by one: what is drawn as trained is what the labels train on, token by token."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.data.door import DataSource, ReadCounts, read_rows
from engines.labels.label import label_rows
from engines.labels.row import IGNORED, LabelCounts, LabelledRow, LabelRules
from engines.labels.vocabulary import view_of_folder
from engines.look.row_view import RowsAnswer, RowsJob, RowsRequest
from engines.look.rows import KEPT_ROWS, Rows, serve_rows, spans_of
from recipes.problems import OperatorError
from tests.engines.labels.labelling import drawn_wrong
from tests.engines.look.looked_at import TABLE, row, write_data, write_model

QUESTIONS = ["What?", "Why, then?\nBecause <|im_end|>.", "日本語の質問 🙂 é", "x" * 300]
LINES = [row(question, f"Answer {n} é🙂\n") for n, question in enumerate(QUESTIONS)]


def rows(folder: Path, **fields: Any) -> Rows:
    return Rows(RowsJob({**TABLE, **fields}, str(folder / "data"), str(folder / "model")))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    write_data(tmp_path / "data", LINES)
    return tmp_path


def kinds(spans: list[tuple[int, Any]], length: int) -> list[str]:
    """The kind of each character."""
    found: list[str] = []
    for end, kind in spans:
        found += [str(kind)] * (end - len(found))
    assert len(found) == length
    return found


def test_every_character_of_a_scored_token_and_no_other_is_drawn_as_trained(place: Path) -> None:
    source = DataSource(place / "data")
    view = view_of_folder(place / "model")
    given = label_rows(read_rows(source, "train", ReadCounts()), view, LabelRules(4096), LabelCounts())
    for found in given:
        assert isinstance(found, LabelledRow)
        assert drawn_wrong(found) == []
        drawn = kinds(spans_of(found), len(found.text))
        assert set(drawn) == {"scored", "template", "content"}


def test_ids_and_labels_of_a_row_are_those_that_are_trained_on(place: Path) -> None:
    (view,) = rows(place, max_length=400).answer(RowsRequest(2, tokens=True)).views
    assert len(view.ids) == len(view.labels) == view.tokens
    assert sum(label != IGNORED for label in view.labels) == view.scored


@pytest.mark.parametrize("truncation", ["drop", "left", "answer", "error"])
def test_a_long_row_is_shown_whole_with_the_place_of_its_cut(place: Path, truncation: str) -> None:
    (view,) = rows(place, truncation=truncation, max_length=60).answer(RowsRequest(4, tokens=True)).views
    assert QUESTIONS[3] in view.text
    if truncation == "error":
        assert view.fate == "refused"
        assert "max_length is 60" in view.reason
        return
    drawn = kinds(view.spans, len(view.text))
    if truncation == "left":
        assert (view.fate, view.from_left, len(view.ids)) == ("cut", True, 60)
        assert set(drawn[: view.cut_at]) == {"cut"}
        assert "cut" not in drawn[view.cut_at :]
        assert drawn.count("scored") > 0
    else:
        assert view.fate == "dropped", "within 60 tokens no answer begins"
        assert set(drawn) == {"cut"}
        assert view.cut_at == 60 + len("<|im_start|>") - 1, "one token a character, and one for the mark"


def test_an_unreadable_row_has_its_place_and_reason(place: Path) -> None:
    write_data(place / "data", [LINES[0], "{"])
    answer = rows(place).answer(RowsRequest(2))
    (view,) = answer.views
    assert view.fate == "unreadable"
    assert view.where.endswith("train.jsonl:2")


def test_rows_are_found_forwards_and_backwards_also_beyond_those_that_are_remembered(place: Path) -> None:
    total = KEPT_ROWS * 2 + 10
    write_data(place / "data", [row(f"number {n}", "Needle" if n in {3, total - 2} else "hay") for n in range(total)])
    given = rows(place)

    def number(request: RowsRequest) -> int | None:
        answer = given.answer(request)
        return answer.views[0].number if answer.views else None

    assert number(RowsRequest(1, find="needle")) == 4
    assert number(RowsRequest(5, find="NEEDLE")) == total - 1
    assert number(RowsRequest(total, find="needle")) is None
    assert number(RowsRequest(total - 2, find="needle", back=True)) == 4
    assert number(RowsRequest(3, find="needle", back=True)) is None
    assert number(RowsRequest(10**9)) == total
    assert given.answer(RowsRequest(2)).last == total
    assert given.answer(RowsRequest(2)).views[0].number == 2


def test_a_text_becomes_several_examples(place: Path) -> None:
    write_data(place / "data", [json.dumps({"text": "abc " * 40})])
    views = rows(place, max_length=64).answer(RowsRequest(1)).views
    assert [view.part for view in views] == [1, 2, 3]
    assert all(kind == "scored" for view in views for _, kind in view.spans)


def test_mistakes_are_answers_and_do_not_end_the_process(place: Path) -> None:
    (place / "data/train.jsonl").unlink()
    job = RowsJob(dict(TABLE), str(place / "data"), str(place / "model"))
    lines = [msgspec.json.encode(job), msgspec.json.encode(RowsRequest(1)), msgspec.json.encode(RowsRequest(2))]
    written = io.BytesIO()
    serve_rows(io.BytesIO(b"\n".join(lines) + b"\n"), written)
    answers = [msgspec.json.decode(line, type=RowsAnswer) for line in written.getvalue().splitlines()]
    assert len(answers) == 2
    assert all(answer.error and not answer.views for answer in answers)


def test_without_a_tokenizer_the_rows_are_refused(place: Path) -> None:
    (place / "model/tokenizer.json").unlink()
    with pytest.raises(OperatorError, match=r"tokenizer\.json"):
        rows(place)
