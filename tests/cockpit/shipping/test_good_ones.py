"""Files that may ship are not refused: other types, other ways to name them, moved and read-only folders, baselines."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cockpit.shipping.check import Result
from cockpit.shipping.limits_file import read_limits
from engines.processor import machine_class
from engines.run_dir.moved_runs import rename_run
from recipes.problems import RecipeError
from recipes.ship.limits import ShipLimits
from tests.cockpit.shipping.planted import Planted, Whole, ask
from tests.cockpit.shipping.test_regressions import judged, reasons, recommit

pytestmark = pytest.mark.torch


@dataclass(frozen=True)
class Good:
    """A case: what is done to the run, what is judged, with which limits and results."""

    name: str
    plant: Callable[[Whole], Any] = lambda _whole: None
    target: Callable[[Whole], str] = lambda _whole: "last"
    limits: dict[str, Any] = field(default_factory=dict)
    file_type: str | None = "Q8_0"
    results: Callable[[Whole], list[Path]] = lambda _whole: []


def of_f16(whole: Whole) -> None:
    whole.evaluate("judge", model="F16", right=range(38), baseline="before", attempt=2)
    whole.evaluate("general-after", model="F16", right=range(60), general=True, baseline="general-before", attempt=2)


def copied_file(whole: Whole) -> str:
    target = whole.root / "elsewhere.gguf"
    shutil.copyfile(whole.file(), target)
    return str(target)


def delivered_folder(whole: Whole) -> str:
    shutil.copytree(whole.run.out("gguf"), whole.root / "delivered")
    return str(whole.root / "delivered" / whole.file().name)


def relative(whole: Whole) -> str:
    return os.path.relpath(whole.file())


def renamed(whole: Whole) -> None:
    rename_run(whole.run, "20261120-2130-renamed")


def without_baseline(whole: Whole) -> None:
    whole.evaluate("judge", model="Q8_0", right=range(40), attempt=2)


def trained(whole: Whole) -> None:
    """As a trained 4-bit file of a small model changed: 11 questions lost and 8 won of 84."""
    whole.evaluate("general-after", model="Q8_0", right=range(11, 68), general=True, baseline="general-before",
                   attempt=2)  # fmt: skip


def own_questions(whole: Whole) -> None:
    whole.evaluate("general-before", model="base", right=range(100), rows=120, attempt=2)
    whole.evaluate("general-after", model="Q8_0", right=range(2, 102), rows=120, baseline="general-before", attempt=2)


def results_of_a_command(whole: Whole) -> list[Path]:
    """As cockpit evaluate writes them, in a folder of the operator's."""
    folder = whole.root / "mine"
    folder.mkdir()
    base = folder / "base.json"
    ask(whole.task(), Planted(whole.identity("base"), range(10), 0.5), base, None, "base")
    file = folder / "q8.json"
    ask(whole.task(), Planted(whole.identity("Q8_0"), range(38), 0.5), file, base, str(whole.file()))
    return [file]


def without_task_stage(whole: Whole) -> None:
    for name in ("judge", "before"):
        shutil.rmtree(whole.run.stage_dir(name))


def resumed(whole: Whole) -> None:
    """A stage that ran again: its earlier output and its earlier gates do not count."""
    whole.evaluate("judge", model="Q8_0", right=range(3), baseline="before", attempt=2, pass_gates=False)
    whole.evaluate("judge", model="Q8_0", right=range(38), baseline="before", attempt=3)


def checkpoint_gone(whole: Whole) -> None:
    for folder in whole.run.root.glob("stages/*/*/checkpoints"):
        shutil.rmtree(folder)


def without_test_file(whole: Whole) -> None:
    """The verdicts cannot be judged again; the kept answers still fit."""
    whole.task(31)
    whole.evaluate("before", model="base", right=range(3), rows=31, attempt=2)
    whole.evaluate("judge", model="Q8_0", right=range(31), rows=31, baseline="before", attempt=2)
    whole.task(31).unlink()


def files_beside_outputs(whole: Whole) -> None:
    (whole.run.out("gguf") / "notes.txt").write_text("of the operator")
    (whole.run.out("judge") / "more.json").write_text("{}")


