"""The texts of Home's preview: a recipe's stages and estimates, or a run's state and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from cockpit.forms.shelf import RecipeEntry
from cockpit.runs.ending import ending_of
from cockpit.runs.eta import time_left
from cockpit.runs.state import RunState, StageView
from cockpit.runs.summaries import RunSummary
from cockpit.text import formatting
from cockpit.text.safe_text import safe_text
from cockpit.tui.look.theme import STATE_COLOURS, ascii_only, state_glyph
from cockpit.tui.look.wrapping import MOST_LINES
from engines.words import HealthWord, RunStatus, StageStatus

if TYPE_CHECKING:
    from cockpit.planning.stages import Plan

LONGEST_SENTENCE = 4000
METRICS_SHOWN = ("loss", "perplexity", "tokens_per_second", "parameters")


class Pen:
    """A text under construction, with the theme's colours by name."""

    def __init__(self, colours: dict[str, str]) -> None:
        self.text = Text(no_wrap=False)
        self._colours = colours

    def write(self, words: str, colour: str = "", *, bold: bool = False) -> Pen:
        """Append words in a colour of the theme."""
        style = self._colours.get(colour, "")
        self.text.append(words, f"bold {style}".strip() if bold else style)
        return self

    def line(self, words: str = "", colour: str = "") -> Pen:
        """Append words and end the line."""
        return self.write(f"{words}\n", colour)


def recipe_preview(entry: RecipeEntry, plan: Plan | None, colours: dict[str, str], width: int) -> Text:
    """A recipe's description, stages with their estimates, and path; its problems instead if it has any.

    Args:
        entry: the recipe.
        plan: its numbers; None if they are unknown.
        colours: of the theme, by name.
        width: in cells; a stage's numbers that do not fit into its line are left out.
    """
    pen = Pen(colours)
    if entry.problems:
        count = len(entry.problems)
        pen.line(f"{formatting.counted(count, 'problem')}: this recipe cannot start", "error")
        for problem in entry.problems[:8]:
            where = f"line {problem.line}  " if problem.line else ""
            what = f"{problem.key} — {problem.message}" if problem.key else problem.message
            pen.write(where, "text-muted").write(safe_text(what))
            pen.line(safe_text("".join(f"; {part}" for part in (_got(problem.got), problem.hint) if part)))
        if count > 8:
            pen.line(f"… and {count - 8} more", "text-muted")
    else:
        if entry.description:
            pen.line(safe_text(entry.description))
        figures = {stage.name: stage for stage in plan.stages} if plan else {}
        pen.line(formatting.counted(len(entry.stages), "stage"), "text-muted")
        longest = min(16, max((len(name) for name, _ in entry.stages), default=0))
        for name, kind in entry.stages:
            start = f"  {safe_text(name, longest):<{longest}} "
            pen.write(start).write(f"{kind:<10}", "text-muted")
            pen.line(_as_many_as_fit(_stage_figures(figures.get(name)), width - len(start) - 10))
    if entry.hides_shipped:
        name = safe_text(entry.path.stem, 60)
        pen.line(f"Your copy hides the shipped recipe here; `cockpit run {name}` still runs the shipped one.", "accent")
    pen.write(safe_text(entry.path, 300), "text-muted")
    return pen.text


def run_heading(
    run: RunSummary,
    state: RunState | None,
    now: float,
    colours: dict[str, str],
    width: int,
    console: Sequence[str] = (),
) -> Text:
    """The lines above a run's curve: its state, why it ended in full, the newest numbers, the end of console.log."""
    pen = Pen(colours)
    word = run.health if run.state.is_live and run.health else run.state
    colour = "error" if HealthWord(word).needs_attention else STATE_COLOURS.get(run.state, "")
    pen.write(f"{state_glyph(run.state)} {safe_text(word, 30)}", colour, bold=True)
    pen.write(f"  {safe_text(run.recipe, 40)}", "text-muted")
    if run.state.is_live and run.silence_s is not None:
        pen.write(f"  last progress {formatting.ago(run.silence_s)}", "text-muted")
    elif not run.state.is_live and run.last_event_t is not None:
        words = "last record" if run.state == RunStatus.LOST else "ended"
        pen.write(f"  {words} {formatting.day_or_clock(run.last_event_t, now)}", "text-muted")
    if run.parent:
        pen.write(f"  from {safe_text(run.parent, 60)}", "text-muted")
    pen.line()
    _write_note(pen, run)
    for words in filter(None, (run.health_sentence, *run.concerns) if run.state.is_live else ()):
        pen.line(safe_text(words, LONGEST_SENTENCE), colour)
    for sentence in _reasons(run, state):
        for words in sentence[:LONGEST_SENTENCE].split("\n", MOST_LINES):  # a list has its rows in lines of their own
            pen.line(safe_text(words, LONGEST_SENTENCE), STATE_COLOURS.get(run.state, ""))
    for line in console:
        pen.line(f"{'|' if ascii_only() else '│'} {safe_text(line, LONGEST_SENTENCE)}", "text-muted")
    if state is not None and len(state.stages) > 1:
        _strip(pen, state, width)
    stage = shown_stage(state)
    numbers = stage_numbers(stage, state) if stage and state else []
    if numbers:
        pen.line(_as_many_as_fit(numbers, width))
    pen.text.rstrip()
    return pen.text


