"""Every key in one table; the bindings, the key bar and the help screen are made from it.

Each key has an id. Keys that terminals and multiplexers use (ctrl+a, ctrl+b, ctrl+\\, ctrl+z) are not bound, except
ctrl+z for Undo in the recipe form.
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
        id: `scope.name`, the id of the binding.
        keys: Textual's names, comma-separated.
        action: the action of the screen (or `app.…`).
        label: its text in the key bar; empty: not in the key bar.
        help: what it does, in one sentence.
        shown: the key as it is drawn; empty: made from `keys`.
        bar: what the key bar draws, where one entry stands for this key and its opposite; empty: the key.
    """

    id: str
    keys: str
    action: str
    label: str
    help: str
    shown: str = ""
    bar: str = ""

    @property
    def drawn(self) -> str:
        """The key as help and palette show it."""
        return self.shown or self.keys.split(",")[0].replace("ctrl+", "^").replace("question_mark", "?")

    @property
    def in_bar(self) -> str:
        """The key as the key bar shows it."""
        return self.bar or self.drawn


_CHARTS = (
    Key("log_y", "y", "log_y", "Log", "Switch the value axis between linear and logarithmic."),
    Key("smooth", "m", "smooth", "Smooth", "Switch to the next smoothing: none, 0.6, 0.9, 0.97, 0.99."),
    Key("fit", "f", "fit", "Fit", "Fit the value axes to the data and show all steps."),
    Key("plan", "t", "plan", "", "Show the x axis up to max_steps, or fitted to the steps that exist."),
    Key("page", "v", "page", "", "View the next charts, where a stage has more than six."),
    Key("maximise", "z", "maximise", "Zoom", "Show only the selected chart, or all charts again."),
    Key("actions", "a", "actions", "Actions", "Show the run's checkpoints: resume, merge, quantize."),
    Key("zoom_in", "plus,equals_sign", "zoom(0.5)", "", "Show half as many steps.", "+"),
    Key("zoom_out", "minus", "zoom(2.0)", "", "Show twice as many steps.", "-"),
    *(
        Key(f"pane_{number}", f"{number}", f"pane({number})", "", f"Select the {nth} chart.")
        for number, nth in enumerate(("first", "second", "third", "fourth", "fifth", "sixth"), 1)
    ),
)
_LOG = (
    Key("output", "o", "output", "Output", "Read why the run ended, and the end of the stage's console.log."),
    Key("log_up", "up", "log_scroll(-1)", "", "Scroll the log up; at its end, the log follows new lines.", "↑"),
    Key("log_down", "down", "log_scroll(1)", "", "Scroll the log down.", "↓"),
    Key("log_page_up", "pageup", "log_scroll(-10)", "", "Scroll the log up by ten lines.", "pgup"),
    Key("log_page_down", "pagedown", "log_scroll(10)", "", "Scroll the log down by ten lines.", "pgdn"),
    Key("copy", "Y", "copy_path", "", "Copy the path of the run directory."),
)


def _of(scope: str, keys: tuple[Key, ...], *, named: tuple[str, ...] | None = None) -> tuple[Key, ...]:
    """Keys that live runs and replays share, for one scope; with `named`, only those keys are in the key bar."""
    return tuple(
        replace(key, id=f"{scope}.{key.id}", label=key.label if named is None or key.id in named else "")
        for key in keys
    )


