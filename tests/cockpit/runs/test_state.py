from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cockpit.runs.eta import stage_time_left
from cockpit.runs.state import RunState, fold
from engines.events.attempts import AttemptEnded, AttemptStarted, Phase, Progress, ResumedFrom
from engines.events.kinds import AnyEvent
from engines.events.records import decode_record
from engines.events.runs import (
    ControlApplied,
    RunEnded,
    RunStarted,
    StageFailed,
    StageSkipped,
    StageStarted,
    StageSucceeded,
)
from engines.events.steps import CheckpointRemoved, Step
from engines.events.writers import Gap, Warned
from engines.words import EndReason, ExitCode, RunStatus, StageStatus, StartReason, exit_code_of
from recipes.quantities import percent
from tests.tui import journals
from tests.tui.journals import Journal


def interleaved(events: list[AnyEvent], rng: random.Random) -> list[AnyEvent]:
    """The same writers' records in another interleaving; order within a writer is kept."""
    queues: dict[str, list[AnyEvent]] = {}
    for event in events:
        queues.setdefault(event.w, []).append(event)
    for queue in queues.values():
        queue.reverse()
    result = []
    while queues:
        writer = rng.choice(sorted(queues))
        for _ in range(rng.choice([1, 1, 3, 40, 400])):
            result.append(queues[writer].pop())
            if not queues[writer]:
                del queues[writer]
                break
    return result


def views(state: RunState) -> object:
    """Everything that screens read, as one value."""
    stages = [
        (
            s.name, s.kind, s.state, s.reason, s.metrics, [c.step for c in s.checkpoints], s.total_steps, s.at_step,
            stage_time_left(s), s.fraction,
            [(a.attempt, a.reason, a.exit, a.detail, a.resumed_from) for a in s.attempts],
            [e.step for e in s.evaluations],
            list(state.series(s.name, "loss").x), [list(x.x) for x in state.superseded(s.name, "loss")],
            state.attempts_since_resume(s.name),
        )
        for s in state.stages
    ]  # fmt: skip
    machine = list(state.machine_series("ram_used_bytes").x)
    return (state.run_id, state.state, state.reason, stages, machine, state.log(), state.gaps, state.last_event_t)


JOURNALS = {name: getattr(journals, name)().events for name in ("live", "merging", "failed", "finished")}


@settings(max_examples=25)
@given(st.sampled_from(sorted(JOURNALS)), st.integers(0, 1 << 32))
def test_the_order_between_writers_changes_nothing(name: str, seed: int) -> None:
    events = JOURNALS[name]
    straight, shuffled = fold(events), fold(interleaved(events, random.Random(seed)))
    assert straight.digest() == shuffled.digest()
    assert straight == shuffled
    assert views(straight) == views(shuffled)


@settings(max_examples=10)
@given(st.integers(0, 900), st.integers(0, 1 << 32))
def test_reading_the_state_on_the_way_changes_nothing(cut: int, seed: int) -> None:
    events = interleaved(JOURNALS["failed"], random.Random(seed))
    state = RunState()
    state.apply_all(events[:cut])
    views(state)
    state.apply_all(events[cut:])
    assert views(state) == views(fold(events))


def test_a_record_that_comes_twice_counts_once() -> None:
    events = journals.live(50).events
    state = fold(events)
    before = state.digest()
    assert state.apply_all(events) == 0
    assert state.digest() == before


def test_the_state_of_a_run_follows_its_newest_start_or_end() -> None:
    journal = journals.failed()
    state = fold(journal.events)
    assert (state.state, state.reason) == ("failed", "stage atlas failed")
    assert state.stage("atlas") is not None
    journal.say(
        "sup2",
        RunStarted(
            run="r", recipe="csdl-atlas", reason=StartReason.RESUME, stages=journals.STAGES, kinds=journals.KINDS
        ),
        60.0,
    )
    assert fold(journal.events).state == "running"
    journal.say("sup2", RunEnded(state=RunStatus.STOPPED, reason="operator"), 5.0)
    assert fold(journal.events).state == "stopped"


def test_nothing_written_yet_is_queued() -> None:
    assert RunState().state == "queued"
    assert RunState().stages == []
    assert RunState().current_stage is None


def test_a_resumed_attempt_cuts_the_steps_after_its_checkpoint() -> None:
    state = fold(journals.failed().events)
    x = list(state.series("atlas", "loss").x)
    assert x == list(range(1, 656))
    [old] = state.superseded("atlas", "loss")
    assert (old.x[0], old.x[-1]) == (501.0, 641.0)
    stage = state.stage("atlas")
    assert stage is not None
    assert [e.step for e in stage.evaluations] == [100, 200, 300, 400, 500, 600]
    assert stage.evaluations[-1].attempt == 2


