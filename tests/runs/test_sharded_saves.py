"""Two processes that divide a model and save it in shards beside their steps: whatever is killed in a save, the newest
whole checkpoint continues, with the losses of before.

Everything is real: torchrun, FSDP2, files, signals. A launch costs seconds, so one run shows many things.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cockpit.launching.adoption import ATTACH, adopt
from cockpit.launching.launch import resume
from cockpit.schedule.checkpoint_choice import choose_checkpoint
from cockpit.schedule.facts import read_facts
from engines.artifacts.checkpoints import scan_attempt
from engines.artifacts.consolidate import consolidate
from engines.artifacts.manifest import verify_manifest
from engines.artifacts.sharded import is_in_shards
from engines.control import put_request
from engines.events.attempts import AttemptStarted
from engines.events.steps import CheckpointCommitted, Step
from engines.run_dir.paths import RunDir
from engines.words import Verb
from tests.engines.training import tiny
from tests.runs.harness import (
    assert_no_process_left,
    events,
    fake_recipe,
    kill_supervisor,
    launch_text,
    nothing_left,
    wait_for,
    wait_for_end,
    wait_for_engine,
)
from tests.runs.test_ranks import ranks_of_stage, wait_for_checkpoint

pytestmark = [pytest.mark.torch, pytest.mark.slow]

STAGE = "base"


def recipe(folder: Path, **fields: Any) -> str:
    tokens = tiny.write_tokens(folder / "tokens", {"train": 16 * 42 + 3})
    more = {"gradient_accumulation_steps": 1, "max_steps": 100_000, "save_steps": 2, "save_total_limit": 2}
    launch = {"processes": 2, "strategy": "fsdp2"}
    return fake_recipe({**tiny.PRETRAIN, **more, "data": str(tokens), "launch": launch, **fields})


def drafts(run: RunDir, attempt: int) -> list[Path]:
    """Checkpoints that are being written: each may get its final name between two looks at it."""
    found = []
    for one in run.checkpoints(STAGE, attempt).glob(".tmp-step-*"):
        with suppress(FileNotFoundError):
            if any(".safetens" in name for name in os.listdir(one / "shards")):
                found.append(one)
    return found


def kill_in_a_save(run: RunDir, attempt: int, target: int | None) -> None:
    """Kill a rank, or torchrun (None), while a checkpoint is written; there is a whole one already."""
    ranks = ranks_of_stage(run, STAGE, attempt)
    torchrun = wait_for_engine(run, STAGE, attempt)
    wait_for_checkpoint(run, attempt)
    pid = torchrun if target is None else ranks[target].pid
    wait_for(lambda: drafts(run, attempt), "a checkpoint that is being written")
    os.kill(pid, signal.SIGKILL)


def whole_checkpoints(run: RunDir, attempt: int) -> list[int]:
    """The steps of an attempt's checkpoints. Each is whole and in shards, and what is not whole has no final name."""
    complete, refused = scan_attempt(run.checkpoints(STAGE, attempt))
    assert all("temporary name" in reason for _, reason in refused), refused
    for one in complete:
        assert verify_manifest(one.path) == []
        assert is_in_shards(one.path)
    return [one.step for one in complete]


