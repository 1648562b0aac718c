"""Every key in one table: it makes the bindings, the line at the bottom and the help screen, so none can disagree.

Each key has an id. A user's keymap may name another key for it. Keys that terminal multiplexers take for themselves
(ctrl+a, ctrl+b, ctrl+\\, ctrl+z) are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from textual.binding import Binding
from textual.screen import Screen


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        id: `scope.name`, for keymaps.
        keys: Textual's names, comma-separated.
        action: the action of the screen (or `app.…`).
        label: what the line at the bottom says; empty to leave it out there.
        help: what it does, in one sentence.
        shown: the key as it is drawn.
    """

    id: str
    keys: str
    action: str
    label: str
    help: str
    shown: str = ""

    @property
    def drawn(self) -> str:
        """The key as people read it."""
        return self.shown or self.keys.split(",")[0].replace("ctrl+", "^").replace("question_mark", "?")


_CHARTS = (
    Key("log_y", "y", "log_y", "Log", "Switch the value axis between linear and logarithmic."),
    Key("smooth", "m", "smooth", "Smooth", "Next smoothing: none, 0.6, 0.9, 0.97, 0.99."),
    Key("fit", "f", "fit", "Fit", "Fit the value axes to the data and show all steps."),
    Key("maximise", "z", "maximise", "Zoom", "Show the chosen chart alone, or all of them again."),
    Key("actions", "a", "actions", "Actions", "Checkpoints and what can be made of them."),
    Key("zoom_in", "plus,equals_sign", "zoom(0.5)", "", "Show half as many steps.", "+"),
    Key("zoom_out", "minus", "zoom(2.0)", "", "Show twice as many steps.", "-"),
    *(
        Key(f"pane_{number}", f"{number}", f"pane({number})", "", f"Choose the {nth} chart.")
        for number, nth in enumerate(("first", "second", "third", "fourth", "fifth", "sixth"), 1)
    ),
)
_LOG = (
    Key("log_up", "up", "log_scroll(-1)", "", "Scroll the log up; at its end it follows the newest.", "↑"),
    Key("log_down", "down", "log_scroll(1)", "", "Scroll the log down.", "↓"),
    Key("log_page_up", "pageup", "log_scroll(-10)", "", "Scroll the log up by ten lines.", "pgup"),
    Key("log_page_down", "pagedown", "log_scroll(10)", "", "Scroll the log down by ten lines.", "pgdn"),
    Key("copy", "Y", "copy_path", "", "Copy the path of the run's folder."),
)


def _of(scope: str, keys: tuple[Key, ...], *, named: tuple[str, ...] | None = None) -> tuple[Key, ...]:
    """Keys that a live run and a replay share, as keys of one of them; only those of `named` stand at the bottom."""
    return tuple(
        replace(key, id=f"{scope}.{key.id}", label=key.label if named is None or key.id in named else "")
        for key in keys
    )


