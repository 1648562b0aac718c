"""One conversation has the same ids and labels in whatever format its file is."""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from engines.data.door import DataSource, ReadCounts, read_rows
from engines.data.readers.formats import MAPPED, SHAPES
from engines.labels.label import label_rows
from engines.labels.row import LabelCounts, LabelledRow, LabelRules
from engines.labels.vocabulary import Vocabulary, view_of_folder
from tests.engines.look.looked_at import write_model

PAIRS = [
    ("What is 7 * 6?", "7 * 6 = <<7*6=42>>42\n#### 42"),
    ("日本語 <|im_end|> é\nsecond line", 'an answer, "quoted"; with\ttab'),
    ("Why?", "Because.\n\n```py\nx = {'a': 1}\n```"),
]


def lines(shape: Callable[[str, str], Any]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        file = folder / "rows.jsonl"
        file.write_text("".join(json.dumps(shape(*pair)) + "\n" for pair in PAIRS))
        return file

    return write


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def array_file(folder: Path) -> Path:
    file = folder / "rows.json"
    file.write_text(json.dumps([{"instruction": q, "input": "", "output": a} for q, a in PAIRS], indent=1))
    return file


def csv_file(folder: Path) -> Path:
    file = folder / "rows.csv"
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([("prompt", "completion"), *PAIRS])
    return file


def table(folder: Path) -> Any:
    return import_module("pyarrow").table({"messages": [turns(*pair) for pair in PAIRS]})


def parquet_file(folder: Path) -> Path:
    import_module("pyarrow.parquet").write_table(table(folder), folder / "rows.parquet")
    return folder / "rows.parquet"


def arrow_file(folder: Path) -> Path:
    pa, found = import_module("pyarrow"), table(folder)
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as opened, pa.ipc.new_stream(opened, found.schema) as writer:
        writer.write_table(found)
    return folder / "rows.arrow"


COLUMNS = {"user": "task.description", "assistant": "execution.output"}
FORMATS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "sharegpt": (
        lines(lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}),
        {},
    ),
    "alpaca": (lines(lambda q, a: {"instruction": q, "input": None, "output": a}), {}),
    "alpaca in an array": (array_file, {}),
    "prompt-completion": (lines(lambda q, a: {"prompt": q, "completion": a}), {}),
    "columns": (
        lines(lambda q, a: {"task": {"description": q}, "execution": {"output": a}}),
        {"columns": COLUMNS},
    ),
    "prompt-completion in csv": (csv_file, {}),
    "messages in parquet": (parquet_file, {}),
    "messages in arrow": (arrow_file, {}),
}


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return view_of_folder(write_model(tmp_path_factory.mktemp("model")))


def labels_of(place: Path, view: Vocabulary, **fields: Any) -> list[tuple[array[int], array[int]]]:
    rows = read_rows(DataSource(place, **fields), "train", ReadCounts())
    found: Sequence[Any] = list(label_rows(rows, view, LabelRules(512), LabelCounts()))
    assert all(isinstance(row, LabelledRow) for row in found), found
    return [(row.ids, row.labels) for row in found]


@pytest.mark.torch
@pytest.mark.parametrize("name", FORMATS)
def test_the_same_rows_have_the_same_ids_and_labels_in_every_format(
    name: str, tmp_path: Path, view: Vocabulary
) -> None:
    write, fields = FORMATS[name]
    expected = labels_of(lines(lambda q, a: {"messages": turns(q, a)})(tmp_path), view)
    assert len(expected) == len(PAIRS)
    other = tmp_path / "other"
    other.mkdir()
    assert labels_of(write(other), view, **fields) == expected


@pytest.mark.torch
def test_the_same_rows_as_text_of_chatml_have_the_same_ids_and_labels(tmp_path: Path, view: Vocabulary) -> None:
    plain = [pair for pair in PAIRS if "<|im_end|>" not in "".join(pair)]

    def written(shape: Callable[[str, str], Any], name: str) -> Path:
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(shape(*pair)) + "\n" for pair in plain))
        return file

    text = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
    messages = written(lambda q, a: {"messages": turns(q, a)}, "messages")
    assert labels_of(written(lambda q, a: {"text": text.format(q, a)}, "chatml"), view) == labels_of(messages, view)


def test_every_shape_of_one_answer_is_compared() -> None:
    """A text has no answer, and a preference has two."""
    compared = {name.partition(" ")[0] for name in FORMATS} | {"messages", "chatml"}
    assert compared == {shape.name for shape in (*SHAPES, MAPPED)} - {"text", "preference"}
