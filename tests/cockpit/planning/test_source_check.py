"""A folder that gives its stage nothing is refused before a run is made, and a code base is not taken for rows."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from cockpit.planning.data_look import look_at_data
from cockpit.planning.model_check import check_models
from cockpit.planning.source_check import source_problems
from recipes.load import load_recipe
from recipes.problems import RecipeError

FILES = {"src/a.cpp": "class A { void f(); };", "b.py": "def b(): 'B.'", "vendor/v.go": "package v", "notes.md": "x"}


def recipe(tmp_path: Path, output: str, more: str = "") -> Path:
    for name, text in FILES.items():
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    field = "source" if output == "text" else "data"
    path = tmp_path / "r.toml"
    path.write_text(
        'schema = 1\nname = "x"\n[[stage]]\nname = "q"\nkind = "prepare"\n'
        f'output = "{output}"\n{field} = "./tree"\n{more}\n'
    )
    return path


@pytest.mark.parametrize(
    ("output", "more", "message"),
    [
        ("text", 'include = ["*.java"]', "has no file that include matches"),
        ("messages", 'languages = ["java"]', "has neither data files nor sources"),
        ("messages", 'languages = ["go"]', "has neither data files nor sources"),
        ("messages", 'languages = ["java"]\nformat = "code"', "has no sources"),
    ],
)
def test_a_folder_without_anything_to_read_is_refused_at_its_line(
    tmp_path: Path, output: str, more: str, message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        check_models(load_recipe(recipe(tmp_path, output, more)))
    (problem,) = caught.value.problems
    assert problem.line == 7
    assert message in problem.message


@pytest.mark.parametrize("more", ["", 'languages = ["go"]\nvendored = "keep"', 'format = "code"'])
def test_a_code_base_is_no_bad_data(tmp_path: Path, more: str) -> None:
    loaded = load_recipe(recipe(tmp_path, "messages", more))
    check_models(loaded)
    assert look_at_data(loaded) == {}


def test_a_language_without_a_parser_is_refused_unless_another_interpreter_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cockpit.planning.source_check.find_spec", lambda _name: None)
    with pytest.raises(RecipeError, match="no parser is installed for cpp"):
        check_models(load_recipe(recipe(tmp_path, "messages")))
    check_models(load_recipe(recipe(tmp_path, "messages", 'languages = ["python"]')))
    check_models(load_recipe(recipe(tmp_path, "messages", 'python = "/opt/train/bin/python"')))


def test_damaged_tokens_are_refused_at_the_line_that_names_them(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    entry = {"tokens": 8, "documents": 1, "file": "train.bin", "sha256": "", "index": "train.idx"}
    manifest = {"format": 1, "dtype": "uint16", "eos_id": 2, "vocab_size": 300, "tokenizer_sha256": "0"}
    (tokens / "tokens.json").write_text(json.dumps({**manifest, "splits": {"train": entry}}))
    (tokens / "train.bin").write_bytes(bytes(15))
    path = tmp_path / "r.toml"
    shape = "hidden_size = 64\nintermediate_size = 128\nnum_attention_heads = 2\nnum_hidden_layers = 1\n"
    path.write_text(
        'schema = 1\nname = "x"\n[[stage]]\nname = "base"\nkind = "pretrain"\nmax_steps = 1\ndata = "./tokens"\n'
        f"{shape}num_key_value_heads = 1\n"
    )
    with pytest.raises(RecipeError) as caught:
        check_models(load_recipe(path))
    assert {problem.line for problem in caught.value.problems} == {7}
    said = "; ".join(problem.message for problem in caught.value.problems)
    for wanted in ("train.bin has 15 bytes", "train.idx does not exist", "tokenizer.model does not exist"):
        assert wanted in said


@pytest.mark.parametrize(("max_length", "problems"), [(8, 0), (9, 1)])
def test_a_window_longer_than_all_tokens_is_refused_at_its_line(tmp_path: Path, max_length: int, problems: int) -> None:
    tokens = tmp_path / "tokens"
    (tokens / "tokenizer").mkdir(parents=True)
    (tokens / "tokenizer" / "tokenizer.model").write_bytes(b"x")
    entry = {"tokens": 8, "documents": 1, "file": "train.bin", "sha256": "", "index": "train.idx"}
    sha256 = hashlib.sha256(b"x").hexdigest()
    manifest = {"format": 1, "dtype": "uint16", "eos_id": 2, "vocab_size": 300, "tokenizer_sha256": sha256}
    (tokens / "tokens.json").write_text(json.dumps({**manifest, "splits": {"train": entry}}))
    (tokens / "train.bin").write_bytes(bytes(16))
    (tokens / "train.idx").write_bytes(bytes(8))
    path = tmp_path / "r.toml"
    path.write_text(
        'schema = 1\nname = "x"\n[[stage]]\nname = "base"\nkind = "pretrain"\nmax_steps = 1\ndata = "./tokens"\n'
        f"max_length = {max_length}\nhidden_size = 64\nintermediate_size = 128\nnum_attention_heads = 2\n"
        "num_hidden_layers = 1\nnum_key_value_heads = 1\n"
    )
    found = source_problems(load_recipe(path))
    assert [(one.line, one.key) for one in found] == [(8, "base.max_length")] * problems


@pytest.mark.parametrize(
    ("files", "more", "said"),
    [
        ({}, "", "has no tokenizer"),
        ({"tokenizer.json": "{"}, 'eos_token = "e"\n', "tokenizer.json cannot be read"),
        ({"tokenizer.json": "{}"}, "", "eos_token — missing"),
        ({"tokenizer.json": '{"model": {"dropout": 0.1}}'}, 'eos_token = "e"\n', "model.dropout"),
        ({"tokenizer.json": "{}"}, 'eos_token = "e"\n', ""),
        ({"tokenizer.model": ""}, "", ""),
    ],
)
def test_a_tokenizer_that_cannot_encode_is_refused_before_the_text_is_prepared(
    tmp_path: Path, files: dict[str, str], more: str, said: str
) -> None:
    for name, content in {"tok/README": "", "src/a.txt": "a", **{f"tok/{n}": c for n, c in files.items()}}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    path = tmp_path / "r.toml"
    path.write_text(
        'schema = 1\nname = "x"\n[[stage]]\nname = "text"\nkind = "prepare"\noutput = "text"\nsource = "./src"\n'
        '[[stage]]\nname = "tokens"\nkind = "prepare"\noutput = "tokens"\ndata = "text"\ntokenizer = "./tok"\n' + more
    )
    loaded = load_recipe(path)
    if not said:
        check_models(loaded)
        return
    with pytest.raises(RecipeError) as caught:
        check_models(loaded)
    assert [problem.key for problem in caught.value.problems] == ["tokens.tokenizer"]
    assert said in caught.value.problems[0].message
