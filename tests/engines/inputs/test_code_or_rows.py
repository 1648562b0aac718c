"""A prepare stage reads rows, or asks about a code base: by what lies in the folder, unless the recipe says which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.inputs.code_or_rows import asks_about_code, unused_fields, unused_warning
from engines.inputs.files_read import files_read
from recipes.stages.prepare import PrepareMessages
from tests.engines.small_corpora import write_tree

CONVERSATION = '{"prompt": "q", "completion": "a"}\n'


def stage(**fields: Any) -> PrepareMessages:
    table = {"name": "rows", "kind": "prepare", "output": "messages", "data": "./x", **fields}
    return PrepareMessages.model_validate(table)


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"a.py": "a = 1"}, True),
        ({"package.json": "{}", "src/index.js": "let a"}, True),
        ({"train.jsonl": CONVERSATION, "make.py": "a = 1"}, False),
        ({"data.csv": "prompt,completion\nq,a\n", "tools/make.py": "a = 1"}, False),
        ({"0001.json": CONVERSATION, "0002.json": CONVERSATION}, False),
        ({"metadata.json": '{"kind": "text"}', "train.jsonl": '{"path": "a.py", "text": "a = 1"}\n'}, True),
        ({"metadata.json": '{"kind": "messages"}', "train.jsonl": CONVERSATION}, False),
        ({"notes.md": "nothing"}, False),
    ],
)
def test_what_lies_in_the_folder_decides(tmp_path: Path, files: dict[str, str], code: bool) -> None:
    write_tree(tmp_path, files)
    assert asks_about_code(stage(), tmp_path) is code
    read = {name for name, _ in files_read(stage(), "data", tmp_path)}
    assert ("make.py" in read) is False
    assert all(name in read for name in files if name.endswith((".jsonl", ".csv", ".js")) or (code and ".py" in name))


def test_the_recipe_decides_before_the_folder(tmp_path: Path) -> None:
    sources = write_tree(tmp_path / "code", {"a.py": "a = 1", "settings.json": "{}"})
    rows = write_tree(tmp_path / "rows", {"train.jsonl": CONVERSATION})
    assert not asks_about_code(stage(format="messages"), sources)
    assert not asks_about_code(stage(columns={"user": "q", "assistant": "a"}), sources)
    assert asks_about_code(stage(format="code"), rows)


def test_a_file_and_a_dataset_of_a_hub_are_rows(tmp_path: Path) -> None:
    assert not asks_about_code(stage(), write_tree(tmp_path, {"rows.jsonl": CONVERSATION}) / "rows.jsonl")
    assert not asks_about_code(stage(), None)


def test_fields_that_the_kind_of_data_does_not_use_are_named() -> None:
    table = {"name": "a", "kind": "prepare", "output": "messages", "data": "./d", "max_examples": 9, "seed": 3}
    stage = PrepareMessages.model_validate({**table, "keywords": ["main"], "repeat_build": 50, "duplicates": "drop"})
    assert unused_fields(stage, about_code=False) == ["keywords", "repeat_build"]
    assert unused_fields(stage, about_code=True) == ["duplicates"]
    assert unused_warning(PrepareMessages.model_validate(table), about_code=False) == ""
