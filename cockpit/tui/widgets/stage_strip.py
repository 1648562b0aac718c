"""The run's stages on one line, and the progress bar of one stage, as text from a state."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from cockpit.runs.state import StageView
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.tui.look.theme import STATE_COLOURS, ascii_only, state_glyph
from engines.words import RunStatus, StageStatus


def stage_strip(
    stages: Sequence[StageView], chosen: str | None, width: int, colours: dict[str, str], *, lost: bool = False
) -> Text:
    """Every stage with its state; when they do not fit, those around the selected one."""
    states = [RunStatus.LOST if lost and stage.state == StageStatus.RUNNING else stage.state for stage in stages]
    pieces = [_piece(stage, state) for stage, state in zip(stages, states, strict=True)]
    at = next((n for n, stage in enumerate(stages) if stage.name == chosen), 0)
    first, last = 0, len(pieces)
    while last - first > 1 and sum(len(p) + 3 for p in pieces[first:last]) + 4 > width:
        if at - first > last - 1 - at:
            first += 1
        else:
            last -= 1
    line = Text(" " if first == 0 else "… ", no_wrap=True)
    for number in range(first, last):
        style = colours.get(STATE_COLOURS.get(states[number], ""), "")
        if number == at:
            style = f"bold reverse {style}"
        line.append(f" {pieces[number]} ", style.strip())
        line.append(" ")
    if last < len(pieces):
        line.append("…")
    line.truncate(width)
    return line


def _piece(stage: StageView, state: RunStatus | StageStatus) -> str:
    share = (
        f" {fmt.percent(stage.fraction)}" if stage.state == StageStatus.RUNNING and stage.fraction is not None else ""
    )
    return f"{state_glyph(state)} {safe_text(stage.name, 40)}{share}"


def progress_bar(share: float | None, width: int, colours: dict[str, str], *, colour: str = "primary") -> Text:
    """A bar with its percentage at the right."""
    label = f" {fmt.percent(share, 1)}" if share is not None else ""
    room = max(4, width - 2 - len(label))
    plain = ascii_only()
    full, half, empty = ("#", "#", "-") if plain else ("━", "╸", "─")
    filled = (share or 0.0) * room
    whole = int(filled)
    head = half if filled - whole >= 0.5 and whole < room else ""
    line = Text(" ", no_wrap=True)
    line.append(full * whole + head, colours.get(colour, ""))
    line.append(empty * (room - whole - len(head)), colours.get("text-disabled", ""))
    line.append(label)
    return line
