"""The report of a run: the table of stages, the comparison before and after, and the questions with their answers."""

from __future__ import annotations

import math

from cockpit.headless.file_rows import files_table, shown
from cockpit.headless.speed import speed_lines
from cockpit.runs.diagnosis import diagnosis_of
from cockpit.runs.ending import ending_of
from cockpit.runs.log_lines import accepted_words, adjusted_words, devices_words, line_of
from cockpit.runs.stage_view import StageView
from cockpit.runs.state import RunState
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.text.text_table import text_table
from engines.events.results import SampledText
from engines.words import IGNORED, StageStatus, Verb
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


def report_lines(state: RunState, *, reasons: bool = True) -> list[str]:
    """The report, ready to print: all text from data is made safe.

    Args:
        state: the run.
        reasons: say why stages failed; False below lines that say so.
    """
    if not state.stages:
        return ["no stage has started yet"]
    rows = [_stage_row(stage) for stage in state.stages]
    lines = text_table(TITLES, [*rows, _total_row(state)], range(2, len(TITLES)))
    files = files_table(state.stages)
    if files:
        lines += ["", *files]
    speed = speed_lines(state)
    if speed:
        lines += ["", *speed]
    lines += _notes(state, reasons=reasons)
    lines += _way_on(state)
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
    """The row of a stage: training loss, held-out loss and perplexity; empty where not measured."""
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
        shown(stage.busy_s, fmt.duration),
        shown(stage.cpu_s, fmt.duration),
        "" if scored else shown(_training_loss(stage), fmt.number),
        shown(held_out, fmt.number),
        shown(perplexity, fmt.number),
        shown(size or metrics.get("bytes"), fmt.size),
    ]


def _total_row(state: RunState) -> list[str]:
    row = [""] * len(TITLES)
    row[0], row[1] = "total", state.state
    row[2] = shown(state.busy_s, fmt.duration)
    cpu = [seconds for stage in state.stages if (seconds := stage.cpu_s) is not None]
    row[3] = fmt.duration(sum(cpu)) if cpu else ""
    return row


def _notes(state: RunState, *, reasons: bool) -> list[str]:
    """Notes below the table: attempts, tripped guards, failures, and records that were lost."""
    notes = []
    for stage in state.stages:
        if len(stage.attempts) > 1:
            notes.append(f"{stage.name}: {len(stage.attempts)} attempts")
        if stage.current is not None and stage.current.placed_words:
            notes.append(f"{stage.name}: {safe_text(stage.current.placed_words, 80)}")
        notes += [
            f"{stage.name}: attempt {attempt.attempt} computed on {devices_words(attempt.devices)}"
            for attempt in stage.attempts
            if attempt.devices is not None
        ]
        if stage.current is not None and stage.current.adjusted:
            notes.append(f"{stage.name}: {adjusted_words(stage.current.adjusted)}")
        if stage.standing is not None and not stage.state.is_done:
            made_by = stage.standing.attempt
            notes.append(f"{stage.name}: the output is that of attempt {made_by}; the rerun has not finished")
        for guard in stage.guards:
            limit = f", limit {fmt.exact(guard.limit)}" if guard.limit is not None else ""
            measured = "" if guard.value is None else f" ({fmt.number(guard.value)}{limit})"
            notes.append(
                f"{stage.name}: guard {guard.guard} tripped at step {guard.step}{measured}, attempt {guard.attempt}"
            )
        notes += [f"{stage.name}: {found.sentence}" for found in diagnosis_of(stage)]
        if reasons and stage.state.has_failed and stage.reason:
            notes.append(f"{stage.name} {stage.state}: {stage.reason}")
    notes += [f"changed at a resume: {change.sentence}" for change in state.changes]
    notes += [
        f"{item.stage}.{item.field}: changed inputs accepted at a resume: {accepted_words(item)}"
        for item in state.accepted_inputs
    ]
    notes += [
        f"changed while it ran: {done.stage or ''}{': ' if done.stage else ''}{line_of(done).text}"
        for done in state.controls
        if Verb.of(done.request) in {Verb.LEARNING_RATE, Verb.MAX_STEPS} and not done.effect.startswith(IGNORED)
    ]
    lost = sum(gap.lost for gap in state.gaps)
    if lost:
        notes.append(f"{fmt.counted(lost, 'record')} could not be written during the run")
    return ["", *(safe_text(note, None) for note in notes)] if notes else []


def _way_on(state: RunState) -> list[str]:
    """The command that continues a run that did not succeed, and where it continues; nothing for any other run."""
    ending = ending_of(state)
    stage = state.stage(ending.stage) if ending is not None and ending.stage is not None else None
    if stage is None:
        return []
    command = f"cockpit resume {safe_text(state.view.id, 100)}"
    name = safe_text(stage.name, 40)
    if not trains(stage.kind):
        return ["", f"to continue: {command} ({name} runs again)"]
    if not stage.checkpoints:
        return ["", f"to continue: {command} ({name} has no checkpoint and restarts from step 0)"]
    newest = stage.checkpoints[-1].step
    repeated = (stage.last_step.step if stage.last_step else newest) - newest
    again = (
        f"; {fmt.counted(repeated, 'step')} after it {'is' if repeated == 1 else 'are'} repeated"
        if repeated > 0
        else ""
    )
    return ["", f"to continue: {command} (the newest checkpoint of {name} is of step {newest}{again})"]


def _comparison(before: StageView, after: StageView) -> list[str]:
    first, last = before.evaluations[-1], after.evaluations[-1]
    change = ""
    if first.loss and last.loss is not None and math.isfinite(first.loss) and math.isfinite(last.loss):
        change = f" ({fmt.change(first.loss, last.loss)})"
    return [
        f"Loss on {fmt.count(first.tokens)} held-out answer tokens: {safe_text(before.name, 40)} "
        f"{fmt.loss(first.loss)} → "
        f"{safe_text(after.name, 40)} {fmt.loss(last.loss)}{change}"
    ]


def _answers(state: RunState, before: StageView, after: StageView) -> list[str]:
    """Each question that both stages answered, with both answers."""
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
    """The loss in the stage's metrics, else the loss of its newest step."""
    if trains(stage.kind) and "loss" in stage.metrics:
        return stage.metrics["loss"]
    return stage.last_step.loss if stage.last_step else None
