"""The runs, newest first, one on a line: state, id, stage, step, loss, time. The width decides the columns."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from cockpit.runs.summaries import RunSummary
from cockpit.text import formatting
from cockpit.text.safe_text import safe_text
from cockpit.tui.look.theme import STATE_COLOURS, ascii_only, palette, state_glyph
from cockpit.tui.look.wrapping import shortened
from cockpit.tui.widgets.line_list import LineList
from engines.words import HealthWord


@dataclass(frozen=True)
class _Columns:
    """Cells of each column; 0 leaves it out."""

    id: int
    recipe: int
    state: int
    stage: int
    step: int
    loss: int
    time: int


def columns(width: int) -> _Columns:
    """The columns for a line of this width; the id takes the remaining cells."""
    state, stage, step, loss, time = 10, 9, 9, 6, 6
    recipe = 0
    if width < 46:
        state = stage = step = 0
    elif width < 74:
        state = stage = 0
    elif width >= 104:
        recipe, stage, step = 16, 14, 13
    shown = [cells for cells in (recipe, state, stage, step, loss, time) if cells]
    return _Columns(max(8, width - 4 - sum(shown) - len(shown)), recipe, state, stage, step, loss, time)


class RunTable(LineList[RunSummary]):
    """Summaries of runs. `now`, in Unix seconds, is the end of a live run's duration."""

    has_header = True
    empty_message = "no runs yet; select a recipe and press n"
    now: float = 0.0

    def key_of(self, item: RunSummary) -> Hashable:
        return item.path

    def draw_header(self, width: int) -> Text:
        at = columns(width)
        parts = [
            ("  ", "run", at.id),
            (" ", "recipe", at.recipe),
            (" ", "state", at.state),
            (" ", "stage", at.stage),
            (" ", "step", at.step),
            (" ", "loss", at.loss),
            (" ", "time", at.time),
        ]
        right = {"loss", "time"}
        line = " "
        for gap, name, cells in parts:
            if cells:
                line += gap + (name.rjust(cells) if name in right else name.ljust(cells))
        return Text(line)

    def draw_item(self, item: RunSummary, width: int) -> Text:
        at = columns(width)
        colours = palette(self.app.theme_variables)
        state_colour = "error" if HealthWord(_state_word(item)).needs_attention else STATE_COLOURS.get(item.state, "")
        colour, muted = colours.get(state_colour, ""), colours["text-muted"]
        text = Text(" ")
        text.append(state_glyph(item.state), colour)
        text.append(" " + short_id(item.id, at.id))
        if item.reading is not None:
            text.append(f" reading {formatting.percent(item.reading)}", muted)
            text.truncate(width)
            return text
        if at.recipe:
            text.append(" " + _fit(item.recipe, at.recipe), muted)
        if at.state:
            text.append(" " + _fit(_state_word(item), at.state), colour)
        if at.stage:
            text.append(" " + _fit(item.stage or "", at.stage))
        if at.step:
            text.append(" " + _fit(step_words(item, at.step), at.step))
        text.append(" " + formatting.loss(item.loss).rjust(at.loss) if item.loss is not None else " " * (at.loss + 1))
        text.append(" " + formatting.duration(item.took_s(self.now)).rjust(at.time), muted)
        return text


def _state_word(item: RunSummary) -> str:
    """The state; of a run that works, how it is doing."""
    word = item.health if item.state.is_live and item.health else item.state
    return "waiting" if word == HealthWord.WAITING_FOR_DATA else word


def step_words(item: RunSummary, cells: int) -> str:
    """`412/820` (`12k/50k` if that is too long), `412`, a percentage for a stage without steps, or empty."""
    if item.step is not None:
        full = f"{item.step}/{item.total_steps}" if item.total_steps else str(item.step)
        if len(full) <= cells:
            return full
        short = formatting.count(item.step)
        return f"{short}/{formatting.count(item.total_steps)}" if item.total_steps else short
    if item.state.is_live and item.progress:
        return formatting.percent(item.progress)
    return ""


def short_id(run_id: str, cells: int) -> str:
    """The id in exactly `cells` cells. What distinguishes runs stays: the day and the time, and the end of the name."""
    safe = safe_text(run_id, 200)
    if cell_len(safe) <= cells:
        return set_cell_size(safe, cells)
    dated = _DATED.match(safe)
    if dated is None:
        return set_cell_size(shortened(safe, cells, _mark()), cells)
    moment, name = dated[1], dated[2]
    room = cells - len(moment) - 1
    if room >= MIN_NAME:
        return set_cell_size(f"{moment}-{shortened(name, room, _mark())}", cells)
    return set_cell_size(shortened(moment + "-" + name, cells, _mark()), cells)


_DATED = re.compile(r"\d{4}(\d{4}-\d{4})-(.+)")
"""An id that begins with its launch: year, then month, day and time, then a name."""
MIN_NAME = 4


def _mark() -> str:
    return "~" if ascii_only() else "…"


def _fit(text: str, cells: int) -> str:
    """Safe text of exactly `cells` cells; a cut text ends with an ellipsis."""
    safe = safe_text(text, 4 * cells)
    if cell_len(safe) <= cells:
        return set_cell_size(safe, cells)
    return set_cell_size(set_cell_size(safe, cells - 1).rstrip() + _mark(), cells)