SCOPES: dict[str, tuple[Key, ...]] = {
    "app": (
        Key("app.help", "question_mark,f1", "app.keys_help", "Help", "Show every key of this screen.", "?"),
        Key("app.palette", "ctrl+p", "app.command_palette", "", "Search the commands.", "^p"),
        Key("app.back", "escape,q", "app.back", "Back", "Close this screen; training continues (also: q).", "esc"),
        Key("app.quit", "ctrl+q", "app.leave", "", "Quit Cockpit; training continues.", "^q"),
    ),
    "run": (
        Key("run.freeze", "space", "freeze", "Freeze", "Freeze or unfreeze the view; training continues."),
        Key("run.checkpoint", "k", "checkpoint", "Ckpt", "Request a checkpoint at the next step."),
        Key("run.stop", "x", "stop", "Stop…", "Stop the run, after a checkpoint or now; asks first."),
        Key(
            "run.pause",
            "p",
            "pause_or_continue",
            "",
            "Pause training at the next step, or continue it; memory is kept.",
        ),
        Key("run.evaluate", "e", "evaluate", "", "Evaluate on the held-out data at the next step; asks first."),
        Key("run.sample", "s", "sample_text", "", "Sample text at the next step; asks for the prompt."),
        Key("run.learning_rate", "l", "learning_rate", "", "Change the peak learning rate; asks for the value."),
        Key("run.max_steps", "n", "max_steps", "", "Change the step at which the stage ends; asks for the value."),
        *_of("run", _CHARTS),
        Key("run.left", "left", "inspect(-1)", "", "Inspect the previous step.", "←"),
        Key("run.right", "right", "inspect(1)", "", "Inspect the next step.", "→"),
        Key("run.far_left", "shift+left", "inspect(-50)", "", "Inspect 50 steps earlier.", "shift+←"),
        Key("run.far_right", "shift+right", "inspect(50)", "", "Inspect 50 steps later.", "shift+→"),
        Key("run.stage_back", "left_square_bracket", "stage(-1)", "", "Show the previous stage.", "["),
        Key("run.stage_on", "right_square_bracket", "stage(1)", "", "Show the next stage.", "]"),
        Key("run.follow", "0", "follow", "", "Follow the running stage; reset zoom and selection.", "0"),
        *_of("run", _LOG),
        Key("run.log_start", "home", "log_edge(0)", "", "Show the oldest lines of the log.", "home"),
        Key("run.log_end", "end", "log_edge(1)", "", "Show the newest lines of the log, and follow.", "end"),
    ),
    "replay": (
        Key("replay.play", "space", "play", "Play", "Play or pause."),
        Key("replay.back", "left", "seek(-1)", "±1", "Go back one sample.", "←", "←/→"),
        Key("replay.on", "right", "seek(1)", "", "Go forward one sample.", "→"),
        Key("replay.far_back", "shift+left", "seek(-50)", "", "Go back 50 samples.", "shift+←"),
        Key("replay.far_on", "shift+right", "seek(50)", "", "Go forward 50 samples.", "shift+→"),
        Key(
            "replay.slower",
            "left_square_bracket",
            "speed(-1)",
            "Speed",
            "Play slower, down to half of real time.",
            "[",
            "[ ]",
        ),
        Key(
            "replay.faster",
            "right_square_bracket",
            "speed(1)",
            "",
            "Play faster, up to 64 times, then as fast as possible.",
            "]",
        ),
        Key("replay.start", "home", "edge(0)", "", "Go to the beginning.", "home"),
        Key("replay.end", "end", "edge(1)", "", "Go to the end.", "end"),
        Key("replay.goto", "g", "goto", "Goto", "Go to a step by its number."),
        Key(
            "replay.next_event",
            "e",
            "event(1)",
            "Event",
            "Go to the next event (checkpoint, guard, failure, stage).",
            "e",
            "e/E",
        ),
        Key("replay.last_event", "E", "event(-1)", "", "Go to the previous event.", "E"),
        *_of("replay", _CHARTS, named=("log_y", "smooth")),
        Key("replay.follow", "0", "follow", "", "Show the stage at the playhead; reset zoom and selection."),
        *_of("replay", _LOG),
    ),
    "home": (
        Key("home.open", "enter", "open", "Open", "Open the selected run, or the selected recipe's form."),
        Key("home.new", "n,l", "new_run", "Start", "Start the selected recipe; asks first."),
        Key("home.edit", "e", "edit_recipe", "Edit", "Edit the selected recipe."),
        Key(
            "home.actions",
            "a",
            "actions",
            "Checkpoints",
            "Show the run's checkpoints: resume, merge, quantize.",
        ),
        Key("home.replay", "r", "replay", "Replay", "Replay the selected run."),
        Key("home.stop", "x", "stop", "Stop…", "Stop the run, after a checkpoint or now; asks first."),
        Key("home.note", "N", "note_run", "", "Write a line about the run, which every list shows."),
        Key("home.rename", "m", "rename_run", "", "Rename the run; asks for the name."),
        Key("home.prune", "P", "prune_run", "", "Remove checkpoints and outputs that nothing needs; asks first."),
        Key("home.remove", "delete", "remove_run", "", "Remove the run from the disk; asks first.", "del"),
        Key("home.sizes", "u", "show_sizes", "", "Show what runs take on the disk."),
        Key("home.filter", "slash", "filter", "Filter", "Show only the recipes and runs that contain a text.", "/"),
        Key("home.copy", "Y", "copy_path", "", "Copy the path of the selected recipe or run."),
        Key(
            "home.quit",
            "q",
            "quit_cockpit",
            "Quit",
            "Quit Cockpit; runs continue.",
        ),
    ),
    "recipe": (
        Key("recipe.save", "ctrl+s", "save", "Save", "Save the recipe; comments and order are kept."),
        Key("recipe.launch", "ctrl+l", "launch", "Launch", "Show the estimate and ask whether to start the run."),
        Key("recipe.next", "ctrl+n", "next_problem", "Problem", "Go to the next problem."),
        Key("recipe.diff", "ctrl+d", "diff", "Diff", "Show the unsaved changes (also: d outside a field)."),
        Key("recipe.undo", "ctrl+z", "undo", "Undo", "Undo the last edit."),
        Key("recipe.redo", "ctrl+y", "redo", "", "Redo the last edit that was undone."),
        Key("recipe.reset", "ctrl+r", "reset", "", "Reset the field to the value in the file."),
        Key(
            "recipe.unknown",
            "ctrl+k",
            "remove_unknown",
            "",
            "Remove keys that no field has from the stage.",
        ),
        Key("recipe.find", "ctrl+f", "find", "Find", "Go to a field by its name."),
        Key("recipe.rows", "ctrl+t", "rows", "Rows", "Show the rows of the stage's data as the model will see them."),
        Key("recipe.pick", "f2", "pick", "", "Choose the field's value from a list (also: enter)."),
    ),
    "checkpoints": (
        Key("checkpoints.resume", "r,1", "resume", "Resume", "Resume from the selected checkpoint; asks first."),
        Key("checkpoints.merge", "m,2", "merge", "Merge", "Merge an adapter into its base model, in a new run."),
        Key("checkpoints.quantize", "g,3", "quantize", "Quantize", "Write GGUF files of a model, in a new run."),
        Key(
            "checkpoints.chat",
            "c",
            "chat",
            "Chat",
            "Talk with the selected model or adapter, the newest, or a GGUF file.",
        ),
        Key("checkpoints.copy", "Y", "copy_path", "Copy path", "Copy the path of the selected checkpoint or result."),
    ),
    "rows": (
        Key("rows.on", "right,n,j", "row(1)", "Row", "Show the next row.", "→", "←/→"),
        Key("rows.back", "left,p,k", "row(-1)", "", "Show the previous row.", "←"),
        Key("rows.far_on", "shift+right", "far(50)", "", "Show the row after 50 more.", "shift+→"),
        Key("rows.far_back", "shift+left", "far(-50)", "", "Show the row 50 rows before.", "shift+←"),
        Key("rows.find", "slash", "find", "Find", "Find a row that contains a text.", "/"),
        Key("rows.find_on", "f,f3", "find_next(1)", "Next", "Find the next row with the text.", "f", "f/F"),
        Key("rows.find_back", "F,shift+f3", "find_next(-1)", "", "Find the previous row with the text.", "F"),
        Key("rows.goto", "g", "goto", "Goto", "Go to a row by its number."),
        Key("rows.split", "s", "split", "Split", "Show the next split: train, val, test."),
        Key("rows.start", "home", "edge(0)", "", "Show the first row.", "home"),
        Key("rows.end", "end", "edge(1)", "", "Show the last row.", "end"),
        Key("rows.up", "up", "scroll_rows(-1)", "", "Scroll up.", "↑"),
        Key("rows.down", "down", "scroll_rows(1)", "", "Scroll down.", "↓"),
        Key("rows.page_up", "pageup", "scroll_rows(-15)", "", "Scroll up by 15 lines.", "pgup"),
        Key("rows.page_down", "pagedown,space", "scroll_rows(15)", "", "Scroll down by 15 lines.", "pgdn"),
    ),
    "chat": (
        Key("chat.stop", "escape", "stop_or_back", "", "Stop the answer; without one, close the chat.", "esc"),
        Key(
            "chat.regenerate",
            "ctrl+r",
            "regenerate",
            "Again",
            "Ask for the last answer again, with another seed; load a model again that failed.",
        ),
        Key(
            "chat.sampling", "ctrl+g", "sampling", "Sampling", "Edit temperature, top_p, top_k, penalty, length, seed."
        ),
        Key("chat.adapter", "ctrl+t", "adapter", "Adapter", "Switch the adapter off or on for the next answers."),
        Key("chat.prompts", "ctrl+l", "prompts", "Prompts", "Choose a saved prompt."),
        Key("chat.system", "ctrl+o", "system", "System", "Edit the system prompt."),
        Key("chat.save", "ctrl+s", "save", "Save", "Add the conversation to a file, as a row of messages."),
        Key("chat.new", "ctrl+n", "new", "New", "Begin a new conversation."),
        Key("chat.copy", "f2", "copy_answer", "", "Copy the last answer."),
        Key("chat.keep", "f3", "keep_prompt", "", "Save the prompt under a name."),
        Key("chat.page_up", "pageup", "scroll_talk(-1)", "", "Scroll the conversation up.", "pgup"),
        Key("chat.page_down", "pagedown", "scroll_talk(1)", "", "Scroll the conversation down.", "pgdn"),
        Key("chat.line", "ctrl+j", "new_line", "", "Begin a new line of the prompt; enter sends it.", "^j"),
    ),
    "blind": (
        Key("blind.left", "1", "vote('1')", "Left", "Vote for answer 1.", "1"),
        Key("blind.right", "2", "vote('2')", "Right", "Vote for answer 2.", "2"),
        Key("blind.tie", "t", "vote('tie')", "Tie", "Vote for neither: they are equally good."),
        Key("blind.skip", "s", "vote('skip')", "Skip", "Leave the pair without an opinion."),
        Key("blind.undo", "u", "undo", "Undo", "Undo the last vote."),
        Key("blind.end", "e", "end", "End…", "End the votes and show which model wrote which; asks first."),
        Key("blind.up", "up", "scroll_both(-1)", "", "Scroll both answers up.", "↑"),
        Key("blind.down", "down", "scroll_both(1)", "", "Scroll both answers down.", "↓"),
        Key("blind.page_up", "pageup", "scroll_both(-10)", "", "Scroll both answers up by ten lines.", "pgup"),
        Key(
            "blind.page_down", "pagedown,space", "scroll_both(10)", "", "Scroll both answers down by ten lines.", "pgdn"
        ),
    ),
    "answers": (
        Key("answers.on", "right,n,j", "row(1)", "Row", "Show the next row of the filter.", "→", "←/→"),
        Key("answers.back", "left,p,k", "row(-1)", "", "Show the previous row of the filter.", "←"),
        Key(
            "answers.filter",
            "tab,v",
            "filter(1)",
            "Filter",
            "Choose the next filter: all, failed, passed, changed.",
            "tab",
        ),
        Key("answers.filter_back", "shift+tab", "filter(-1)", "", "Choose the previous filter.", "shift+tab"),
        Key("answers.find", "slash", "find", "Find", "Find a row of the filter that contains a text.", "/"),
        Key("answers.find_on", "f,f3", "find_next(1)", "Next", "Find the next row with the text.", "f", "f/F"),
        Key("answers.find_back", "F,shift+f3", "find_next(-1)", "", "Find the previous row with the text.", "F"),
        Key("answers.goto", "g", "goto", "Goto", "Go to a row by its number."),
        Key("answers.start", "home", "edge(0)", "", "Show the first row.", "home"),
        Key("answers.end", "end", "edge(1)", "", "Show the last row.", "end"),
        Key("answers.up", "up", "scroll_rows(-1)", "", "Scroll up.", "↑"),
        Key("answers.down", "down", "scroll_rows(1)", "", "Scroll down.", "↓"),
        Key("answers.page_up", "pageup", "scroll_rows(-15)", "", "Scroll up by 15 lines.", "pgup"),
        Key("answers.page_down", "pagedown,space", "scroll_rows(15)", "", "Scroll down by 15 lines.", "pgdn"),
    ),
    "lists": (
        Key("lists.move", "up,down,j,k", "", "", "Move the cursor.", "↑↓ jk"),
        Key("lists.page", "pageup,pagedown", "", "", "Move up or down by a page.", "pgup/pgdn"),
        Key("lists.ends", "home,end", "", "", "Go to the first or last item.", "home/end"),
        Key("lists.panes", "tab,shift+tab", "", "", "Go to the next or previous pane.", "tab"),
    ),
}
"""Scopes by name. "app" belongs to every screen. "lists" is only for the help: lists bind their keys themselves."""


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
    """The keys of these scopes that have a label for the key bar."""
    return [key for scope in scopes for key in SCOPES[scope] if key.label]


def scopes_of(screen: Screen[Any]) -> tuple[str, ...]:
    """The key scopes that a screen declares in `key_scopes`, and the application's."""
    return (*getattr(screen, "key_scopes", ()), "app")
