"""Live and replay have one code path: a screen that attaches at any moment has the state of the replay."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cockpit.runs.reader import RunReader, read_now
from cockpit.runs.state import fold
from engines.control import put_request
from engines.events.kinds import AnyEvent
from engines.words import Verb
from tests.runs.harness import ROOT, ended, events, fake_recipe, launch_text, wait_for

ATTACHMENTS = 100
SEED = 4


def _has_read_all(screen: RunReader) -> bool:
    return not screen.poll() and not screen.behind


def _recipe(*more: Mapping[str, Any]) -> str:
    return fake_recipe(
        {
            "max_steps": 120,
            "step_s": 0.01,
            "save_steps": 15,
            "eval_steps": 20,
            "nan_at_step": 60,
            "retry": {"max_attempts": 2},
        },
        {"max_steps": 80, "step_s": 0.01, "save_steps": 20},
        *more,
        sample_interval_s=0.1,
    )


@pytest.mark.slow
def test_a_screen_attached_at_any_of_100_moments_has_the_state_of_the_replay(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    run = launch_text(_recipe({"max_steps": 10**6, "step_s": 0.01}), tmp_path)  # its last stage waits for the stop
    screens: list[RunReader] = []
    while ended(run) is None:
        if len(screens) < ATTACHMENTS:
            screens.append(RunReader(run, live=True))
            if len(screens) == ATTACHMENTS:
                put_request(run.control, Verb.STOP)
        for screen in draw.sample(screens, min(len(screens), 12)):
            screen.poll()
        time.sleep(draw.uniform(0, 0.02))
    replayed = read_now(run).state
    assert len(screens) == ATTACHMENTS
    assert replayed.state == "stopped"
    for screen in screens:
        wait_for(partial(_has_read_all, screen), "the screen to have read everything")
        assert screen.state == replayed
        screen.close()


@pytest.mark.slow
def test_shuffling_records_between_writers_changes_nothing(tmp_path: Path) -> None:
    run = launch_text(_recipe(), tmp_path)
    wait_for(lambda: ended(run), "the end")
    recorded = events(run)
    whole = fold(recorded)
    draw = random.Random(SEED)
    for _ in range(100):
        assert fold(_interleaved(recorded, draw)) == whole


def _interleaved(recorded: list[AnyEvent], draw: random.Random) -> list[AnyEvent]:
    """The same records in another order, each writer's own order kept."""
    writers: dict[str, list[AnyEvent]] = {}
    for event in recorded:
        writers.setdefault(event.w, []).append(event)
    turns = [event.w for event in recorded]
    draw.shuffle(turns)
    queues = {name: iter(items) for name, items in writers.items()}
    return [next(queues[name]) for name in turns]


@pytest.mark.slow
def test_run_json_prints_the_journal_and_nothing_else(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(_recipe())
    done = subprocess.run(
        [sys.executable, "-m", "cockpit", "run", str(recipe), "--json", "--runs-dir", str(tmp_path / "runs")],
        capture_output=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    journal = next((tmp_path / "runs").glob("*/journal.jsonl")).read_bytes()
    assert done.stdout == journal