def test_an_attempt_from_step_0_replaces_every_older_step() -> None:
    journal = journals.begun()
    journals.training(journal, last=30, total=50)
    journals.training(journal, attempt=2, last=10, total=50)
    state = fold(journal.events)
    assert list(state.series("atlas", "loss").x) == list(range(1, 11))
    assert len(state.superseded("atlas", "loss")[0]) == 30


def test_the_engines_reason_and_the_supervisors_exit_are_both_kept() -> None:
    for flip in (False, True):
        journal = journals.failed()
        stage = fold(sorted(journal.events, key=lambda e: e.w, reverse=flip)).stage("atlas")
        assert stage is not None
        assert [(a.reason, a.exit, a.detail) for a in stage.attempts] == [("guard", 1, "loss is not a number")] * 2
        assert stage.state == "failed"
        assert stage.reason == "guard nonfinite tripped twice"


@pytest.mark.parametrize("engine_reason", ["guard", "unknown", "succeeded"])
@pytest.mark.parametrize("engine_detail", ["loss is not a number", ""])
def test_the_order_of_the_two_records_of_an_end_does_not_matter(engine_reason: str, engine_detail: str) -> None:
    def described(*, supervisor_t: float) -> list[tuple[object, ...]]:
        journal = journals.begun()
        journals.training(journal, last=4)
        accounts = {
            "e": AttemptEnded(stage="atlas", attempt=1, reason=EndReason(engine_reason), detail=engine_detail),
            "sup": AttemptEnded(stage="atlas", attempt=1, reason=EndReason.KILLED, exit=-9, detail="SIGKILL"),
        }
        writer = next(event.w for event in journal.events if isinstance(event, Step))
        numbers = {w: 1 + max(event.seq for event in journal.events if event.w == w) for w in ("sup", writer)}
        stamp = {"e": (writer, 5e9), "sup": ("sup", supervisor_t)}
        ends = [
            msgspec.structs.replace(event, w=stamp[side][0], t=stamp[side][1], seq=numbers[stamp[side][0]])
            for side, event in accounts.items()
        ]
        stage = fold([*journal.events, *ends]).stage("atlas")
        assert stage is not None
        return [(a.reason, a.exit, a.detail) for a in stage.attempts]

    assert described(supervisor_t=5e9 - 1) == described(supervisor_t=5e9 + 1)


def test_a_late_fact_is_put_in_its_place() -> None:
    events = journals.failed().events
    facts = [e for e in events if isinstance(e, AttemptStarted | CheckpointRemoved | AttemptEnded | StageFailed)]
    assert facts
    for fact in facts:
        after = [e for e in events if e.w == fact.w and e.seq > fact.seq]
        late = [e for e in events if e is not fact]
        late.insert(late.index(after[2]) + 1 if len(after) > 2 else len(late), fact)
        state = fold(late)
        assert state.missing == 0
        assert views(state) == views(fold(events)), type(fact).__name__
        assert state == fold(events)
        assert not state.apply(fact), "and counts once"


def test_a_killed_engine_has_only_the_supervisors_account() -> None:
    journal = journals.begun()
    journals.training(journal, last=10)
    journal.say(
        "sup",
        AttemptEnded(stage="atlas", attempt=1, reason=EndReason.KILLED, exit=-9, detail="SIGKILL, sender unknown"),
    )
    stage = fold(journal.events).stage("atlas")
    assert stage is not None
    assert (stage.state, stage.attempts[0].reason, stage.attempts[0].exit) == ("failed", "killed", -9)


def test_success_stands_whatever_the_exit() -> None:
    journal = journals.begun()
    journals.short_stage(journal, "questions", "prepare", "files", 10)
    journal.say("sup", AttemptEnded(stage="questions", attempt=1, reason=EndReason.DIED, exit=-6), 1.0)
    stage = fold(journal.events).stage("questions")
    assert stage is not None
    assert stage.state == "succeeded"
    assert stage.attempts[0].exit == -6


def test_checkpoints_are_those_committed_and_not_removed() -> None:
    journal = journals.live(412)
    removed = CheckpointRemoved(stage="atlas", attempt=1, step=200, path="p", sha256=f"{200:064x}")
    journal.say("e1.atlas", removed)
    stage = fold(journal.events).stage("atlas")
    assert stage is not None
    assert [c.step for c in stage.checkpoints] == [100, 300, 400]


def test_only_attempts_since_the_operators_resume_count_toward_retries() -> None:
    journal = journals.failed()
    assert fold(journal.events).attempts_since_resume("atlas") == 2
    resumed = RunStarted(run="r", recipe="x", reason=StartReason.RESUME, stages=journals.STAGES, kinds=journals.KINDS)
    journal.say("sup", resumed, 60.0)
    assert fold(journal.events).attempts_since_resume("atlas") == 0
    journals.training(journal, attempt=3, first=601, last=605, resumed=ResumedFrom(attempt=2, step=600, sha256="x"))
    journal.say("sup", msgspec.structs.replace(resumed, reason="adopt"), 1.0)
    state = fold(journal.events)
    assert state.attempts_since_resume("atlas") == 1
    assert list(state.series("atlas", "loss").x) == list(range(1, 606))


