"""The right column of a wide screen, as text from a state.

The stage's recipe fields, attempts and guards; then its checkpoints and a sample, or the events of a replay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from cockpit.replay.playback import Playback
from cockpit.runs.state import RunState, StageView
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.tui.look.theme import ascii_only
from cockpit.tui.look.wrapping import wrapped_lines
from cockpit.tui.widgets.transport import events_around
from engines.words import IGNORED, EndReason, GateResult, Verb

INPUTS = ("model", "data", "adapter", "tokenizer", "test_data", "baseline", "files")
FACTS = (
    INPUTS,
    ("file_types", "target_bits", "checks", "max_new_tokens"),
    ("r", "lora_alpha", "lora_dropout", "beta", "loss_type"),
    ("hidden_size", "num_hidden_layers", "num_attention_heads"),
    ("learning_rate", "lr_scheduler_type", "warmup_steps", "optim"),
    ("per_device_train_batch_size", "gradient_accumulation_steps", "max_length"),
    ("max_steps", "num_train_epochs", "save_steps", "eval_steps", "seed"),
)
_REQUESTED = {"learning_rate": Verb.LEARNING_RATE, "max_steps": Verb.MAX_STEPS}
"""The fields that a request can change while the stage runs."""


def side_column(
    state: RunState,
    stage: StageView | None,
    facts: Mapping[str, Any],
    playback: Playback | None,
    size: tuple[int, int],
    colours: dict[str, str],
) -> list[Text]:
    """Lines for a column of this size."""
    width, height = size
    pen = _Pen(width, colours)
    if stage is not None:
        _recipe(pen, state, stage, facts)
        _attempts(pen, state, stage, facts)
        if playback is None:
            _checkpoints(pen, stage, max(3, (height - len(pen.lines)) - 8))
            _texts(pen, state, stage, height - len(pen.lines))
    if playback is not None:
        _events(pen, playback, height - len(pen.lines) - 2)
    bar = "|" if ascii_only() else "│"
    rows = [*pen.lines[:height], *[Text("")] * (height - len(pen.lines))]
    return [Text.assemble((f"{bar} ", colours.get("text-disabled", "")), row) for row in rows]


class _Pen:
    def __init__(self, width: int, colours: dict[str, str]) -> None:
        self.width = width - 2
        self.colours = colours
        self.lines: list[Text] = []

    def heading(self, words: str) -> None:
        if self.lines:
            self.lines.append(Text(""))
        self.line(words, f"bold {self.colours.get('primary', '')}".strip())

    def line(self, words: str, style: str = "") -> None:
        text = Text(words, style=self.colours.get(style, style), no_wrap=True)
        text.truncate(self.width, overflow="ellipsis")
        self.lines.append(text)

    def pair(self, name: str, value: str, style: str = "", *, keep_end: bool = False) -> None:
        """A label and its value; `keep_end`: a long value loses its start, because the end of a path says more."""
        label = 20  # of num_attention_heads, and a space
        text = Text(f"{name[: label - 1]:<{label}}", style=self.colours.get("text-muted", ""))
        shown = safe_text(value, 200)
        if keep_end and cell_len(shown) > self.width - label:
            while cell_len(shown) > self.width - label - 1:
                shown = shown[1:]
            shown = f"…{shown}"
        text.append(shown, self.colours.get(style, style))
        text.truncate(self.width, overflow="ellipsis")
        self.lines.append(text)


def _recipe(pen: _Pen, state: RunState, stage: StageView, facts: Mapping[str, Any]) -> None:
    pen.heading(f"{safe_text(stage.name, 40)} · {stage.kind}")
    shorter = {"per_device_train_batch_size": "batch size", "gradient_accumulation_steps": "accumulation"}
    for group in FACTS:
        for name in group:
            value = facts.get(name)
            if value is None or value == []:
                continue
            pen.pair(shorter.get(name, name), _value(value), keep_end=group is INPUTS)
            requested = _requested(state, stage, _REQUESTED.get(name))
            if requested:
                pen.pair("  changed to", requested, "warning")


def _value(value: object) -> str:
    """A field's value as a form shows it, lists without brackets."""
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return fmt.exact(value) if isinstance(value, float) else str(value)


