"""Why a run ended: the sentences of its journal in full, and the attempt whose console.log has the rest.

The sentences quote data; they are not safe to print before `safe_text`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cockpit.runs.stage_view import StageView
from cockpit.runs.state import RunState
from engines.words import RunStatus, StageStatus


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
    return Ending(sentences, stage.name, attempt.attempt if attempt is not None else None)


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
