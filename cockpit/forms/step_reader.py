"""What the steps of a run's training read: which attempt did each step, and a helper process that finds its rows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import msgspec

from cockpit.forms.step_inputs import changed_since, place_of
from cockpit.planning.data_look import helper_environment
from engines.events.steps import Step
from engines.journal import read_journal
from engines.look.step_answer import Difference, Segment, StepRow, StepsAnswer, StepsRequest
from engines.run_dir.paths import RunDir
from engines.stage_file import first_start_of, read_stage_file
from recipes.problems import OperatorError, printable


def rows_of_step(run: RunDir, stage: str, step: int) -> list[StepRow]:
    """The documents or rows that a step of a stage read, in the order of its micro-batches.

    Raises:
        OperatorError: the stage has not done the step, or its data is not there any more.
    """
    segments = segments_of(run, stage)
    return _ask(StepsRequest(segments=segments, step=step), _python(segments)).rows


def first_difference(one: Sequence[Segment], other: Sequence[Segment]) -> Difference | None:
    """Where two trainings read other tokens first; None if they read the same.

    Raises:
        OperatorError: the data of one is not there any more.
    """
    return _ask(StepsRequest(segments=list(one), other=list(other)), _python(one)).difference


def trained_stages(run: RunDir) -> list[str]:
    """The stages of a run that have done steps, in their order."""
    return list(dict.fromkeys(event.stage for event in read_journal(run.journal) if isinstance(event, Step)))


def changed_inputs(run: RunDir, stage: str) -> list[str]:
    """What a training read that has changed since: then its steps, found again, are those of the present files."""
    return changed_since(run, stage, list(dict.fromkeys(attempt for attempt, _, _ in _done(run, stage))))


def segments_of(run: RunDir, stage: str) -> list[Segment]:
    """The steps of a stage by the attempt that did them last: a resume does some of them again.

    Raises:
        OperatorError: the stage has done no steps.
    """
    return [_segment(run, stage, attempt, first, last) for attempt, first, last in _done(run, stage)]


def _done(run: RunDir, stage: str) -> list[tuple[int, int, int]]:
    """Attempt, first and last step of each part of a training."""
    by_step = {
        event.step: event.attempt
        for event in read_journal(run.journal)
        if isinstance(event, Step) and event.stage == stage
    }
    if not by_step:
        raise OperatorError(f"{run.id}: stage {printable(stage)} has done no steps", f"see: cockpit show {run.id}")
    found: list[tuple[int, int, int]] = []
    for step in sorted(by_step):
        attempt = by_step[step]
        if found and found[-1][0] == attempt and found[-1][2] == step - 1:
            found[-1] = (attempt, found[-1][1], step)
        else:
            found.append((attempt, step, step))
    return found


def _segment(run: RunDir, stage: str, attempt: int, first: int, last: int) -> Segment:
    given = read_stage_file(run.stage_json(stage, attempt))
    data = place_of(run, given.inputs.get("data"))
    if data is None:
        raise OperatorError(f"{run.id}: the data of {stage} is not on this machine", "restore it, or name another run")
    return Segment(
        stage={**given.stage, **given.adjusted},
        data=data,
        model=place_of(run, given.inputs.get("model")),
        first_start=first_start_of(run, stage),
        first=first,
        last=last,
    )


def _python(segments: Sequence[Segment]) -> str:
    return str(segments[0].stage.get("python") or sys.executable)


def _ask(request: StepsRequest, python: str) -> StepsAnswer:
    try:
        done = subprocess.run(
            [python, "-m", "engines.look", "steps"],
            input=msgspec.json.encode(request),
            capture_output=True,
            env=helper_environment(),
            check=False,
        )
    except OSError as error:
        raise OperatorError(f"python — {printable(python, 200)} cannot be started: {error}") from error
    if not done.stdout:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        why = printable(lines[-1], 300) if lines else "the helper ended without an answer"
        raise OperatorError(f"the rows of the step cannot be read: {why}")
    answer = msgspec.json.decode(done.stdout, type=StepsAnswer)
    if answer.error:
        raise OperatorError(answer.error, answer.hint)
    return answer
