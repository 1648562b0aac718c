"""Whether Unsloth starts somewhere is asked there, and the answer stands at the line of the recipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cockpit.launching import unsloth_check
from cockpit.launching.unsloth_check import Answer, ask, unsloth_problems
from recipes.load import load_recipe
from recipes.stages.finetune import FinetuneStage
from recipes.stages.kind import TESTED
from recipes.stages.registry import row_of

RECIPE = """
schema = 1
name = "r"
[[stage]]
name = "tuned"
kind = "finetune"
model = "/m"
data = "/d"
optim = "{optim}"
backend = "{backend}"
python = "{python}"
[[stage]]
name = "again"
kind = "finetune"
model = "/m"
data = "/d"
backend = "{backend}"
python = "{python}"
"""


STAGE = FinetuneStage(name="a", kind="finetune", model="/m", data="/d", backend="unsloth")
NEEDS = row_of(STAGE).needs(STAGE)


def interpreter(folder: Path, says: str, **versions: str | None) -> Path:
    """A program that is started like Python: it gives these versions, and counts how often it is asked to import."""
    found = {**dict.fromkeys(NEEDS, "1.0"), **{name: f"{one}.9" for name, one in TESTED["unsloth"].items()}, **versions}
    path, count = folder / "python", folder / "asked"
    path.write_text(
        f"#!{sys.executable}\nimport os, sys\nif 'metadata' in sys.argv[2]:\n"
        f"    print({json.dumps({'python': [3, 11], 'found': found})!r})\n"
        f"else:\n    open({str(count)!r}, 'a').write(os.environ['HF_HUB_OFFLINE'])\n    {says}\n"
    )
    path.chmod(0o755)
    return path


def problems(folder: Path, python: Path | str, backend: str = "unsloth", optim: str = "adamw_torch_fused") -> list[str]:
    file = folder / "recipe.toml"
    file.write_text(RECIPE.format(python=python, backend=backend, optim=optim))
    return [str(one).removeprefix(f"{file}:") for one in unsloth_problems(load_recipe(file, paths_here=False))]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def test_an_interpreter_in_which_unsloth_starts_is_asked_once_for_all_stages(tmp_path: Path) -> None:
    python = interpreter(tmp_path, """print('a banner\\n{"device": "cpu"}')""")
    assert problems(tmp_path, python) == []
    assert (tmp_path / "asked").read_text() == "1", "once, and without a model hub"


def test_the_reason_of_unsloth_stands_at_the_line_of_the_field(tmp_path: Path) -> None:
    said = "NotImplementedError: Unsloth cannot find any torch accelerator? You need a GPU."
    python = interpreter(tmp_path, f"print({json.dumps({'error': said})!r})")
    first, second = problems(tmp_path, python)
    assert first.startswith(f"10  tuned.backend — Unsloth does not start in {python}: {said}; install what it needs")
    assert second.startswith("17  again.backend")


def test_versions_are_refused_before_unsloth_is_imported(tmp_path: Path) -> None:
    python = interpreter(tmp_path, "raise AssertionError", transformers="5.23.0")
    assert "has transformers 5.23.0; the engines are tested with 5.17.*" in problems(tmp_path, python)[0]
    assert not (tmp_path / "asked").exists()


def test_an_optimizer_that_unsloth_lacks_on_the_cpu_is_refused_there_only(tmp_path: Path) -> None:
    for device, count in (("cpu", 1), ("cuda", 0)):
        python = interpreter(tmp_path, f"print({json.dumps({'device': device})!r})")
        found = problems(tmp_path, python, optim="adamw_8bit")
        assert len(found) == count
        assert all(one.startswith("9  tuned.optim — Unsloth has no adamw_8bit") for one in found)


@pytest.mark.parametrize("says", ["print('[]')", "print('{')", "sys.exit(3)", "pass", "os.kill(os.getpid(), 9)"])
def test_an_interpreter_without_an_answer_is_a_problem(tmp_path: Path, says: str) -> None:
    assert "does not start in" in problems(tmp_path, interpreter(tmp_path, says))[0]


def test_an_interpreter_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsloth_check, "ASK_TIMEOUT_S", 0.5)
    python = interpreter(tmp_path, "import time; time.sleep(600)")
    assert ask(str(python), []) == Answer(error="no answer within 0.50s")


def test_stages_of_hf_are_not_asked(tmp_path: Path) -> None:
    assert problems(tmp_path, "/nowhere/python", backend="hf") == []
