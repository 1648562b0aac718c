"""Saving, launching and leaving a recipe form: the questions it asks on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cockpit.forms.save import ChangedOnDiskError, save_copy, save_recipe
from cockpit.forms.shelf import copy_path
from cockpit.tui.look.notices import say, say_error
from cockpit.tui.screens.confirm import Answer, ConfirmScreen
from cockpit.tui.screens.launching import confirm_launch
from recipes.problems import OperatorError

if TYPE_CHECKING:
    from cockpit.tui.screens.recipe_form import RecipeScreen


def save(form: RecipeScreen) -> bool:
    """Save where the recipe is, or as a copy where it may not be written; False when it is not saved (yet)."""
    model = form.model
    if form.unreadable:
        say(form, form.unreadable, "error")
        return False
    if form.read_only:
        return _save_copy(form, "the shipped recipe stays as it is")
    if not model.dirty:
        say(form, "nothing to save")
        return True
    try:
        save_recipe(model.path, model.text, model.disk_text)
    except ChangedOnDiskError as error:
        _ask_about_change(form, error)
        return False
    except OperatorError as error:
        say_error(form, error)
        return False
    model.saved(model.path)
    form.refresh_all()
    say(form, _saved_words(form))
    return True


def launch(form: RecipeScreen) -> None:
    """Ask, then start what the form shows; refused while there is a problem."""
    model = form.model
    if model.problems or model.loaded is None:
        count = len(model.problems)
        first = f"\n{model.problems[0]}" if model.problems else f"\n{form.unreadable}"
        say(form, f"not launched: {count} {'problem' if count == 1 else 'problems'}{first}", "error")
        if model.problems:
            form.action_next_problem()
        return
    unsaved = (
        "These edits are not saved: the run gets the text as it is shown, the file stays as it is."
        if model.dirty
        else ""
    )
    confirm_launch(form, model.loaded, form.plan(), unsaved)


def leave(form: RecipeScreen) -> None:
    """Go back; asks first when edits would be lost."""
    if not form.model.dirty:
        form.app.pop_screen()
        return

    def answered(answer: str | None) -> None:
        if answer == "discard" or (answer == "save" and save(form)):
            form.app.pop_screen()

    answers = [
        Answer("stay", "Keep editing"),
        Answer("save", "Save and leave"),
        Answer("discard", "Discard", danger=True),
    ]
    changed = form.model.changed_rows
    body = f"{changed} {'field is' if changed == 1 else 'fields are'} changed and not saved."
    form.app.push_screen(ConfirmScreen("Leave the form?", body, answers), answered)


def _save_copy(form: RecipeScreen, why: str) -> bool:
    path = copy_path(form.model.path.stem)
    try:
        save_copy(path, form.model.text)
    except OperatorError as error:
        say_error(form, error)
        return False
    form.model.saved(path)
    form.path, form.read_only = path, False
    form.model.check()  # relative paths are looked up from the copy's folder now
    form.refresh_all()
    say(form, f"saved as {path}; {why}\n{_saved_words(form)}")
    return True


def _ask_about_change(form: RecipeScreen, error: ChangedOnDiskError) -> None:
    held = error.text

    def answered(answer: str | None) -> None:
        if answer == "copy":
            _save_copy(form, "the changed file stays as it is")
        elif answer == "reload" and held is not None:
            form.model.replace(held)
            form.model.rebase(held)
            form.refresh_all()
            say(form, "reloaded; ctrl+z brings your edits back")

    answers = [Answer("back", "Back"), Answer("copy", "Save a copy")]
    if held is not None:
        answers.append(Answer("reload", "Reload the file", danger=True))
    body = f"{error.message}.\nIt is not overwritten. Save yours as a copy, or take the file's text (your edits can be undone back)."
    form.app.push_screen(ConfirmScreen("The file changed", body, answers), answered)


def _saved_words(form: RecipeScreen) -> str:
    count = len(form.model.problems)
    name = form.model.path.name
    return f"{name} saved" if not count else f"{name} saved; it cannot start yet: {count} problems"
