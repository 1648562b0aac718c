"""Why a run ended: the sentences of its journal in full, and the end of the console.log that has the rest.

Reading console.log is bounded, and takes regular files only. Sentences and lines are data from elsewhere; they are not
safe to print before `safe_text`.
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass

from cockpit.runs.stage_view import StageView
from cockpit.runs.state import RunState
from engines.files import open_regular
from engines.run_dir.paths import RunDir
from engines.words import RunStatus, StageStatus

TAIL_BYTES = 64 * 1024
_FATAL = "Fatal Python error: "
_HEADS = ("Current thread ", "Thread ")
_MODULES = "Extension modules: "
"""A line of a crash's stack: names of libraries, in one line that is longer than the rest."""
_STAGE_NAME = re.compile(r"[A-Za-z0-9-][A-Za-z0-9._-]{0,99}")
"""A stage's name comes from the journal: one that is not a plain name cannot lead out of the run's folder."""


@dataclass(frozen=True)
class Ending:
    """The end of a run that did not succeed.

    Attributes:
        sentences: the reasons of the run, of its stage and of its attempt; none is part of another.
        stage: the stage that ended the run, if one did.
        attempt: the newest attempt of that stage.
    """

    sentences: tuple[str, ...]
    stage: str | None = None
    attempt: int | None = None
    stopped: bool = False
    """at an operator's request, or by SIGKILL: the process had no time to write a reason, so the last line of
    console.log explains nothing"""


def ending_of(state: RunState) -> Ending | None:
    """Why the run ended; None while it has not ended, and for a run that succeeded."""
    if not state.state.has_ended or state.state == RunStatus.SUCCEEDED:
        return None
    stage = _ended_stage(state)
    if stage is None:
        return Ending(_without_repeats([state.reason]))
    attempt = stage.current
    detail = attempt.detail if attempt is not None else ""
    sentences = _without_repeats([state.reason, _of_stage(stage, stage.reason), _of_stage(stage, detail)])
    number = attempt.attempt if attempt is not None else None
    killed = attempt is not None and attempt.exit == -signal.SIGKILL
    return Ending(sentences, stage.name, number, stopped=killed or state.state == RunStatus.STOPPED)


def _ended_stage(state: RunState) -> StageView | None:
    """The stage whose end ended the run."""
    for wanted in (StageStatus.FAILED, StageStatus.REFUSED, StageStatus.STOPPED):
        found = [stage for stage in state.stages if stage.state == wanted]
        if found:
            return found[-1]
    return None


def _of_stage(stage: StageView, reason: str) -> str:
    return f"{stage.name}: {reason}" if reason and not reason.startswith(stage.name) else reason


def _without_repeats(sentences: list[str]) -> tuple[str, ...]:
    """The sentences in their order, without those that another contains."""
    kept: list[str] = []
    for number, sentence in enumerate(sentences):
        bare = sentence.partition(": ")[2] or sentence
        others = [*kept, *sentences[number + 1 :]]
        if sentence and not any(sentence in other or bare in other for other in others):
            kept.append(sentence)
    return tuple(kept)


def console_tail(run: RunDir, stage: str, attempt: int, max_bytes: int = TAIL_BYTES, *, rank: int = 0) -> list[str]:
    """The last whole lines of the attempt's console.log, as a terminal would show them after carriage returns.

    Args:
        run: the run.
        stage: the stage.
        attempt: its attempt.
        max_bytes: as much of the file's end is read.
        rank: the process whose file it is.

    Raises:
        OSError: there is no such regular file, or it cannot be read.
    """
    if not _STAGE_NAME.fullmatch(stage):
        raise FileNotFoundError(f"no console.log: {stage!r} is not the name of a stage")
    path = run.rank_console(stage, attempt, rank) if rank else run.console_log(stage, attempt)
    with open_regular(path, follow=False) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - max_bytes))
        data = file.read(max_bytes)
    if size > max_bytes:
        data = data.partition(b"\n")[2]  # the first line is cut
    lines = data.decode("utf-8", "replace").split("\n")
    shown = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in lines]
    while shown and not shown[-1]:
        shown.pop()
    return shown


def last_lines(run: RunDir, ending: Ending, count: int) -> list[str]:
    """The last `count` lines that are not empty; none when there is no console.log, and after a stop."""
    if ending.stage is None or ending.attempt is None or ending.stopped:
        return []
    try:
        lines = console_tail(run, ending.stage, ending.attempt, TAIL_BYTES)
    except OSError:
        return []
    said = [line for line in lines if line.strip() and not line.startswith(_MODULES)]
    return _crash(said)[:count] or said[-count:]


def _crash(lines: list[str]) -> list[str]:
    """What Python wrote as the process crashed, innermost call first: the error and the stack of its thread, at the end
    of a text; empty without a crash, or if more was printed after it."""
    fatal = [number for number, line in enumerate(lines) if line.startswith(_FATAL)]
    if not fatal:
        return []
    stacks = lines[fatal[-1] + 1 :]
    if any(not line.startswith((*_HEADS, "  ")) for line in stacks):
        return []
    own = next((number for number, line in enumerate(stacks) if line.startswith(_HEADS[0])), 0)
    rest = next((number for number, line in enumerate(stacks) if number > own and line.startswith(_HEADS)), len(stacks))
    return [lines[fatal[-1]], *stacks[own:rest]]
