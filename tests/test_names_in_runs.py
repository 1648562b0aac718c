"""Names inside a run directory are spelled in `engines/run_dir/paths.py` alone, and those inside finished folders by
their format's module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.run_dir.paths import RunDir

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("engines", "exporters", "cockpit", "bench", "screenshots")
RUN_DIR = "engines/run_dir/paths.py"
OWNERS = {
    "manifest.json": "engines/artifacts/manifest.py",
    "base.json": "engines/artifacts/adapter_folder.py",
    "adapter_config.json": "engines/artifacts/adapter_folder.py",
    "adapter_model.safetensors": "engines/artifacts/adapter_folder.py",
    "tokens.json": "engines/artifacts/data_folder.py",
    "metadata.json": "engines/artifacts/data_folder.py",
    **dict.fromkeys(
        (
            "run.json", "recipe.toml", "recipe.json", "plan.json", "journal.jsonl", "journal.d", "live.fifo",
            "exit.json", "inputs.json",
            "supervisor.lock", "supervisor.log", "stage.json", "console.log", "engine.lock", "engine.json", "out.tmp",
            "fixture.json",
        ),
        RUN_DIR,
    ),
}  # fmt: skip
IN_PATHS = ("stages", "checkpoints", "out", "work", "refused", "done", "control")
"""Names that are also words: they count where a path is made of them."""

JOINS = frozenset({"joinpath", "glob", "rglob", "with_name"})


def names_in(tree: ast.AST) -> Iterator[str]:
    """Names of files and folders that a module spells: whole constants, and parts of what a path is joined from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            yield from (part for part in node.value.split("/") if part in OWNERS)
            if "/" in node.value or node.value.startswith("step-"):
                yield from _words(node.value)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            yield from _joined(node.right)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in JOINS:
            for argument in node.args:
                yield from _joined(argument)


def _joined(node: ast.expr) -> Iterator[str]:
    texts = node.values if isinstance(node, ast.JoinedStr) else [node]
    for text in texts:
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            yield from _words(text.value)


def _words(text: str) -> Iterator[str]:
    for part in text.split("/"):
        if part.startswith("step-"):
            yield "step-"
        yield from (word for word in IN_PATHS if part == word or (word == "out" and part in {"out.", "out.*", "out*"}))


def spelled() -> list[tuple[str, str]]:
    """(name, file) of every name that the product spells."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [
        (name, path.relative_to(ROOT).as_posix())
        for path in files
        for name in names_in(ast.parse(path.read_text(encoding="utf-8")))
    ]


def test_one_module_spells_each_name() -> None:
    found = spelled()
    assert {name for name, file in found if file == RUN_DIR} >= {"run.json", "journal.jsonl", "checkpoints", "step-"}
    others = {(name, file) for name, file in found if file != OWNERS.get(name, RUN_DIR)}
    assert others == set()


@pytest.mark.parametrize(
    "line",
    [
        'path / "run.json"',
        'folder / "stages" / name',
        'root.glob("stages/*/out")',
        'folder / f"step-{step}"',
        'open("base.json")',
        'folder.with_name("checkpoints")',
        'stage_dir.glob("out.*")',
    ],
)
def test_a_name_that_is_spelled_elsewhere_is_found(line: str) -> None:
    assert list(names_in(ast.parse(line)))


def test_words_that_are_no_names_are_left_alone() -> None:
    assert not list(
        names_in(ast.parse('state = "refused"; message = "see console.log and run.json"; x = {"stages": 1}'))
    )


def test_every_path_of_a_run_is_under_its_root(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    paths = [run.draft_out("s", 1), run.refused_out("s", 1), run.work("s", 1), run.engine_json("s", 1)]
    assert len({*paths, run.out("s")}) == 5
    assert {path.parent for path in paths} == {run.attempt_dir("s", 1)}