def _requested(state: RunState, stage: StageView, verb: Verb | None) -> str:
    """The value that the last obeyed request with this verb set in the stage, and its step; empty without one."""
    for event in reversed(state.controls) if verb is not None else ():
        if event.stage == stage.name and Verb.of(event.request) is verb and not event.effect.startswith(IGNORED):
            step = f", step {event.step}" if event.step is not None else ""
            return f"{event.request.removeprefix(f'{verb} ')}{step}"
    return ""


def _attempts(pen: _Pen, state: RunState, stage: StageView, facts: Mapping[str, Any]) -> None:
    attempt = stage.current
    if attempt is None:
        return
    pen.heading("Attempt")
    retry = facts.get("retry")
    most = retry.get("max_attempts", 1) if isinstance(retry, dict) else None
    count = state.attempts_since_resume(stage.name)
    pen.pair("attempt", f"{attempt.attempt}" + (f"  ({count} of max {most})" if most else ""))
    if attempt.placed is not None:
        pen.pair("processes", attempt.placed_words)
    if attempt.resumed_from is not None:
        pen.pair("resumed from", f"step {attempt.resumed_from.step} (attempt {attempt.resumed_from.attempt})")
    if attempt.learning_rate_scale != 1:
        pen.pair("learning rate", f"scaled by {fmt.exact(attempt.learning_rate_scale)}", "warning")
    for name, value in {change.field: change.new for change in attempt.adjusted}.items():
        pen.pair(safe_text(name, 40), f"{safe_text(value, 20)}, as memory ran out", "warning")
    if attempt.ended:
        status = f", exit {attempt.exit}" if attempt.exit is not None else ""
        pen.pair("ended", f"{attempt.reason}{status}", "" if attempt.reason == EndReason.SUCCEEDED else "warning")
    if not stage.guards:
        pen.pair("guards", "none tripped")
    for guard in stage.guards[-3:]:
        pen.pair(safe_text(guard.guard, 40), f"step {guard.step}: {fmt.number(guard.value)}", "error")
    for gate in stage.gates[-4:]:
        pen.pair(
            f"gate {gate.result}",
            f"{gate.metric} {gate.op} {fmt.exact(gate.limit)}",
            "" if gate.result == GateResult.PASS else "error",
        )


def _checkpoints(pen: _Pen, stage: StageView, most: int) -> None:
    checkpoints = stage.checkpoints
    if not checkpoints:
        return
    pen.heading(f"Checkpoints ({len(checkpoints)})")
    best = stage.best_checkpoint
    for checkpoint in reversed(checkpoints[-max(1, most) :]):
        star = ("*" if ascii_only() else "★") if checkpoint is best else " "
        note = "" if checkpoint.healthy else "  not healthy"
        loss = f"{fmt.loss(checkpoint.loss)}" if checkpoint.loss is not None else ""
        style = "warning" if note else ("success" if checkpoint is best else "")
        pen.line(
            f"{star} {checkpoint.step:>7} {loss:>7} {fmt.size(checkpoint.bytes):>8} {fmt.clock(checkpoint.t)}{note}",
            style,
        )


def _texts(pen: _Pen, state: RunState, stage: StageView, room: int) -> None:
    texts = [sample for sample in state.samples if sample.stage == stage.name][-1:]
    if not texts or room < 5:
        return
    sample = texts[0]
    pen.heading("Sample" + (f" at step {sample.step}" if sample.step is not None else ""))
    rows = [(row, "text-muted") for row in wrapped_lines(sample.prompt, pen.width, 300)]
    # Half of the room is the answer's, whatever the length of the prompt.
    rows = rows[: max(1, (room - 2) // 2)]
    rows += [(row, "") for row in wrapped_lines(sample.text, pen.width, 600)]
    for row, style in rows[: room - 2]:
        pen.line(row, style)


def _events(pen: _Pen, playback: Playback, room: int) -> None:
    if room < 3:
        return
    pen.heading("Events")
    moments, passed = events_around(playback, room)
    for number, moment in enumerate(moments):
        colour = {"✗": "error", "!": "error", "◆": "success"}.get(moment.character, "")
        pen.line(f"{moment.character} {safe_text(moment.text, 200)}", colour if number < passed else "text-disabled")
