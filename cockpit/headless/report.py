"""What came of a run: the closing table, before against after, and the questions with their answers; and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cockpit.headless.file_rows import FILE_TITLES, file_rows, shown
from cockpit.runs.stage_view import AttemptView, StageView
from cockpit.runs.state import RunState
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.text.text_table import text_table
from engines.events import CheckpointCommitted, SampledText
from engines.run_dir import RunDir
from engines.words import StageStatus
from recipes.stages.registry import scores, trains

TITLES = ("stage", "kind", "time", "CPU", "loss", "held-out", "perplexity", "size")
GLYPHS = {
    StageStatus.SUCCEEDED: "✓",
    StageStatus.SKIPPED: "✓",
    StageStatus.FAILED: "✗",
    StageStatus.REFUSED: "✗",
    StageStatus.STOPPED: "■",
    StageStatus.RUNNING: "▶",
    StageStatus.PENDING: "·",
}
ANSWER_CHARACTERS = 300


def report_lines(state: RunState) -> list[str]:
    """The whole report, ready to print: every text from data is harmless."""
    if not state.stages:
        return ["nothing has happened yet"]
    rows = [_stage_row(stage) for stage in state.stages]
    lines = text_table(TITLES, [*rows, _total_row(state)], range(2, len(TITLES)))
    files = [row for stage in state.stages for row in file_rows(stage)]
    if files:
        lines += ["", *text_table(FILE_TITLES, files, range(1, len(FILE_TITLES)))]
    lines += _notes(state)
    for before, after in comparisons(state):
        lines += ["", *_comparison(before, after), *_answers(state, before, after)]
    return lines


def comparisons(state: RunState) -> list[tuple[StageView, StageView]]:
    """Pairs of evaluate stages that scored the same tokens by the same protocol, in run order."""
    pairs: list[tuple[StageView, StageView]] = []
    seen: dict[tuple[str, int], StageView] = {}
    for stage in state.stages:
        if not scores(stage.kind) or stage.state != StageStatus.SUCCEEDED or not stage.evaluations:
            continue
        last = stage.evaluations[-1]
        same = (last.protocol, last.tokens)
        if same in seen:
            pairs.append((seen[same], stage))
        else:
            seen[same] = stage
    return pairs


def _stage_row(stage: StageView) -> list[str]:
    """A stage: its training loss, and loss and perplexity on held-out data, each only where it was measured."""
    metrics = stage.metrics
    scored = scores(stage.kind)
    held_out = metrics.get("loss") if scored else metrics.get("eval_loss")
    perplexity = metrics.get("perplexity") if scored else metrics.get("eval_perplexity")
    if held_out is None and trains(stage.kind) and stage.evaluations:
        held_out, perplexity = stage.evaluations[-1].loss, stage.evaluations[-1].perplexity
    size = sum(artifact.bytes for artifact in stage.artifacts)
    return [
        f"{GLYPHS.get(stage.state, '?')} {safe_text(stage.name, 40)}",
        stage.kind,
        shown(_time_s(stage), fmt.duration),
        shown(metrics.get("cpu_s"), fmt.duration),
        "" if scored else shown(_training_loss(stage), fmt.number),
        shown(held_out, fmt.number),
        shown(perplexity, fmt.number),
        shown(size or metrics.get("bytes"), fmt.size),
    ]


def _total_row(state: RunState) -> list[str]:
    row = [""] * len(TITLES)
    row[0], row[1] = "in all", state.state
    if state.started_t is not None and state.ended_t is not None:
        row[2] = fmt.duration(state.ended_t - state.started_t)
    cpu = [seconds for stage in state.stages if (seconds := stage.metrics.get("cpu_s")) is not None]
    row[3] = fmt.duration(sum(cpu)) if cpu else ""
    return row


def _notes(state: RunState) -> list[str]:
    """What a table cannot say: why it ended, which guards tripped, what the journal lacks."""
    notes = []
    for stage in state.stages:
        if len(stage.attempts) > 1:
            notes.append(f"{stage.name}: {len(stage.attempts)} attempts")
        for guard in stage.guards:
            limit = f", limit {fmt.exact(guard.limit)}" if guard.limit is not None else ""
            notes.append(
                f"{stage.name}: guard {guard.guard} tripped at step {guard.step} ({fmt.number(guard.value)}{limit}), attempt {guard.attempt}"
            )
        if stage.state in {StageStatus.FAILED, StageStatus.REFUSED} and stage.reason:
            notes.append(f"{stage.name} {stage.state}: {stage.reason}")
    lost = sum(gap.lost for gap in state.gaps)
    if lost:
        notes.append(f"{lost} records could not be written while the run went on")
    return ["", *(safe_text(note, 400) for note in notes)] if notes else []


def _comparison(before: StageView, after: StageView) -> list[str]:
    first, last = before.evaluations[-1], after.evaluations[-1]
    change = ""
    if first.loss and last.loss is not None and math.isfinite(first.loss) and math.isfinite(last.loss):
        change = f" ({fmt.change(first.loss, last.loss)})"
    return [
        f"Loss on {fmt.count(first.tokens)} held-out answer tokens: {safe_text(before.name, 40)} {fmt.loss(first.loss)} → "
        f"{safe_text(after.name, 40)} {fmt.loss(last.loss)}{change}"
    ]


def _answers(state: RunState, before: StageView, after: StageView) -> list[str]:
    """Each question that both were asked, with both answers, whatever they are."""
    first, last = _samples(state, before), _samples(state, after)
    width = max(len("expected"), len(before.name), len(after.name))
    lines = []
    for prompt, sample in first.items():
        if prompt not in last:
            continue
        lines += ["", f"Question: {safe_text(prompt.strip(), ANSWER_CHARACTERS)}"]
        answers = [(before.name, sample.text), (after.name, last[prompt].text)]
        if sample.expected is not None:
            answers.insert(0, ("expected", sample.expected))
        lines += [
            f"  {safe_text(name, 40):<{width}}  {safe_text(text.strip(), ANSWER_CHARACTERS)}" for name, text in answers
        ]
    return lines


def _samples(state: RunState, stage: StageView) -> dict[str, SampledText]:
    attempt = stage.succeeded_attempt
    return {s.prompt: s for s in state.samples if s.stage == stage.name and attempt in (None, s.attempt)}


def _training_loss(stage: StageView) -> float | None:
    """The stage's own figure, else that of its newest step."""
    if trains(stage.kind) and "loss" in stage.metrics:
        return stage.metrics["loss"]
    return stage.last_step.loss if stage.last_step else None


