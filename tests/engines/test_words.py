from __future__ import annotations

import ast
import copy
import json
import pickle
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

import pytest

from engines import words
from engines.events.attempts import AttemptEnded
from engines.events.event import Event
from engines.events.records import decode_record, encode_record
from engines.events.results import GateChecked
from engines.events.runs import RunEnded, RunStarted
from engines.events.writers import WriterOpened
from engines.words import EndReason, ExitCode, RunStatus, StageStatus, Verb, WriterRole, exit_code_of

OPEN = [words.RunStatus, words.StageStatus, words.EndReason, words.StartReason, words.WriterRole, words.GateResult]
ROOT = Path(__file__).resolve().parents[2]


def record(kind: str, **fields: object) -> bytes:
    return json.dumps({"v": 1, "w": "s1", "seq": 0, "t": 1.0, "m": 1.0, "k": kind, **fields}).encode()


@pytest.mark.parametrize("word", OPEN)
def test_a_word_of_a_newer_version_keeps_its_text_and_is_not_a_member(word: type[StrEnum]) -> None:
    newer = word("evicted")
    assert newer == "evicted"
    assert f"{newer} {newer!r} {json.dumps(newer)}" == "evicted 'evicted' \"evicted\""
    assert newer not in list(word)
    assert copy.deepcopy(newer) == pickle.loads(pickle.dumps(newer)) == newer
    assert "evicted" not in [member.value for member in word], "looking it up adds no member"


@pytest.mark.parametrize("word", OPEN)
def test_nothing_but_text_is_a_word(word: Callable[[object], StrEnum]) -> None:
    for value in (5, None, b"failed"):
        with pytest.raises(ValueError, match="not a valid"):
            word(value)


def test_records_with_words_of_a_newer_version_are_read_and_written_again_as_they_were() -> None:
    lines = [
        record("run_ended", state="evicted"),
        record("attempt_ended", stage="base", attempt=1, reason="preempted"),
        record("run_started", run="r", recipe="r", reason="migrate", stages=["base"], kinds=["fake"]),
        record("writer_opened", role="uploader", host="h", boot_id="b", pid=9, start_time=1),
        record("gate_checked", stage="base", metric="loss", op="<", limit=1.0, value=2.0, result="waived"),
    ]
    kinds: list[type[Event]] = [RunEnded, AttemptEnded, RunStarted, WriterOpened, GateChecked]
    for line, kind in zip(lines, kinds, strict=True):
        event = decode_record(line)
        assert isinstance(event, kind)
        again = encode_record(event, writer="s1", seq=0, t=1.0, m=1.0)
        assert json.loads(again) == json.loads(line)


def test_every_state_of_a_run_has_ended_or_is_live_or_is_lost() -> None:
    for status in RunStatus:
        assert [status.has_ended, status.is_live, status == RunStatus.LOST].count(True) == 1, status
    assert RunStatus("evicted").has_ended  # a newer version ended the run with this word
    assert not RunStatus("evicted").is_live


def test_what_can_be_resumed_is_not_live_and_has_not_succeeded() -> None:
    assert [status for status in RunStatus if not status.is_live and not status.can_resume] == [RunStatus.SUCCEEDED]
    assert not any(status.is_live and status.can_resume for status in RunStatus)


def test_every_end_of_a_run_has_its_own_exit_code() -> None:
    ended = [status for status in RunStatus if status.has_ended]
    assert sorted(exit_code_of(status) for status in ended) == [0, 1, 3, 130]
    with pytest.raises(ValueError, match="has not ended"):
        exit_code_of(RunStatus.RUNNING)
    assert [int(code) for code in ExitCode] == [0, 1, 2, 3, 130]


@pytest.mark.parametrize("word", [RunStatus, StageStatus])
def test_what_failed_has_ended_without_an_operator(word: type[RunStatus | StageStatus]) -> None:
    assert [status for status in word if status.has_failed] == ["failed", "refused"]
    assert not any(status.has_failed and not status.has_ended for status in word)
    assert not word("evicted").has_failed


