"""Outcomes of a request: sent, waiting for an engine, refused because the run has ended, or not written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import cockpit
from cockpit.launching.answers import not_taken_words, wait_for_answer
from cockpit.launching.requests import EFFECTS, Outcome, effect_of, send_request
from engines.control import pending
from engines.emitter import EventWriter
from engines.events.runs import RunEnded, RunStarted
from engines.run_dir.creation import create_run_dir
from engines.run_dir.locks import Lock
from engines.run_dir.paths import RunDir
from engines.words import RunStatus, StartReason, Verb, WriterRole
from recipes.problems import OperatorError


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that has started and has no engine."""
    made = create_run_dir(
        tmp_path, name="atlas", recipe="atlas", recipe_toml="", recipe_json={}, plan_json={}, version="0"
    )
    tell(made, RunStarted(run=made.id, recipe="atlas", reason=StartReason.LAUNCH, stages=["base"], kinds=["fake"]))
    return made


@pytest.fixture
def supervised(run: RunDir) -> Iterator[RunDir]:
    """The same run; its supervisor's lock is held, so that no supervisor is started."""
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({"pid": 0})
    yield run
    lock.release()


def tell(run: RunDir, event: RunStarted | RunEnded) -> None:
    writer = EventWriter(run.journal, run.fifo, role=WriterRole.SUPERVISOR)
    writer.emit(event)
    writer.close()


def test_every_verb_describes_its_effect_with_its_value() -> None:
    assert set(EFFECTS) == set(Verb)
    assert "3e-4" in effect_of(Verb.LEARNING_RATE, 3e-4)
    assert "12000" in effect_of(Verb.MAX_STEPS, 12_000.0)
    assert all("{" not in effect_of(verb, 1.0 if verb.takes_value else None) for verb in Verb)


def test_a_request_without_an_engine_is_written_and_says_that_it_waits(supervised: RunDir) -> None:
    reply = send_request(supervised, Verb.STOP_AFTER_CHECKPOINT, by="ada")
    assert (reply.outcome, reply.sent) == (Outcome.WAITING, True)
    assert reply.sentence.startswith(f"{supervised.id}: stop-after-checkpoint requested; ")
    assert "no engine is running yet" in reply.hint
    assert [(request.verb, request.by) for request in pending(supervised.control)] == [("stop-after-checkpoint", "ada")]


def test_a_run_that_has_ended_gets_no_request_and_the_reply_names_resume(run: RunDir) -> None:
    tell(run, RunEnded(state=RunStatus.FAILED))
    reply = send_request(run, Verb.CHECKPOINT)
    assert (reply.outcome, reply.sent) == (Outcome.ENDED, False)
    assert reply.sentence == f"{run.id}: the run has already ended (failed)"
    assert reply.hint == f"resume it: cockpit resume {run.id}"
    assert pending(run.control) == []
    with pytest.raises(OperatorError, match="already ended"):
        reply.require_sent()


def test_a_request_that_cannot_be_written_says_why(supervised: RunDir) -> None:
    shutil.rmtree(supervised.control)
    supervised.control.write_text("a file in the place of the folder")
    reply = send_request(supervised, Verb.STOP)
    assert (reply.outcome, reply.sent) == (Outcome.NOT_SENT, False)
    assert "could not send the stop request" in reply.sentence
    assert str(supervised.control) in reply.sentence


@pytest.mark.parametrize(
    ("verb", "value", "why"),
    [
        (Verb.LEARNING_RATE, -1.0, "allowed a finite number above 0"),
        (Verb.MAX_STEPS, None, "needs a value"),
        (Verb.STOP, 1.0, "takes no value"),
    ],
)
def test_a_request_that_no_engine_understands_is_refused(
    supervised: RunDir, verb: Verb, value: float | None, why: str
) -> None:
    reply = send_request(supervised, verb, value)
    assert reply.outcome is Outcome.NOT_SENT
    assert why in reply.sentence
    assert pending(supervised.control) == []


def test_nothing_is_written_into_an_unsupervised_run_of_a_newer_format(run: RunDir) -> None:
    (run.root / "run.json").write_text(json.dumps({"format": 99, "id": run.id}))
    reply = send_request(run, Verb.STOP)
    assert reply.outcome is Outcome.NOT_SENT
    assert "newer than this Cockpit" in reply.sentence
    assert pending(run.control) == []


def test_the_cockpit_writes_requests_in_one_place_and_a_supervisor_that_gets_a_signal_its_own() -> None:
    root = Path(cockpit.__file__).parent
    writers = {str(path.relative_to(root)) for path in root.rglob("*.py") if "put_request(" in path.read_text()}
    assert writers == {"launching/requests.py", "supervision/supervisor.py"}


def test_the_wait_for_an_answer_ends_when_the_run_ends_and_says_so(supervised: RunDir) -> None:
    reply = send_request(supervised, Verb.LEARNING_RATE, 1e-4)
    tell(supervised, RunEnded(state=RunStatus.FAILED, reason="base: no data"))
    looks = iter([False, False])  # the third look would raise: the end is seen before
    assert wait_for_answer(reply, patience_s=3600.0, stopped=lambda: next(looks)) is None
    words = not_taken_words(supervised, reply, 3600.0)
    assert words == "learning-rate not taken: the run ended first (failed); the request stays in effect for a resume"
    assert len(pending(supervised.control)) == 1
