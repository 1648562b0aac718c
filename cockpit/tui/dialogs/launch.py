"""The question before a run starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cockpit.text.formatting import counted
from cockpit.text.safe_text import safe_text
from cockpit.tui.dialogs.confirm import Answer, ConfirmScreen
from cockpit.tui.widgets.preview import plan_words

if TYPE_CHECKING:
    from cockpit.planning.stages import Plan
    from recipes.load import LoadedRecipe

START = "start"


def launch_question(loaded: LoadedRecipe, figures: Plan | None, note: str = "") -> ConfirmScreen:
    """Show the estimate and ask whether to start the recipe; returns START or another id."""
    recipe = loaded.recipe
    stages = ", ".join(stage.name for stage in recipe.stage)
    lines = [recipe.description, f"{counted(len(recipe.stage), 'stage')}: {stages}", plan_words(figures), note]
    body = "\n".join(safe_text(line, 600) for line in lines if line)
    return ConfirmScreen(f"Start {recipe.name}?", body, [Answer("no", "Cancel"), Answer(START, "Start")])
