"""Packages that fields ask for: said by a check, at the line of the field."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from cockpit.launching.installing import install_command
from cockpit.launching.package_check import launch_warning, package_problems
from recipes.load import LoadedRecipe, load_recipe
from recipes.stages.kind import TRAIN


def interpreter(folder: Path, lacks: Iterable[str]) -> Path:
    """A program that answers like an interpreter without some packages."""
    path = folder / "python"
    found = f"{{name: None if name in {set(lacks)!r} else '99' for name in sys.argv[3:]}}"
    answer = f"json.dumps({{'python': [3, 12], 'found': {found}, 'unmet': {{}}}})"
    path.write_text(f"#!{sys.executable}\nimport json, sys\nprint({answer})\n")
    path.chmod(0o755)
    return path


def recipe(folder: Path, lacks: Iterable[str], more: str) -> LoadedRecipe:
    (folder / "model").mkdir()
    (folder / "rows.jsonl").write_text("{}\n")
    path = folder / "r.toml"
    python = json.dumps(str(interpreter(folder, lacks)))
    path.write_text(
        'schema = 1\nname = "r"\n[[stage]]\nname = "t"\nkind = "finetune"\nmodel = "./model"\ndata = "./rows.jsonl"\n'
        f"python = {python}\n{more}\n"
    )
    return load_recipe(path)


def test_a_package_that_a_field_asks_for_is_a_problem_at_its_line(tmp_path: Path) -> None:
    fields = 'report_to = ["wandb", "mlflow"]\nload_in_4bit = true'
    loaded = recipe(tmp_path, ["wandb", "mlflow", "bitsandbytes"], fields)
    found = package_problems(loaded)
    assert [(one.line, one.key, one.message.split()[-1]) for one in found] == [
        (10, "t.load_in_4bit", "bitsandbytes"),
        (9, "t.report_to", "mlflow"),
        (9, "t.report_to", "wandb"),
    ]


def test_an_optimizer_that_needs_a_package_is_the_field_that_is_named(tmp_path: Path) -> None:
    (one,) = package_problems(recipe(tmp_path, ["bitsandbytes"], 'optim = "adamw_8bit"'))
    assert (one.key, one.line) == ("t.optim", 9)


def test_the_operator_s_part_alone_gets_a_warning_and_no_problem(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, {*TRAIN, "wandb"}, 'report_to = ["wandb"]')
    assert package_problems(loaded) == []
    assert "a launch here would be refused" in launch_warning(loaded)


def test_an_interpreter_that_has_everything_is_silent(tmp_path: Path) -> None:
    found = recipe(tmp_path, [], "")
    assert package_problems(found) == []


def test_a_package_without_an_extra_is_installed_by_its_name(tmp_path: Path) -> None:
    (one,) = package_problems(recipe(tmp_path, ["wandb"], 'report_to = ["wandb"]'))
    assert one.hint.endswith("/python -m pip install wandb")
    both = install_command("/p", ["torch", "wandb"])
    assert both.startswith("/p -m pip install wandb ")
    assert "[train,export,report]" in both