@dataclass
class Killed:
    """A run of which an attempt lost rank 1 in a save, then rank 0, then torchrun; the last its supervisor."""

    run: RunDir
    state: str = ""
    newest: dict[int, int] = field(default_factory=dict)
    """The newest whole checkpoint of each attempt, when it had ended."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killed]:
    folder = tmp_path_factory.mktemp("killed")
    with nothing_left(folder / "runs"):
        found = Killed(launch_text(recipe(folder), folder))
        run = found.run
        for attempt, target in ((1, 1), (2, 0), (3, None)):
            kill_in_a_save(run, attempt, target)
            assert wait_for_end(run) == "failed"
            assert_no_process_left(run)
            found.newest[attempt] = whole_checkpoints(run, attempt)[-1]
            resume(run)
        wait_for_checkpoint(run, 4)
        wait_for(lambda: drafts(run, 4), "a checkpoint that is being written")
        kill_supervisor(run)
        adopt(run, ATTACH)
        put_request(run.control, Verb.STOP_AFTER_CHECKPOINT)
        found.state = wait_for_end(run)
        yield found


def test_a_kill_in_a_save_leaves_a_whole_checkpoint_from_which_the_next_attempt_continues(killed: Killed) -> None:
    started = {e.attempt: e.resumed_from for e in events(killed.run) if isinstance(e, AttemptStarted)}
    assert set(started) == {1, 2, 3, 4}
    for attempt in (2, 3, 4):
        origin = started[attempt]
        assert origin is not None
        assert (origin.attempt, origin.step) == (attempt - 1, killed.newest[attempt - 1])


def test_steps_that_are_repeated_have_the_losses_of_before(killed: Killed) -> None:
    """Bit for bit, with dropout: the shards have every weight and state, and each rank its random numbers."""
    found: dict[int, set[tuple[float | None, float | None]]] = {}
    for step in (e for e in events(killed.run) if isinstance(e, Step)):
        found.setdefault(step.step, set()).add((step.loss, step.grad_norm))
    assert all(len(values) == 1 for values in found.values())
    repeated = sum(isinstance(e, Step) for e in events(killed.run)) - len(found)
    assert repeated > 0


def test_a_killed_supervisor_does_not_disturb_a_save_and_a_stop_waits_for_the_last_one(killed: Killed) -> None:
    assert killed.state == "stopped"
    last = max(e.step for e in events(killed.run) if isinstance(e, Step))
    assert whole_checkpoints(killed.run, 4)[-1] == last
    assert len(whole_checkpoints(killed.run, 4)) == 2, "save_total_limit"
    assert not drafts(killed.run, 4)
    assert_no_process_left(killed.run)


@pytest.mark.parametrize("damage", ["changed", "truncated", "missing", "swapped"])
def test_a_damaged_shard_is_named_and_the_checkpoint_before_is_taken(
    killed: Killed, tmp_path: Path, damage: str
) -> None:
    copied = RunDir(tmp_path / killed.run.id)
    shutil.copytree(killed.run.root, copied.root, ignore=shutil.ignore_patterns("*.fifo"))
    before, newest = (one.path for one in scan_attempt(copied.checkpoints(STAGE, 4))[0][-2:])
    first, second = sorted((newest / "shards").glob("shard-*.safetensors"))
    if damage == "changed":
        data = bytearray(second.read_bytes())
        data[-1] ^= 1
        second.write_bytes(data)
    elif damage == "truncated":
        os.truncate(second, second.stat().st_size - 1)
    elif damage == "missing":
        second.unlink()
    else:
        bytes_of = first.read_bytes(), second.read_bytes()
        first.write_bytes(bytes_of[1])
        second.write_bytes(bytes_of[0])
    choice = choose_checkpoint(copied, STAGE, read_facts(copied).stages[STAGE])
    assert choice.chosen is not None
    assert choice.chosen.path == before
    named = [reason for reason in choice.refused if newest.name in reason]
    assert len(named) == 1
    assert f"shards/{second.name}" in named[0]
    with pytest.raises(Exception, match=r"is damaged: shards/shard"):
        consolidate(newest, tmp_path / "model")


def test_a_checkpoint_of_several_processes_becomes_a_model_folder(killed: Killed, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    newest = scan_attempt(killed.run.checkpoints(STAGE, 4))[0][-1]
    consolidate(newest.path, tmp_path / "model")
    _, found = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("ab")["input_ids"]


@pytest.mark.thorough
def test_sixty_kills_in_saves_of_whole_launches(tmp_path: Path) -> None:
    """Each of rank 0, rank 1 and torchrun twenty times; every launch continues from the newest whole checkpoint."""
    with nothing_left(tmp_path / "runs"):
        run = launch_text(recipe(tmp_path), tmp_path)
        for attempt in range(1, 61):
            kill_in_a_save(run, attempt, (0, 1, None)[attempt % 3])
            assert wait_for_end(run) == "failed"
            assert_no_process_left(run)
            newest = whole_checkpoints(run, attempt)[-1]
            resume(run)

            def origins(attempt: int = attempt) -> list[Any]:
                started = (e for e in events(run) if isinstance(e, AttemptStarted))
                return [e.resumed_from for e in started if e.attempt == attempt + 1]

            [origin] = wait_for(origins, f"attempt {attempt + 1}")
            assert (origin.attempt, origin.step) == (attempt, newest)
    losses: dict[int, set[float | None]] = {}
    for step in (e for e in events(run) if isinstance(e, Step)):
        losses.setdefault(step.step, set()).add(step.loss)
    assert all(len(values) == 1 for values in losses.values())
    assert sum(isinstance(e, CheckpointCommitted) for e in events(run)) > 60