SCOPES: dict[str, tuple[Key, ...]] = {
    "app": (
        Key("app.help", "question_mark,f1", "app.keys_help", "Help", "Show every key of this screen.", "?"),
        Key("app.palette", "ctrl+p", "app.command_palette", "", "Search the commands.", "^p"),
        Key("app.back", "escape", "app.back", "Back", "Close this screen; training continues.", "esc"),
        Key("app.quit", "ctrl+q", "app.leave", "", "Leave the cockpit; training continues.", "^q"),
    ),
    "run": (
        Key(
            "run.freeze",
            "space",
            "freeze",
            "Freeze",
            "Hold the picture still (or let it follow again); training goes on.",
        ),
        Key("run.checkpoint", "k", "checkpoint", "Ckpt", "Ask the engine for a checkpoint at the next step."),
        Key("run.stop", "x", "stop", "Stop…", "Stop: after a checkpoint, or now; asks first."),
        *_of("run", _CHARTS),
        Key("run.left", "left", "inspect(-1)", "", "Inspect the step before.", "←"),
        Key("run.right", "right", "inspect(1)", "", "Inspect the step after.", "→"),
        Key("run.far_left", "shift+left", "inspect(-50)", "", "Inspect fifty steps before.", "shift+←"),
        Key("run.far_right", "shift+right", "inspect(50)", "", "Inspect fifty steps after.", "shift+→"),
        Key("run.stage_back", "left_square_bracket", "stage(-1)", "", "Look at the stage before.", "["),
        Key("run.stage_on", "right_square_bracket", "stage(1)", "", "Look at the stage after.", "]"),
        Key("run.follow", "0", "follow", "", "Follow the running stage with every chart as it was.", "0"),
        *_of("run", _LOG),
    ),
    "replay": (
        Key("replay.play", "space", "play", "Play", "Play or pause."),
        Key("replay.back", "left", "seek(-1)", "±1", "One sample back.", "←/→"),
        Key("replay.on", "right", "seek(1)", "", "One sample on.", "→"),
        Key("replay.far_back", "shift+left", "seek(-50)", "", "Fifty samples back.", "shift+←"),
        Key("replay.far_on", "shift+right", "seek(50)", "", "Fifty samples on.", "shift+→"),
        Key("replay.slower", "left_square_bracket", "speed(-1)", "Speed", "Slower: down to half of real time.", "[ ]"),
        Key(
            "replay.faster",
            "right_square_bracket",
            "speed(1)",
            "",
            "Faster: up to 64 times, then as fast as possible.",
            "]",
        ),
        Key("replay.start", "home", "edge(0)", "", "To the beginning.", "home"),
        Key("replay.end", "end", "edge(1)", "", "To the end.", "end"),
        Key("replay.goto", "g", "goto", "Goto", "Go to a step by its number."),
        Key("replay.next_event", "e", "event(1)", "Event", "To the next checkpoint, guard or failure.", "e/E"),
        Key("replay.last_event", "E", "event(-1)", "", "To the checkpoint, guard or failure before.", "E"),
        *_of("replay", _CHARTS, named=("log_y", "smooth")),
        Key("replay.follow", "0", "follow", "", "Show the stage at the playhead with every chart as it was."),
        *_of("replay", _LOG),
    ),
    "home": (
        Key("home.open", "enter", "open", "Open", "Open what is under the cursor: a run's charts, or a recipe's form."),
        Key("home.new", "n,l", "new_run", "Start", "Start the recipe under the recipes' cursor; asks first."),
        Key("home.edit", "e", "edit_recipe", "Edit", "Edit the recipe under the cursor."),
        Key("home.actions", "a", "actions", "Checkpoints", "Checkpoints of the run: resume, merge, quantize."),
        Key("home.replay", "r", "replay", "Replay", "Play the run under the cursor back."),
        Key("home.stop", "x", "stop", "Stop…", "Stop the run: after a checkpoint, or now; asks first."),
        Key("home.filter", "slash", "filter", "Filter", "Show only what contains some text.", "/"),
        Key("home.copy", "Y", "copy_path", "", "Copy the path of what is under the cursor."),
        Key("home.quit", "q", "quit_cockpit", "Quit", "Leave the cockpit; runs go on by themselves."),
    ),
    "recipe": (
        Key("recipe.save", "ctrl+s", "save", "Save", "Save the recipe; comments and order stay as they are."),
        Key("recipe.launch", "ctrl+l", "launch", "Launch", "Show what the run will cost, then start it."),
        Key("recipe.next", "ctrl+n", "next_problem", "Problem", "Go to the next problem."),
        Key("recipe.diff", "ctrl+d", "diff", "Diff", "Show what differs from the file (also: d outside a field)."),
        Key("recipe.undo", "ctrl+z", "undo", "Undo", "Take the last edit back."),
        Key("recipe.redo", "ctrl+y", "redo", "", "Do again what was undone."),
        Key("recipe.reset", "ctrl+r", "reset", "", "Put the field back to what the file says."),
        Key("recipe.find", "ctrl+f", "find", "Find", "Go to a field by its name."),
        Key("recipe.pick", "f2", "pick", "", "Choose the field's value from those that fit (also: enter)."),
    ),
    "checkpoints": (
        Key("checkpoints.resume", "r,1", "resume", "Resume", "Go on from the checkpoint under the cursor; asks first."),
        Key("checkpoints.merge", "m,2", "merge", "Merge", "Merge an adapter into its base, as a run of its own."),
        Key("checkpoints.quantize", "q,3", "quantize", "Quantize", "Write GGUF files of a model, as a run of its own."),
        Key("checkpoints.copy", "Y", "copy_path", "Copy path", "Copy the path of the checkpoint under the cursor."),
    ),
    "lists": (
        Key("lists.move", "up,down,j,k", "", "", "Move the cursor.", "↑↓ jk"),
        Key("lists.page", "pageup,pagedown", "", "", "A page up or down.", "pgup/pgdn"),
        Key("lists.ends", "home,end", "", "", "First or last.", "home/end"),
        Key("lists.panes", "tab,shift+tab", "", "", "Next or previous pane.", "tab"),
    ),
}
"""Scopes by name; "app" belongs to every screen, and "lists" is told in help only: lists bind their keys themselves."""


def bindings(*scopes: str) -> list[Binding]:
    """Textual's bindings for these scopes."""
    return [
        Binding(
            key.keys, key.action, key.label or key.help, show=False, key_display=key.drawn, tooltip=key.help, id=key.id
        )
        for scope in scopes
        for key in SCOPES[scope]
    ]


def footer_keys(*scopes: str) -> list[Key]:
    """The keys of these scopes that the line at the bottom names."""
    return [key for scope in scopes for key in SCOPES[scope] if key.label]


def scopes_of(screen: Screen[Any]) -> tuple[str, ...]:
    """The key scopes that a screen declares in `key_scopes`, and those of the application."""
    return (*getattr(screen, "key_scopes", ()), "app")