def _write_note(pen: Pen, run: RunSummary) -> None:
    if run.note:
        pen.line(safe_text(run.note, 500), "text-muted")


def _strip(pen: Pen, state: RunState, width: int) -> None:
    """Every stage with its state's glyph; a glyph is never on another line than its word."""
    used = 0
    for view in state.stages:
        glyph, name = state_glyph(view.state), safe_text(view.name, 14)
        cells = cell_len(glyph) + cell_len(name) + 2
        if used and used + cells > width:
            pen.line()
            used = 0
        used += cells
        pen.write(glyph, STATE_COLOURS.get(view.state, ""))
        pen.write(f" {name} ", "" if view.state == StageStatus.RUNNING else "text-muted")
    pen.line()


def _reasons(run: RunSummary, state: RunState | None) -> tuple[str, ...]:
    """Why the run ended, in full: from the journal, else from the summary."""
    ending = ending_of(state) if state is not None else None
    if ending is not None:
        return ending.sentences
    return (run.reason,) if run.reason and run.state not in {RunStatus.SUCCEEDED, RunStatus.RUNNING} else ()


def shown_stage(state: RunState | None) -> StageView | None:
    """The stage whose curve is shown: the running one if it has steps, else the latest one with steps."""
    if state is None:
        return None
    current = state.current_stage
    if current is not None and current.last_step is not None:
        return current
    stepped = [stage for stage in state.stages if stage.last_step is not None]
    return max(stepped, key=lambda s: s.last_step.t if s.last_step else 0.0) if stepped else current


def stage_numbers(stage: StageView, state: RunState) -> list[str]:
    """The stage's newest numbers, each with its name."""
    words = [safe_text(stage.name, 20)]
    step = stage.last_step
    if step is not None:
        total = f"/{stage.total_steps}" if stage.total_steps else ""
        words += [f"step {step.step}{total}", f"loss {formatting.loss(step.loss)}"]
    elif stage.metrics:
        words += [f"{name} {formatting.number(stage.metrics[name])}" for name in METRICS_SHOWN if name in stage.metrics]
    best = stage.best_checkpoint
    if best is not None:
        loss = f" {formatting.loss(best.loss)}" if best.loss is not None else ""
        words.append(f"{'*' if ascii_only() else '★'}{loss} @{best.step}")
    left = time_left(state)
    if left is not None:
        words.append(left.words)
    if step is not None:
        words.append(f"lr {formatting.learning_rate(step.learning_rate)}")
    return words


def _as_many_as_fit(words: Sequence[str], width: int) -> str:
    """Words with two spaces between them, up to a width; the first one is always there."""
    line = ""
    for word in words:
        longer = f"{line}  {word}" if line else word
        if line and cell_len(longer) > width:
            break
        line = longer
    return line


def plan_words(plan: Plan | None) -> str:
    """A plan in one line: parameters, steps, tokens, checkpoint size; unknown values are left out."""
    if plan is None:
        return ""
    words: list[str] = []
    _sum(words, [stage.trainable_parameters for stage in plan.stages], "{} trainable parameters", formatting.count)
    _sum(words, [stage.steps for stage in plan.stages], "{} steps", formatting.whole)
    _sum(words, [stage.tokens for stage in plan.stages], "{} tokens", formatting.count)
    each = [stage.checkpoint_bytes for stage in plan.stages if stage.checkpoint_bytes]
    if each:
        words.append(f"{formatting.size(max(each))} per checkpoint")
    return " · ".join(words)


def _sum(words: list[str], values: Sequence[int | None], form: str, shown: object) -> None:
    known = [value for value in values if value is not None]
    if known and callable(shown):
        words.append(form.format(shown(sum(known))))


def _stage_figures(stage: object) -> list[str]:
    words = []
    for name, form, shown in (
        ("parameters", "{} params", formatting.count),
        ("steps", "{} steps", formatting.whole),
        ("tokens", "{} tok", formatting.count),
    ):
        value = getattr(stage, name, None)
        if value is not None:
            words.append(form.format(shown(value)))
    return words


def _got(got: str) -> str:
    return f"got {got}" if got else ""