def test_stages_that_are_done_are_those_whose_output_may_be_used() -> None:
    assert [status for status in StageStatus if status.is_done] == [StageStatus.SUCCEEDED, StageStatus.SKIPPED]
    assert [status for status in StageStatus if not status.has_ended] == [
        StageStatus.PENDING, StageStatus.RUNNING, StageStatus.SKIPPED,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("role", "exit_status", "supervisors"),
    [
        (WriterRole.SUPERVISOR, None, True),
        (WriterRole.SUPERVISOR, 1, True),
        (WriterRole.ENGINE, None, False),
        (WriterRole.ENGINE, 0, False),
        (WriterRole.UNKNOWN, -9, True),
        (WriterRole.UNKNOWN, None, False),
    ],
)
def test_the_role_or_else_the_exit_status_says_who_recorded_an_end(
    role: WriterRole, exit_status: int | None, supervisors: bool
) -> None:
    assert role.is_supervisors_record(exit_status) is supervisors


def test_a_request_s_text_begins_with_its_verb() -> None:
    assert [Verb.of(verb) for verb in Verb] == list(Verb)
    assert Verb.of("learning-rate 0.0001") is Verb.LEARNING_RATE
    assert Verb.of("") is Verb.of("  ") is Verb.of("rm -rf") is Verb.of("stops") is None
    with pytest.raises(ValueError, match="got 'rm'; allowed stop, stop-after-checkpoint"):
        Verb("rm")


def test_an_engine_records_its_own_failures() -> None:
    assert all(reason.is_from_engine for reason in EndReason if reason.is_failure_from_engine or reason.is_unspecific)
    assert [reason for reason in EndReason if not reason.is_from_engine] == [
        EndReason.OUT_OF_MEMORY, EndReason.KILLED, EndReason.DIED, EndReason.NOT_STARTED,
    ]  # fmt: skip


ALSO_ENGLISH = frozenset({
    "checkpoint", "error", "evaluate", "failed", "guard", "launch", "paused", "refused", "resume", "skipped", "stop",
    "supervisor", "unknown",
})  # fmt: skip
"""Words that are also the name of a command, a key, a log level or a colour, or a part of a sentence."""
SPELLED = {
    member.value for group in (*OPEN, Verb) for member in group if member.value and member.value not in ALSO_ENGLISH
}
KINDS = frozenset({"prepare", "pretrain", "finetune"})
"""Stage kinds whose names are neither a command nor a product."""
OTHERS_WORDS = {
    "cockpit/commands/evaluate.py: lost",  # rows that the baseline passes and the model does not
    "cockpit/talking/browsing.py: lost",
    "engines/evaluate/job.py: lost",
    "cockpit/importing/axolotl_data.py: pretrain",  # a type of Axolotl's data sets
    "engines/data/code/build_systems.py: prepare",  # a script of npm
    "engines/judging/sandbox/syscalls.py: pause",  # a system call
}


def modules() -> list[Path]:
    return [
        path for top in ("cockpit", "engines", "exporters", "recipes") for path in sorted((ROOT / top).rglob("*.py"))
    ]


def spelled_words(tree: ast.AST) -> list[str]:
    """Words of the shared vocabulary that a module spells as whole strings."""
    strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [text for text in strings if text in SPELLED or text in KINDS]


def test_words_are_spelled_in_one_module() -> None:
    """A state, reason, role, verb or kind that is spelled again elsewhere is missed by whoever adds one."""
    assert len(SPELLED) > 20
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in modules()
        for word in spelled_words(ast.parse(path.read_text()))
        if path.name != "words.py" and not (word in KINDS and path.parent == ROOT / "recipes" / "stages")
    ]
    assert set(found) == OTHERS_WORDS


@pytest.mark.parametrize("line", ['state == "running"', "emit(verb='pause')", 'kind in {"pretrain"}', 'f(x="engine")'])
def test_a_word_that_is_spelled_by_hand_is_found(line: str) -> None:
    assert spelled_words(ast.parse(line))


def test_whatever_ends_a_command_or_a_process_returns_an_exit_code() -> None:
    """Then the type check refuses a bare number."""
    ends = {
        (path.relative_to(ROOT), node.name): ast.unparse(node.returns) if node.returns else ""
        for path in modules()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and (node.name in {"main", "run_job", "open_screen"} or (node.name == "run" and path.parent.name == "commands"))
    }
    assert len(ends) > 15
    assert {where: returns for where, returns in ends.items() if returns != "ExitCode"} == {}
