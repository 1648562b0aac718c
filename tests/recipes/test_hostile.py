"""Hostile and broken files: one located problem each, found by the scanner before a parser reads the text."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.load import MAX_PROBLEMS, load_recipe, load_recipe_text
from recipes.problems import OperatorError, Problem, RecipeError
from recipes.toml_read import MAX_BYTES, decode
from recipes.toml_scan import ScanError, scan
from tests.recipes.recipe_texts import FAKE, SOUND, problems_of

HERE = Path("/nowhere/r.toml")


def only(text: str) -> Problem:
    (problem,) = problems_of(text, HERE)
    return problem


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (".".join("a" * 20_000) + " = 1", "more than 8 parts"),
        ("[" + ".".join("a" * 20_000) + "]", "more than 8 parts"),
        ("[[" + ".".join("a" * 20_000) + "]]", "more than 8 parts"),
        (" . ".join(["'a'"] * 10_000) + " = 1", "more than 8 parts"),
        ("x = {" + ".".join("a" * 20_000) + " = 1}", "more than 8 parts"),
        ("x = " + "[" * 5_000 + "]" * 5_000, "nested more than"),
        ("x = " + "[" * 100_000, "nested more than"),
        ("x = " + "{a = " * 5_000 + "1" + "}" * 5_000, "nested more than"),
        ("x = " + "[{a = " * 5_000 + "1" + "}]" * 5_000, "nested more than"),
        ("x = " + "9" * 5_000, "more than 80 characters"),
        ("x = 0x" + "f" * 5_000, "more than 80 characters"),
        ("x = [" + "1," * 100_000 + "]", "more than 1000 items"),
        ("\n".join(f"a{number} = 1" for number in range(10_100)), "more than 10000 keys"),
        ("x = " + '"' + "a" * MAX_BYTES + '"', "too large"),
    ],
)
def test_a_bomb_is_refused_before_it_is_parsed(tail: str, message: str) -> None:
    assert message in str(only(f"{FAKE}{tail}\n"))


@pytest.mark.parametrize(
    "tail",
    [
        "\n".join(f"key{number} = 1" for number in range(9_000)),
        "[defaults.fake]\n" + "\n".join(f"max_step{number} = 1" for number in range(9_000)),
        "\n".join("[[stage.gate]]\nmetric = 1" for _ in range(3_000)),
        "[defaults.fake]\ngate = [" + "1," * 900 + "]\n" + "[[stage]]\nname = 'a'\nkind = 'fake'\n" * 200,
    ],
)
def test_a_flood_of_mistakes_ends_with_the_first_hundreds(tail: str) -> None:
    assert len(problems_of(FAKE + tail, HERE)) == MAX_PROBLEMS


def test_the_same_bad_default_under_many_stages_hides_no_other_mistake() -> None:
    stages = "".join(f"[[stage]]\nname = 's{number}'\nkind = 'fake'\n" for number in range(200))
    bad = "[defaults.fake]\nmax_steps = 0\nseed = -1\nstep_s = -1\n"
    problems = problems_of(FAKE + stages + "sed = 1\n" + bad, HERE)
    assert len(problems) == 4


def test_a_refused_bomb_is_located() -> None:
    problem = only(FAKE + "\n\n  " + ".".join("a" * 20_000) + " = 1\n")
    assert (problem.line, problem.column) == (9, 19)


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("schema = \n", 1, 10, "not TOML"),
        ("schema = 1 2\n", 1, 12, "not TOML"),
        ("schema = 1\nschema = 2\n", 2, 11, "not TOML: cannot overwrite a value"),
        ("schema = 1\nname 'x'\n", 2, 6, "not TOML: expected '='"),
        ('schema = 1\nname = "x\n', 2, 10, "not TOML"),
        ("schema = 1\nname = '''x\n\n", 2, 8, "not TOML"),
        ("schema = 1\n[stage\n", 2, 7, "not TOML"),
        ("schema = 1\nx = [1,\n\n2\n", 4, 2, "not TOML"),
        ("schema = 1\nx = {a = 1\n", 2, 11, "not TOML"),
        ("schema = 1\nx = 2026-13-40\n", 2, 9, "not TOML"),
        ("schema = 1\nna\0me = 1\n", 2, 3, "NUL"),
        ("\ufeffschema = 1\n", 1, 1, "byte-order mark"),
        ("schema = 1\r\nx = \r\n", 2, 5, "not TOML"),
        ("schema = 1\n\\\n", 2, 1, "not TOML"),
    ],
)
def test_a_broken_file_is_one_located_problem(text: str, line: int, column: int, message: str) -> None:
    problem = only(text)
    assert message in str(problem)
    assert f":{problem.line}:{problem.column}  " in str(problem)
    assert (problem.line, problem.column) == (line, column)


@pytest.mark.parametrize(
    ("raw", "line", "message"),
    [
        ("schema = 1\nname = 'café'\n".encode("latin-1"), 2, "not UTF-8 text; got byte 0xe9"),
        ("schema = 1\n".encode("utf-16"), 1, "UTF-16"),
        (b"\xef\xbb\xbfschema = 1\n", 1, "byte-order mark"),
        (b"schema = 1\nname = '\0'\n", 2, "NUL"),
        (b"#" * 1_000_000, 1, "too large"),
    ],
)
def test_a_file_that_is_not_text_is_one_located_problem(tmp_path: Path, raw: bytes, line: int, message: str) -> None:
    file = tmp_path / "r.toml"
    file.write_bytes(raw)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    (problem,) = caught.value.problems
    assert problem.line == line
    assert message in str(caught.value)


def test_files_that_cannot_be_read_are_operator_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "none.toml", tmp_path / "fifo", tmp_path / ("x" * 5_000), Path("a\0b")):
        with pytest.raises(OperatorError):
            load_recipe(path)


@pytest.mark.parametrize(
    "value", ["nan", "inf", "-inf", "1e400", "2026-11-20", "10:00:00", "9" * 30, "0x10", "[[1]]", "{a=1}"]
)
def test_strange_values_are_problems_at_their_line(value: str) -> None:
    for field in ("learning_rate", "max_steps", "data", "retry", "gate", "name"):
        text = FAKE.replace('name = "one"', f"{field} = {value}") if field == "name" else f"{FAKE}{field} = {value}\n"
        problems = problems_of(text, HERE)
        if (field, value) != ("max_steps", "0x10"):
            assert {problem.line for problem in problems} == {5 if field == "name" else 7}, problems


@settings(max_examples=300)
@given(st.text(alphabet="abs.\"'=[]{}#\n\\ ,1-é\0\r", max_size=60))
def test_any_text_loads_or_is_refused_with_located_problems(text: str) -> None:
    for problem in problems_of(text, HERE):
        assert problem.line >= 1


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_recipe_is_refused_with_located_problems(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(SOUND)))
    length = data.draw(st.integers(0, 12))
    text = SOUND[:start] + data.draw(st.text(alphabet='ab."=[]{}#\n1', max_size=4)) + SOUND[start + length :]
    for problem in problems_of(text, HERE):
        assert problem.line >= 1


@settings(max_examples=200)
@given(st.binary(max_size=80))
def test_any_bytes_are_text_or_one_problem(raw: bytes) -> None:
    problems: list[Problem] = []
    try:
        decode(raw, HERE)
    except RecipeError as error:
        problems = error.problems
    assert len(problems) <= 1


KEYS = st.sampled_from(["a", "b-c", '"d e"', "'f.g'", '"\\u0041"'])
SCALARS = st.sampled_from(
    ["1", "-0.5e3", "true", '"x # y"', "'[z'", "2026-11-20 10:00:00", '"""a\n"b" """', "'''q''''"]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[\n" + ", # c\n".join(items) + "\n]"),
        st.lists(inner, max_size=3, unique=True).map(
            lambda items: "{" + ", ".join(f"k{number} = {item}" for number, item in enumerate(items)) + "}"
        ),
    ),
    max_leaves=6,
)


def paths_of(value: object, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    found = {path} if path else set()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    for key, item in items:
        found |= paths_of(item, (*path, key))
    return found


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(["", "[t]", "[[s]]", "[s.u]", "[[s.v]]"]), KEYS, KEYS, VALUES), max_size=8))
def test_the_scanner_finds_exactly_the_keys_that_the_parser_reads(parts: list[tuple[str, str, str, str]]) -> None:
    text = "".join(f"{header}\n {key}.{below} = {value} # end\n" for header, key, below, value in parts)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    index = scan(text)
    assert set(index.lines) == paths_of(data)
    for path, span in index.values.items():
        here: object = data
        for part in path:
            here = here[part]  # type: ignore[index]
        assert tomllib.loads(f"v = {text[span.start : span.end]}")["v"] == here


def test_the_scanner_reads_every_sound_recipe_as_the_parser_does() -> None:
    assert set(scan(SOUND).lines) == paths_of(tomllib.loads(SOUND))
    with pytest.raises(ScanError):
        scan("a = [")


def test_a_value_that_text_repeats_in_a_comment_does_not_move_lines() -> None:
    text = '# [[stage]]\n# name = "one"\n' + FAKE + '# data = "x"\ndata = "none" # "\n'
    assert [problem.line for problem in problems_of(text, HERE)] == [10]
    assert load_recipe_text(FAKE, HERE).recipe.name == "x"