def test_a_finished_stage_that_is_skipped_at_resume_stays_succeeded() -> None:
    journal = journals.finished()
    journal.say(
        "sup",
        RunStarted(run="r", recipe="x", reason=StartReason.RESUME, stages=journals.STAGES, kinds=journals.KINDS),
        60.0,
    )
    journal.say("sup", StageSkipped(stage="questions", reason="already done"))
    journal.say("sup", StageSkipped(stage="gguf", reason="not asked for"))
    state = fold(journal.events)
    assert [s.state for s in state.stages] == ["succeeded"] * 4


def test_redoing_a_stage_makes_it_pending_again() -> None:
    journal = journals.finished()
    again = RunStarted(
        run="r",
        recipe="x",
        reason=StartReason.RESUME,
        stages=journals.STAGES,
        kinds=journals.KINDS,
        redo=["atlas", "gguf"],
    )
    journal.say("sup", again, 60.0)
    assert [s.state for s in fold(journal.events).stages] == ["succeeded", "succeeded", "pending", "pending"]


def test_a_refusing_gate_makes_the_stage_refused() -> None:
    journal = journals.live(20)
    journal.say("sup", StageFailed(stage="atlas", reason="loss < 0.4", refused=True), 1.0)
    journal.say("sup", RunEnded(state=RunStatus.REFUSED), 1.0)
    state = fold(journal.events)
    assert state.state == "refused"
    assert [s.state for s in state.stages][2] == "refused"


def test_pause_holds_until_a_later_step_or_continue() -> None:
    journal = journals.live(20)
    journal.say(
        "e1.atlas", ControlApplied(request="pause", by="operator", effect="paused", step=20, stage="atlas"), 1.0
    )
    assert fold(journal.events).state == "paused"
    journal.say(
        "e1.atlas", ControlApplied(request="continue", by="operator", effect="continued", step=20, stage="atlas"), 1.0
    )
    assert fold(journal.events).state == "running"


def test_a_stage_that_ignores_a_pause_is_not_paused() -> None:
    journal = journals.merging()
    effect = "ignored: a merge stage has nothing to pause"
    journal.say(
        "e1.base-merged", ControlApplied(request="pause", by="operator", effect=effect, stage="base-merged"), 1.0
    )
    assert fold(journal.events).state == "running"


def test_pause_by_phase_ends_with_the_next_step() -> None:
    journal = journals.live(20)
    state = RunState()
    journal.say("e1.atlas", Phase(stage="atlas", attempt=1, name="paused"), 1.0)
    state.apply_all(journal.events)
    assert state.state == "paused"
    step = next(e for e in reversed(journal.events) if isinstance(e, Step))
    journal.say("e1.atlas", msgspec.structs.replace(step, step=21), 1.0)
    state.apply_all(journal.events)
    assert state.state == "running"


def test_a_paused_engine_that_says_so_for_a_night_takes_one_line_of_the_log() -> None:
    journal = journals.live(20)
    for _ in range(3000):
        journal.say("e1.atlas", Phase(stage="atlas", attempt=1, name="paused"), 10.0)
    lines = [line.text for line in fold(journal.events).log()]
    assert lines.count("atlas: paused") == 1
    assert any("attempt 1 started" in line for line in lines)


def test_time_left_comes_from_recent_steps_or_the_rate_of_progress() -> None:
    training = fold(journals.live(412).events).stage("atlas")
    assert training is not None
    left = stage_time_left(training)
    assert left is not None
    assert left.seconds == pytest.approx(408 * 4.0, rel=0.03)
    merging = fold(journals.merging().events).stage("base-merged")
    assert merging is not None
    left = stage_time_left(merging)
    assert left is not None
    assert left.seconds == pytest.approx((291 - 120) / 12 * 2.0, rel=0.05)


def test_missing_records_and_gaps_are_counted() -> None:
    journal = journals.live(20)
    journal.say("e1.atlas", Gap(lost=7, reason="No space left on device"))
    state = fold([e for e in journal.events if not (e.w == "e1.atlas" and 10 <= e.seq < 13)])
    assert state.missing == 3
    assert state.gaps[0].lost == 7


def test_a_flood_of_warnings_is_bounded_and_the_newest_are_kept() -> None:
    journal = journals.begun()
    for number in range(5000):
        journal.say("e9", Warned(message=f"w{number}"), 0.01)
    lines = fold(journal.events).log(limit=10)
    assert [line.text for line in lines] == [f"w{n}" for n in range(4990, 5000)]
    assert {line.level for line in lines} == {"warn"}
    assert len(fold(journal.events).log()) < 2100