def _time_s(stage: StageView) -> float | None:
    """Time its attempts took; what lies between them (a night before a resume) is not counted."""
    spans = [a.ended_t - a.started_t for a in stage.attempts if a.started_t is not None and a.ended_t is not None]
    if spans and not any(attempt.ended_t is None for attempt in stage.attempts):
        return sum(spans)
    if stage.started_t is None or stage.ended_t is None:
        return stage.metrics.get("wall_s")
    return stage.ended_t - stage.started_t


def run_json(run: RunDir, facts: Mapping[str, Any], state: RunState, real: str) -> dict[str, Any]:
    """`show --json`: one object that JSON can hold (NaN and the infinities are strings, as in the journal).

    Args:
        run: its directory.
        facts: run.json.
        state: the fold of its journal.
        real: its state with the processes looked at.
    """
    value = {
        "id": run.id,
        "recipe": facts.get("recipe"),
        "state": real,
        "reason": state.reason,
        "parent": facts.get("parent"),
        "path": str(run.root),
        "started_t": state.started_t,
        "ended_t": state.ended_t,
        "stages": [_stage_json(stage) for stage in state.stages],
        "unreadable": state.unreadable,
        "unknown": state.unknown,
        "missing": state.missing,
    }
    plain: dict[str, Any] = _finite(value)
    return plain


def _stage_json(stage: StageView) -> dict[str, Any]:
    best = stage.best_checkpoint
    step = stage.last_step
    return {
        "name": stage.name,
        "kind": stage.kind,
        "state": stage.state,
        "reason": stage.reason,
        "attempts": [_attempt_json(attempt) for attempt in stage.attempts],
        "checkpoints": [_checkpoint_json(checkpoint) for checkpoint in stage.checkpoints],
        "best_checkpoint": None if best is None else best.path,
        "artifacts": [
            {"name": a.name, "kind": a.kind, "path": a.path, "bytes": a.bytes, "sha256": a.sha256}
            for a in stage.artifacts
        ],
        "metrics": dict(stage.metrics),
        "step": stage.at_step,
        "total_steps": stage.total_steps,
        "loss": None if step is None else step.loss,
        "started_t": stage.started_t,
        "ended_t": stage.ended_t,
    }


def _attempt_json(attempt: AttemptView) -> dict[str, Any]:
    origin = attempt.resumed_from
    return {
        "attempt": attempt.attempt,
        "reason": attempt.reason,
        "exit": attempt.exit,
        "detail": attempt.detail,
        "resumed_from": None
        if origin is None
        else {"attempt": origin.attempt, "step": origin.step, "sha256": origin.sha256},
        "guards": [{"guard": g.guard, "step": g.step, "value": g.value, "limit": g.limit} for g in attempt.guards],
    }


def _checkpoint_json(checkpoint: CheckpointCommitted) -> dict[str, Any]:
    names = ("attempt", "step", "path", "sha256", "bytes", "healthy", "best", "loss")
    return {name: getattr(checkpoint, name) for name in names}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
