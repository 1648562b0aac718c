"""What processes really import: the static contracts cannot see what happens at run time."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cockpit.commands import PURPOSES, module_of

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "numpy", "gguf", "xllamacpp"}
LIGHT_FILES = sorted(path.stem for path in (ROOT / "engines").glob("*.py") if path.stem != "__init__")
LIGHT_FOLDERS = ["artifacts", "events", "inputs", "machine", "run_dir"]
LIGHT_ENGINES = LIGHT_FILES + [
    f"{folder}.{path.stem}"
    for folder in LIGHT_FOLDERS
    for path in sorted((ROOT / "engines" / folder).glob("*.py"))
    if path.stem != "__init__"
]


def modules_after(code: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter holds after running the code."""
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}\nimport sys\nprint(' '.join(sorted({{m.partition('.')[0] for m in sys.modules}})))",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(told.stdout.splitlines()[-1].split())


def imported(*names: str) -> str:
    return "import " + ", ".join(names)


def test_the_command_line_starts_with_almost_nothing() -> None:
    loaded = modules_after("import cockpit.cli\ncockpit.cli.build_parser()")
    assert not loaded & (HEAVY | {"textual", "rich", "pydantic", "msgspec", "psutil", "pynvml", "asyncio"})


def test_a_mistaken_command_and_the_help_page_load_nothing_either() -> None:
    heavy = HEAVY | {"textual", "rich", "pydantic", "msgspec", "psutil", "pynvml", "asyncio"}
    for words in (["--help"], ["nosuch"], ["--version"]):
        ask = f"import contextlib, cockpit.cli\nwith contextlib.suppress(SystemExit):\n    cockpit.cli.main({words})"
        assert not modules_after(ask) & heavy, words


def test_every_command_is_a_module_with_a_line_on_the_help_page() -> None:
    commands = ROOT / "cockpit" / "commands"
    modules = {path.stem for path in commands.rglob("*.py")}
    modules -= {"__init__", "asking", "child_job", "sampling", "template"}
    assert modules == {module_of(command).rpartition(".")[2] for command in PURPOSES}


def test_no_command_loads_a_training_stack_or_the_screens() -> None:
    loaded = modules_after(imported(*map(module_of, PURPOSES)))
    assert not loaded & (HEAVY | {"textual"})


def test_the_supervisor_is_light() -> None:
    assert not modules_after(imported("cockpit.supervision.supervisor")) & (HEAVY | {"textual", "rich"})


@pytest.mark.parametrize("name", LIGHT_ENGINES)
def test_files_directly_in_engines_and_in_its_light_folders_are_light(name: str) -> None:
    loaded = modules_after(imported(f"engines.{name}"))
    assert not loaded & (HEAVY | {"textual", "rich", "psutil", "pynvml"})


def test_recipes_are_light() -> None:
    names = sorted(f"recipes.{path.stem}" for path in (ROOT / "recipes").glob("*.py") if path.stem != "__init__")
    assert not modules_after(imported(*names)) & (HEAVY | {"textual", "rich", "psutil", "pynvml", "msgspec"})


def test_the_screens_load_no_training_stack() -> None:
    assert not modules_after(imported("cockpit.tui.app")) & HEAVY


def test_the_light_contract_names_every_file_of_engines() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    light = next(contract for contract in contracts if contract["id"] == "light")
    named = {name.removeprefix("engines.") for name in light["source_modules"] if name.startswith("engines.")}
    assert named == {*LIGHT_FILES, *LIGHT_FOLDERS}