def test_numbers_are_those_of_the_journal() -> None:
    events = journals.live(412).events
    state = fold(events)
    steps = [e for e in events if isinstance(e, Step)]
    for name in ("loss", "learning_rate", "grad_norm", "step_s"):
        assert list(state.series("atlas", name).y) == [getattr(s, name) for s in steps]
    rates = state.series("atlas", "tokens_per_second")
    assert list(rates.y) == [pytest.approx(8192 / s.step_s) for s in steps]


def test_a_null_is_not_a_point_and_a_nan_is_a_gap() -> None:
    journal = journals.begun()
    journal.say("e", AttemptStarted(stage="atlas", kind="finetune", attempt=1, total_steps=3))
    for step, norm in ((1, 1.0), (2, None), (3, math.nan)):
        journal.say(
            "e",
            Step(
                stage="atlas",
                attempt=1,
                step=step,
                epoch=0.0,
                loss=1.0,
                learning_rate=1e-4,
                grad_norm=norm,
                tokens=1,
                loss_tokens=1,
                step_s=1.0,
            ),
        )
    series = fold(journal.events).series("atlas", "grad_norm")
    assert [series.is_absent(i) for i in range(3)] == [False, True, False]
    assert list(series.bad) == [2]


def test_a_clock_that_jumps_back_does_not_reorder_a_writer() -> None:
    journal = Journal()
    journal.say("sup", RunStarted(run="r", recipe="x", reason=StartReason.LAUNCH, stages=["a"], kinds=["fake"]))
    journal.say("sup", StageStarted(stage="a", kind="fake"))
    journal.say("sup", StageSucceeded(stage="a", attempt=1, fingerprint="f", manifest_sha256="s"), -86_400.0)
    journal.say("sup", RunEnded(state=RunStatus.SUCCEEDED))
    state = fold(journal.events)
    assert state.state == "succeeded"
    assert state.stages[0].state == "succeeded"


def test_a_run_that_ended_in_a_state_of_a_newer_version_is_shown_with_it() -> None:
    header = '{"v":1,"w":"s1","seq":%d,"t":1.0,"m":1.0,'
    started = '"k":"run_started","run":"r","recipe":"r","reason":"migrate","stages":["a"],"kinds":["distill"]}'
    lines = [header % 0 + started, header % 1 + '"k":"run_ended","state":"evicted","reason":"the node is drained"}']
    state = fold(decode_record(line.encode()) for line in lines)
    assert (state.state, state.reason, [stage.kind for stage in state.stages]) == (
        "evicted",
        "the node is drained",
        ["distill"],
    )
    assert state.state.has_ended, "run_ended is an end, whatever its word"
    assert not state.state.has_failed
    assert not state.state.is_live
    assert exit_code_of(state.state) == ExitCode.FAILED, "an end that is not known is no success"


def test_work_whose_result_does_not_exist_is_never_shown_as_done() -> None:
    started = RunStarted(run="r", recipe="x", reason=StartReason.LAUNCH, stages=["a"], kinds=["evaluate"])
    journal = Journal()
    journal.say("sup", started)
    journal.say("sup", AttemptStarted(stage="a", attempt=1, kind="evaluate", pid=7))
    journal.say("eng", Progress(stage="a", attempt=1, done=20, total=20, unit="answers"))
    journal.say("sup", AttemptEnded(stage="a", attempt=1, reason=EndReason.ERROR, exit=1))
    journal.say("sup", StageFailed(stage="a", reason="no room"))
    journal.say("sup", RunEnded(state=RunStatus.FAILED))
    state = fold(journal.events)
    assert state.stages[0].state == StageStatus.FAILED
    assert (percent(state.stages[0].fraction), percent(state.progress)) == ("99%", "99%")


def test_the_progress_of_a_run_counts_only_the_stages_that_the_operator_selected() -> None:
    names = ["a", "b", "c", "d"]
    started = RunStarted(run="r", recipe="x", reason=StartReason.LAUNCH, stages=names, kinds=["fake"] * 4, only=["a"])
    journal = Journal()
    journal.say("sup", started)
    assert fold(journal.events).progress == 0.0
    journal.say("sup", StageSucceeded(stage="a", attempt=1, fingerprint="f", manifest_sha256="m"))
    journal.say("sup", RunEnded(state=RunStatus.SUCCEEDED))
    assert fold(journal.events).progress == 1.0
    journal.say("sup", msgspec.structs.replace(started, reason=StartReason.RESUME, only=[]))
    assert fold(journal.events).progress == 0.25, "a resume of all stages"