GOOD = [
    Good("by the run"),
    Good("by the stage", target=lambda whole: f"{whole.run.id}:gguf"),
    Good("by the file", target=lambda whole: str(whole.file()), file_type=None),
    Good("by a relative path", target=relative, file_type=None),
    Good("a copy of the file", target=copied_file, file_type=None),
    Good("a delivered folder", target=delivered_folder, file_type=None),
    Good("the type of the recipe", file_type=None),
    Good("another type", plant=of_f16, file_type="F16"),
    Good("by the file's name", file_type="mine-Q8_0.gguf"),
    Good("a renamed run", plant=renamed),
    Good("without a baseline", plant=without_baseline, limits={"baseline": False, "success_low": 0.89}),
    Good("without general questions", plant=lambda w: shutil.rmtree(w.run.out("general-after")),
         limits={"forgetting": False}),
    Good("results of a command", plant=without_task_stage, results=results_of_a_command),
    Good("stages by name", limits={"task": "judge", "general": "general-after"}),
    Good("questions lost and others won", plant=trained),
    Good("general questions of the operator", plant=own_questions, limits={"general": "general-after"}),
    Good("a stage that ran again", plant=resumed),
    Good("no checkpoints any more", plant=checkpoint_gone),
    Good("an ancestor gone, and allowed", plant=lambda w: shutil.rmtree(w.run.out("tuned")),
         limits={"missing_ancestors": 1}),
    Good("a test file that is gone", plant=without_test_file, limits={"missing_ancestors": 9}),
    Good("speed, size and memory", limits={
        "latency_p95_s": 12.0, "size_bytes": 10_000_000, "peak_rss_bytes": 10_000_000_000, "first_token_p50_s": 1.0,
        "answer_tokens_per_second": 1.0, "ended": 1.0, "repetition": 0.5, "mean_kl": 1.0,
    }),
    Good("a machine by name", limits={"latency_p95_s": 12.0, "machine": machine_class()}),
    Good("no worse than the baseline", plant=lambda w: w.evaluate(
        "judge", model="Q8_0", right=range(10), baseline="before", attempt=2), limits={"difference_low": -0.2}),
    Good("an export that was committed again", plant=lambda w: recommit(w, "gguf")),
    Good("files beside the outputs", plant=files_beside_outputs),
]  # fmt: skip
CORE = {"by the run", "questions lost and others won", "a copy of the file", "results of a command"}


def cases() -> Iterator[Any]:
    for one in GOOD:
        yield pytest.param(one, id=one.name, marks=[] if one.name in CORE else [pytest.mark.thorough])


@pytest.mark.parametrize("good", cases())
def test_a_good_file_is_not_refused(good: Good, whole: Whole) -> None:
    good.plant(whole)
    limits = ShipLimits(**good.limits) if good.limits or good.file_type else None
    found = judged(whole, good.target(whole), limits=limits, file_type=good.file_type, results=good.results(whole))
    assert found.passed, reasons(found)
    assert {check.result for check in found.checks} <= {Result.PASS, Result.NOT_APPLICABLE}


def test_a_file_of_limits_has_all_its_problems_named_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "limits.toml"
    file.write_text('rows = 3\n[ship]\nrowz = 3\nrows = 0\nbaseline = false\nlatency_p95_s = "fast"\n')
    with pytest.raises(RecipeError) as error:
        read_limits(file)
    text = str(error.value)
    assert "limits.toml:1  rows — a file of limits has no such key; allowed a table [ship]" in text
    assert "limits.toml:3  ship.rowz — ship has no such key; did you mean rows?" in text
    assert "limits.toml:4  ship.rows — out of range; got 0" in text
    assert "limits.toml:6  ship.latency_p95_s — wrong type" in text
    file.write_text("[ship]\nlatency_p95_s = 12.0\nrows = 31\n")
    assert read_limits(file) == ShipLimits(latency_p95_s=12.0, rows=31)


def test_limits_that_ask_nothing_of_the_task_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "limits.toml"
    file.write_text("[ship]\nbaseline = false\n")
    with pytest.raises(RecipeError, match="success_low"):
        read_limits(file)


def test_the_limits_stand_in_the_run_and_in_the_verdict(whole: Whole) -> None:
    assert json.loads(whole.run.recipe_json.read_text())["recipe"]["ship"]["file"] == "Q8_0"
    assert judged(whole).verdict()["limits"]["rows"] == 30
