"""Each import contract, broken on purpose in a copy of the tree: a contract that nothing can break protects nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cockpit", "engines", "exporters", "recipes")
BREAKS = {
    "floors": ("recipes/load.py", "import engines.events"),
    "light": ("cockpit/runs/state.py", "import engines.training.loss"),
    "plain": ("engines/guards.py", "import psutil"),
    "textual": ("cockpit/headless/follow.py", "import textual"),
    "screens": ("cockpit/headless/follow.py", "import cockpit.tui.app"),
    "circles": ("cockpit/runs/state.py", "def later():\n    import cockpit.runs.reader"),
    "rooms-of-cockpit": ("cockpit/runs/state.py", "def later():\n    import cockpit.launching.launch"),
    "rooms-of-screens": ("cockpit/tui/look/theme.py", "import cockpit.tui.screens.home"),
    "rooms-of-exporters": ("exporters/gguf/write.py", "import exporters.stages.export_stage"),
    "rooms-of-engines": ("engines/finetune/__init__.py", "import engines.pretrain"),
}
"""For each contract, a file and the line that breaks it."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def linted(folder: Path) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); from importlinter.cli import lint_imports_command "
        "as run; run()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(folder)},
    )


def contracts() -> dict[str, str]:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return {contract["id"]: contract["name"] for contract in config["tool"]["importlinter"]["contracts"]}


def test_the_tree_keeps_every_contract(copy: Path) -> None:
    done = linted(copy)
    assert done.returncode == 0, done.stdout
    assert f"{len(contracts())} kept, 0 broken" in done.stdout


def test_every_contract_has_a_break() -> None:
    assert set(BREAKS) == set(contracts())


@pytest.mark.parametrize("contract", BREAKS)
def test_a_broken_contract_is_caught(copy: Path, contract: str) -> None:
    name, line = BREAKS[contract]
    path = copy / name
    before = path.read_text()
    try:
        path.write_text(f"{before}\n{line}\n")
        done = linted(copy)
    finally:
        path.write_text(before)
    assert done.returncode == 1
    assert f"{contracts()[contract]} BROKEN" in done.stdout
