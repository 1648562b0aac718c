"""The texts around a recipe form's rows: title, hint, unsaved changes, estimate."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

from cockpit.forms.model import FormModel
from cockpit.forms.recipe_data import RECIPE
from cockpit.forms.rows import Row, Spot
from cockpit.forms.values import show_value
from cockpit.headless.look_lines import trained_share
from cockpit.planning.stages import Plan
from cockpit.text import formatting
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.tui.widgets.preview import Pen, plan_words
from engines.look.answer import StageLook
from recipes.problems import Problem

NO_ESTIMATE = "no estimate while there are problems"


def title(model: FormModel, colours: dict[str, str], read_only: bool, unreadable: str) -> Text:
    """The file's name, the number of changed fields, and the number of problems."""
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f" {safe_text(model.path.name, 60)}{'*' if model.dirty else ''}", "bold")
    if read_only:
        line.append("  read-only: saving makes a copy", colours["text-muted"])
    if model.changed_rows:
        line.append(f"  *{model.changed_rows} changed", colours["accent"])
    if unreadable:
        line.append(f"  {safe_text(unreadable, 200)}", colours["error"])
    elif model.problems:
        line.append(f"  !{formatting.counted(len(model.problems), 'problem')}", colours["error"])
    else:
        line.append("  no problems", colours["success"])
    return line


def hint(model: FormModel, spot: Spot, colours: dict[str, str]) -> Text:
    """The help, the problems and the allowed values of the row with the cursor."""
    pen = Pen(colours)
    row = model.row(spot.place, spot.key) if spot.key else None
    if row is None:
        _hint_without_row(pen, model, spot.place)
    else:
        _hint_of_row(pen, model, spot.place, row)
    pen.text.rstrip()
    return pen.text


def _hint_of_row(pen: Pen, model: FormModel, place: int, row: Row) -> None:
    for problem in row.problems:  # first: a long help would push them out of a small screen's box
        pen.line(problem_text(problem), "error")
    pen.write(row.key, bold=True).line(f" — {row.spec.help}")
    default = show_value(row.spec.default)
    words = [row.spec.allowed, row.spec.unit or "", f"default {default}" if default else row.spec.default_words]
    if row.was is not None:
        words.append(f"was {safe_text(row.was, 80) or 'not set'}")
    stages = model.candidates(place, row.key) if row.spec.accepts else []
    if stages:
        words.append(f"stages that fit: {', '.join(safe_text(name, 40) for name in stages)} (enter to choose)")
    pen.line(" · ".join(word for word in words if word), "text-muted")


def _hint_without_row(pen: Pen, model: FormModel, place: int) -> None:
    if model.broken is not None:
        pen.line(safe_text(str(model.broken)), "error")
        pen.line("the form cannot show this file; fix it in an editor, then open it again", "text-muted")
        return
    for problem in model.loose_problems(place):
        pen.line(f"line {problem.line}: {problem_text(problem)}", "error")
    if place == RECIPE and model.loaded is not None:
        pen.line(safe_text(model.loaded.recipe.description))
    pen.line("enter opens, tab moves to the next pane; an empty field has its default value", "text-muted")


def difference(model: FormModel, colours: dict[str, str]) -> Text:
    """The lines that differ from the file on disk."""
    pen = Pen(colours)
    for line in model.diff():
        pen.line(safe_text(line, 300), {"+": "success", "-": "error"}.get(line[:1], "text-muted"))
    if not pen.text:
        pen.write("no changes", "text-muted")
    pen.text.rstrip()
    return pen.text


def cost(figures: Plan | None) -> str:
    """A plan in one line, or why the recipe has no estimate."""
    if figures is None:
        return NO_ESTIMATE
    return plan_words(figures) or "no stage has steps to estimate"


def estimate(figures: Plan | None, looks: Mapping[str, StageLook], colours: dict[str, str]) -> Text:
    """Each stage's parameters, steps and tokens, as far as they are known before it runs, and what its data has."""
    pen = Pen(colours)
    if figures is None:
        pen.write(NO_ESTIMATE, "text-muted")
        return pen.text
    for stage in figures.stages:
        words = [
            f"{formatting.count(stage.parameters)} params" if stage.parameters is not None else "",
            f"{stage.steps} steps" if stage.steps is not None else "",
            f"{formatting.count(stage.tokens)} tok" if stage.tokens is not None else "",
            formatting.counted(stage.evaluations, "evaluation") if stage.evaluations else "",
            formatting.counted(stage.checkpoints, "checkpoint") if stage.checkpoints is not None else "",
            f"about {fmt.size(stage.memory_bytes)} of memory" if stage.memory_bytes is not None else "",
        ]
        pen.write(f"{safe_text(stage.name, 16):<16} ")
        pen.line(", ".join(word for word in words if word) or stage.kind, "text-muted")
        made = [f"{one.file_type} {fmt.size(one.bytes)}" for one in figures.files if one.stage == stage.name]
        if made:
            pen.line(f"  about {', '.join(made)}", "text-muted")
        if stage.name in looks:
            _write_look(pen, looks[stage.name])
    pen.text.rstrip()
    return pen.text


def _write_look(pen: Pen, look: StageLook) -> None:
    """The rows of a stage's data, and its first defects."""
    for one in look.splits:
        share = trained_share(one)
        words = [
            f"{one.split} {formatting.counted(one.rows, 'row')}" + ("" if one.read_all else "+"),
            f"{fmt.percent(share)} trained" if share is not None else "",
            f"{one.truncated_rows} cut" if one.truncated_rows else "",
            f"{left} left out" if (left := one.dropped_rows + one.refused_rows + one.skipped_rows) else "",
        ]
        pen.line(f"  {', '.join(word for word in words if word)}", "text-muted")
    for defect in look.defects[:3]:
        pen.line(f"  {safe_text(defect.message, 300)}", "error")
    more = len(look.defects) - 3 + look.more_defects
    if more > 0:
        pen.line(f"  and {formatting.counted(more, 'more defect')}", "error")


def problem_text(problem: Problem) -> str:
    """A problem without its place: what, got, allowed, hint."""
    parts = [problem.message]
    if problem.got:
        parts.append(f"got {problem.got}")
    if problem.allowed:
        parts.append(f"allowed {problem.allowed}")
    if problem.hint:
        parts.append(problem.hint)
    return safe_text("; ".join(parts), 500)
