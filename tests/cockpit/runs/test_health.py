"""The health of a run, from recorded journals: only the engine's own progress counts, on any machine, at any clock."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cockpit.runs.health import STALLED_S, Clock, Health, Processes, health, process_states
from cockpit.runs.state import fold
from engines.events.attempts import AttemptEnded, EngineRecovered, EngineStalled, Phase, Progress
from engines.events.event import Event
from engines.events.kinds import AnyEvent
from engines.events.machine import Device, MachineSampled
from engines.events.runs import ControlApplied, StageStarted
from engines.events.steps import CheckpointCommitted, CheckpointRemoved, Step
from engines.events.writers import Warned
from engines.identity import Identity
from engines.words import EndReason, HealthWord, RunStatus
from tests.tui import journals
from tests.tui.journals import T0, Journal

ENGINE = "e1.atlas"


def at(
    journal: Journal,
    after_s: float = 0.0,
    *,
    waited_s: float = 0.0,
    here: bool = True,
    engine: str = "",
    supervisor: str = "",
    sampler: str = "",
    elsewhere: Path | None = None,
    started: str = "",
) -> Health:
    """The health some seconds after the journal's newest record, on the run's machine or on another one."""
    state = fold(journal.events)
    clock = Clock("b", journal.t + after_s - T0, waited_s) if here else Clock("other", 5.0, waited_s)
    seen = Processes(engine, supervisor, sampler, elsewhere=elsewhere, started=started)
    return health(state, state.state, clock, seen)


def training(step_s: float = 4.0, steps: int = 64) -> Journal:
    """A training whose steps take `step_s` seconds."""
    journal = journals.live(40)
    newest = next(event for event in reversed(journal.events) if isinstance(event, Step))
    for number in range(41, 41 + steps):
        event = msgspec.structs.replace(newest, step=number, step_s=step_s, w="", seq=-1, t=0.0, m=0.0, v=0)
        journal.say(ENGINE, event, step_s)
    return journal


def sampled(journal: Journal, seconds: float, every_s: float = 5.0) -> Journal:
    """The sampler goes on for so many seconds while the engine writes nothing."""
    for _ in range(int(seconds / every_s)):
        journal.say("samp", journals.machine(journal.t), every_s)
    return journal


def test_records_of_other_processes_are_no_progress_of_the_engine() -> None:
    journal = sampled(training(0.2), 180)
    journal.say("sup", Warned(message="a warning of the supervisor"))
    found = at(journal)
    assert (found.word, found.sentence) == ("stalled", "no step for 3m, usually 0.20s")
    assert found.silence_s == pytest.approx(180)


def test_an_answer_to_a_request_and_a_warning_are_no_progress() -> None:
    journal = training(0.2)
    for _ in range(20):
        journal.say(ENGINE, Warned(message="the disk is slow", stage="atlas", attempt=1), 5)
        journal.say(ENGINE, ControlApplied(request="pause", by="ada", effect="ignored", stage="atlas"), 5)
    assert at(journal).word == "stalled"


def test_the_removal_of_a_checkpoint_of_an_earlier_attempt_does_not_hide_the_steps_before_it() -> None:
    journal = training(4.0)
    stage = next(event.stage for event in reversed(journal.events) if isinstance(event, Step))
    gone = CheckpointRemoved(stage=stage, attempt=0, step=5, path=f"stages/{stage}/0/checkpoints/step-5", sha256="")
    journal.say(ENGINE, gone, 0.1)
    found = at(journal, 1.0)
    assert found.word == "running"
    assert found.silence_s == pytest.approx(1.1)


@pytest.mark.parametrize("here", [True, False])
def test_running_then_slow_then_stalled_by_its_own_pace(here: bool) -> None:
    words = [at(training(1.0), s if here else 0, waited_s=s, here=here).word for s in (0, 9, 11, 59, 61)]
    assert words == ["running", "running", "slow", "slow", "stalled"]
    words = [at(training(30.0), s if here else 0, waited_s=s, here=here).word for s in (0, 149, 151, 599, 601)]
    assert words == ["running", "running", "slow", "slow", "stalled"], "a slow model has more time"


def test_a_reader_on_another_machine_goes_by_the_newest_record_of_the_run_s_machine() -> None:
    journal = sampled(training(0.2), 100)
    assert at(journal, here=False).word == "stalled"
    assert at(journal, here=False).silence_s == pytest.approx(100)


@given(shift=st.sampled_from([-86_400.0, -3600.0, -20.0, 20.0, 3600.0, 86_400.0]), which=st.sampled_from("ems"))
def test_a_wall_clock_that_is_set_changes_nothing(shift: float, which: str) -> None:
    def shifted(events: Iterable[AnyEvent]) -> list[AnyEvent]:
        return [msgspec.structs.replace(e, t=e.t + shift) if e.w.startswith(which) else e for e in events]

    for journal in (training(1.0), sampled(training(1.0), 100)):
        for real in (RunStatus.RUNNING,):
            clock = Clock("b", journal.t - T0)
            plain = health(fold(journal.events), real, clock)
            moved = health(fold(shifted(journal.events)), real, clock)
            assert (plain.word, plain.sentence, plain.silence_s) == (moved.word, moved.sentence, moved.silence_s)


def test_steps_that_take_three_times_as_long_as_before_are_slow() -> None:
    journal = training(1.0)
    newest = next(event for event in reversed(journal.events) if isinstance(event, Step))
    for number in range(105, 115):
        journal.say(ENGINE, bare(msgspec.structs.replace(newest, step=number, step_s=9.0)), 9.0)
    found = at(journal)
    assert (found.word, found.sentence) == ("slow", "a step takes 9s, usually 1s")


def bare(event: Event) -> Event:
    return msgspec.structs.replace(event, v=0, w="", seq=-1, t=0.0, m=0.0)


def test_an_engine_that_waits_for_data_is_never_called_hung() -> None:
    journal = training(0.2)
    journal.say(ENGINE, Phase(stage="atlas", attempt=1, name="waiting for data"), 5)
    found = at(journal, 4000)
    assert (found.word, found.sentence) == ("waiting for data", "no data for 1h06m, usually 0.20s")


@pytest.mark.parametrize("name", ["saving", "evaluating", "importing", "loading", "tokenizing"])
def test_a_declared_phase_has_its_own_word_and_patience(name: str) -> None:
    journal = training(0.2)
    journal.say(ENGINE, Phase(stage="atlas", attempt=1, name=name))
    assert [at(journal, s).word for s in (0, 100, 1799, 1801)] == [name, name, name, "stalled"]


def test_a_phase_that_uses_cpu_may_take_as_long_as_it_takes() -> None:
    journal = training(0.2)
    journal.say(ENGINE, Phase(stage="atlas", attempt=1, name="writing F16"))
    sample = msgspec.structs.replace(journals.machine(0.0), engine_cpu_percent=20.0, cores=4, stage="atlas")
    for _ in range(400):
        journal.say("samp", sample, 10)
    assert at(journal).word == "writing F16"
    journal.say("samp", msgspec.structs.replace(sample, engine_cpu_percent=0.0), 10)
    assert at(journal).word == "stalled"


def test_a_phase_between_two_steps_ends_with_the_next_record() -> None:
    journal = training(0.2)
    journal.say(ENGINE, Phase(stage="atlas", attempt=1, name="saving"))
    saved = CheckpointCommitted(stage="atlas", attempt=1, step=60, path="p", sha256="s", healthy=True)
    journal.say(ENGINE, saved, 30)
    assert at(journal).word == "running"
    assert at(journal, STALLED_S + 1).word == "stalled"


def test_reports_of_progress_have_the_pace_of_reports() -> None:
    journal = journals.merging()
    assert at(journal).word == "writing tensors"
    assert at(journal, 290).word == "writing tensors"
    found = at(journal, 330)
    assert found.word == "stalled"
    assert found.sentence.startswith("writing tensors: no progress for 5m")


def test_work_whose_progress_is_complete_gets_the_patience_of_a_phase() -> None:
    journal = journals.merging()
    newest = next(event for event in reversed(journal.events) if isinstance(event, Progress))
    journal.say(newest.w, bare(msgspec.structs.replace(newest, done=newest.total)))
    assert at(journal, 1000).word == "writing tensors"


def test_the_supervisor_s_record_says_whether_a_stalled_engine_is_hung_and_recovery_ends_it() -> None:
    journal = training(0.2)
    stalled = EngineStalled(stage="atlas", attempt=1, silence_s=60.0, usual_step_s=0.2, cpu_s=0.0)
    journal.say("sup", stalled, 60)
    assert at(journal).word == "hung"
    assert at(journal).sentence == "no step for 1m, usually 0.20s; it uses no CPU"
    busy = training(0.2)
    busy.say("sup", msgspec.structs.replace(stalled, cpu_s=55.0), 60)
    assert at(busy).word == "stalled"
    journal.say("sup", EngineRecovered(stage="atlas", attempt=1, silence_s=70.0), 10)
    newest = next(event for event in reversed(journal.events) if isinstance(event, Step))
    journal.say(ENGINE, bare(msgspec.structs.replace(newest, step=99)))
    assert at(journal).word == "running"


def test_a_step_after_the_supervisor_s_record_outweighs_it() -> None:
    journal = training(0.2)
    journal.say("sup", EngineStalled(stage="atlas", attempt=1, silence_s=60.0, cpu_s=0.0), 60)
    newest = next(event for event in reversed(journal.events) if isinstance(event, Step))
    journal.say(ENGINE, bare(msgspec.structs.replace(newest, step=99)), 1)
    assert at(journal).word == "running"


def test_an_engine_that_ended_while_its_supervisor_is_stopped_is_not_called_running() -> None:
    found = at(training(), 7.0, engine="Z", supervisor="T")
    assert (found.word, found.sentence) == ("engine ended", "nothing has recorded how; no progress for 7s")
    assert found.needs_attention
    found = at(training(), 7.0, engine="Z", supervisor="S")
    assert found.word == "running", "a supervisor that runs records the end at once"


def test_an_engine_that_has_ended_is_seen_only_where_its_supervisor_is_seen() -> None:
    gone = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    known = Identity.of(gone.pid)
    assert known is not None
    assert gone.stdin is not None
    gone.stdin.close()
    os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)  # a zombie, as a killed engine of a stopped supervisor is
    journal = training()
    state = fold(journal.events)
    writer = next(writer for writer in state.writers if writer.name == ENGINE)
    assert writer.opened is not None
    named = {"pid": known.pid, "start_time": known.start_time, "boot_id": known.boot_id}
    writer.opened = msgspec.structs.replace(writer.opened, **named)
    assert process_states(state, "T", lambda _engine: False, lambda _sampler: False).engine == "Z"
    assert process_states(state, "", lambda _engine: False, lambda _sampler: False).engine == ""
    writer.opened = msgspec.structs.replace(writer.opened, boot_id="of another machine")
    assert process_states(state, "T", lambda _engine: False, lambda _sampler: False).engine == ""
    gone.wait()


def test_an_engine_whose_monotonic_clock_is_ahead_is_judged_by_the_newest_record_of_the_run() -> None:
    journal = training(0.2)
    state = fold(journal.events)
    found = health(state, state.state, Clock("b", journal.t - T0 - 864000, 90.0), Processes())
    assert (found.word, found.silence_s) == ("stalled", 90.0)


def test_a_stopped_process_is_said_as_such() -> None:
    found = at(training(0.2), 7, engine="T")
    assert (found.word, found.sentence) == ("suspended", "the process is stopped (SIGSTOP); no progress for 7s")
    assert found.needs_attention
    found = at(training(0.2), 1, supervisor="T")
    assert found.word == "running"
    assert "the supervisor is stopped (SIGSTOP)" in found.line
    found = at(training(0.2), 1, sampler="T")
    assert "the sampler is stopped (SIGSTOP)" in found.line
    assert found.machine_is_old


def test_while_the_supervisor_is_stopped_an_engine_that_recorded_its_end_is_not_called_starting() -> None:
    journal = training(0.2)
    journal.say(ENGINE, AttemptEnded(stage="atlas", attempt=1, reason=EndReason.STOPPED))
    found = at(journal, 40, supervisor="T")
    assert found.word == "engine ended"
    assert found.sentence == "it recorded its end, and nothing has happened since"
    assert at(journal, 1).word == "starting", "a supervisor that runs goes on at once"


def test_a_stopped_torchrun_is_named_while_its_processes_train_and_after_they_have_ended() -> None:
    journal = training(0.2)
    found = at(journal, 1, engine="S", started="T")
    assert found.word == "running"
    assert "torchrun is stopped (SIGSTOP)" in found.line
    assert "torchrun" not in at(journal, 1, engine="T", started="T").line, "an engine that is one process"
    journal.say(ENGINE, AttemptEnded(stage="atlas", attempt=1, reason=EndReason.SUCCEEDED))
    found = at(journal, 40, started="T")
    assert (found.word, found.needs_attention) == ("suspended", True)
    assert at(journal, 40, started="S").word == "starting"


def test_the_load_is_not_told_while_the_sampler_is_stopped() -> None:
    journal = training(0.2)
    busy = msgspec.structs.replace(journals.machine(journal.t), cpu_percent=100.0, engine_cpu_percent=1.0, cores=2)
    journal.say("samp", busy)
    assert "other processes use 2 of 2 cores" in at(journal, 1).line
    assert "other processes" not in at(journal, 1, sampler="T").line


def test_a_run_whose_processes_work_in_another_folder_says_so(tmp_path: Path) -> None:
    gone = tmp_path / "old"
    assert f"save nothing and take no request until it is back at {gone}" in at(training(0.2), 1, elsewhere=gone).line
    assert f"its processes work in {tmp_path}, of which this is a copy" in at(training(0.2), 1, elsewhere=tmp_path).line


def test_on_a_full_disk_silence_is_not_called_a_stall() -> None:
    journal = training(0.2)
    state = fold(journal.events)
    found = health(state, state.state, Clock("b", journal.t + 300 - T0), Processes(disk_is_full=True))
    assert (found.word, found.sentence) == ("unknown", "no record for 5m, because the run's disk is full")
    assert found.needs_attention
    found = health(state, state.state, Clock("b", journal.t + 1 - T0), Processes(disk_is_full=True))
    assert found.word == "running"


def test_machine_figures_are_old_when_no_sample_comes() -> None:
    journal = sampled(training(0.2), 20)
    found = at(journal, 29)
    assert not found.machine_is_old
    found = at(journal, 45)
    assert found.machine_is_old
    assert "no machine sample for 45s" in found.concerns


def test_cores_that_other_processes_use_are_named() -> None:
    journal = training(0.2)
    sample = MachineSampled(
        host="spark-01", cpu_percent=99.0, ram_total_bytes=1, ram_available_bytes=1, engine_rss_bytes=1, unified=False,
        devices=[], engine_cpu_percent=9.0, cores=4,
    )  # fmt: skip
    journal.say("samp", sample)
    assert "other processes use 3.6 of 4 cores" in at(journal).concerns
    journal.say("samp", msgspec.structs.replace(sample, engine_cpu_percent=97.0))
    assert at(journal).concerns == ()


def test_processes_that_compute_on_the_engine_s_card_are_named() -> None:
    journal = training(0.2)
    cards = [Device(id=2, name="A"), Device(id=3, name="A", other_processes=1)]
    sample = MachineSampled(
        host="spark-01", cpu_percent=9.0, ram_total_bytes=1, ram_available_bytes=1, engine_rss_bytes=1, unified=False,
        devices=cards,
    )  # fmt: skip
    journal.say("samp", sample)
    assert at(journal).concerns == ("another process computes on the engine's gpu3",)
    journal.say("samp", msgspec.structs.replace(sample, devices=[Device(id=3, name="A", other_processes=2)]))
    assert at(journal).concerns == ("2 other processes compute on the engine's gpu3",)
    journal.say("samp", msgspec.structs.replace(sample, devices=[Device(id=3, name="A", other_processes=0)]))
    assert at(journal).concerns == ()


def test_an_engine_that_writes_nothing_is_starting_and_then_stalled() -> None:
    journal = journals.begun()
    journal.say("sup", StageStarted(stage="base", kind="pretrain"))
    first = journal.events
    base = journal.t - T0
    state = fold(first)
    assert health(state, state.state, Clock("b", base + 1)).word == "starting"
    found = health(state, state.state, Clock("b", base + 200))
    assert (found.word, found.sentence) == ("stalled", "the engine has written nothing for 3m")


def test_a_run_that_is_not_running_has_its_state_as_its_health() -> None:
    state = fold(journals.finished().events)
    assert health(state, RunStatus.SUCCEEDED, Clock()).word == "succeeded"
    assert health(state, RunStatus.LOST, Clock()).word == "lost"
    assert not HealthWord("succeeded").needs_attention


def test_the_replay_of_a_stall_says_that_it_stalled() -> None:
    journal = sampled(training(0.2), 100)
    state = fold(journal.events)
    assert health(state, state.state, Clock()).word == "stalled"
