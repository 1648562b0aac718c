"""Home: the machine, the recipes, the runs, and a preview of the selected item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import Input, Static
from textual.worker import get_current_worker

from cockpit.forms.shelf import RecipeEntry, Shelf
from cockpit.runs.state import RunState
from cockpit.runs.summaries import RunSummary
from cockpit.runs.watch import RunWatch
from cockpit.text.formatting import percent
from cockpit.text.safe_text import safe_text
from cockpit.tui.app_protocol import app_of
from cockpit.tui.dialogs.confirm import Answer, ConfirmScreen
from cockpit.tui.look.clipboard import copy
from cockpit.tui.look.covered import is_covered
from cockpit.tui.look.keys import bindings
from cockpit.tui.look.notices import say, say_error
from cockpit.tui.look.theme import palette
from cockpit.tui.widgets.key_bar import KeyBar
from cockpit.tui.widgets.line_list import LineList
from cockpit.tui.widgets.preview import recipe_preview
from cockpit.tui.widgets.preview_pane import PreviewPane
from cockpit.tui.widgets.recipe_list import RecipeList
from cockpit.tui.widgets.run_table import RunTable
from engines.emitter import wall_clock_s
from engines.run_dir.paths import RunDir
from recipes.problems import OperatorError

if TYPE_CHECKING:
    from cockpit.planning.stages import Plan

POLL_S = 2.0
SHELF_EVERY = 3
PREVIEW_AFTER_S = 0.12
NO_MATCH = "no {} match {}"
READ_S = 0.3
"""Time of one scan for reading long journals; the rows of runs that need more say how much was read."""
READ_AGAIN_S = 0.1


@dataclass
class _Scan:
    """The result of one scan of the disk; None: not scanned."""

    runs: list[RunSummary] | None = None
    recipes: list[RecipeEntry] | None = None
    machine: list[str] = field(default_factory=list)
    now: float = 0.0


class HomeScreen(Screen[None]):
    """Recipes at the left, runs newest first, and a preview."""

    key_scopes: ClassVar[tuple[str, ...]] = ("home", "lists")
    leads_back = False
    """Home is the first screen: its key bar has no Esc."""
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("home"), Binding("escape", "clear_filter", "Clear", show=False)]
    CSS = """
    HomeScreen > #machine { height: 1; background: $surface; }
    HomeScreen > #body { height: 1fr; }
    HomeScreen RecipeList { width: 24; height: 1fr; border: round $frame; }
    HomeScreen #main { width: 1fr; }
    HomeScreen RunTable { border: round $frame; }
    HomeScreen PreviewPane { height: 10; border: round $frame; }
    HomeScreen PreviewPane.-ended { height: 14; }
    HomeScreen RecipeList, HomeScreen RunTable, HomeScreen PreviewPane { border-title-color: $text-muted; }
    HomeScreen RecipeList:focus, HomeScreen RunTable:focus { border: round $border; border-title-color: $foreground; }
    HomeScreen > #filter { display: none; height: 1; background: $surface; }
    HomeScreen.-filtering > #filter { display: block; }
    HomeScreen.-tall PreviewPane { height: 40%; }
    HomeScreen.-wide RecipeList { width: 26; }
    HomeScreen.-wide #main { layout: horizontal; }
    HomeScreen.-wide PreviewPane { width: 50; height: 1fr; }
    """

    def __init__(self, runs_root: Path) -> None:
        super().__init__()
        self.runs_root = runs_root
        self._watch = RunWatch(runs_root)
        self._shelf = Shelf()
        self._runs: list[RunSummary] = []
        self._recipes: list[RecipeEntry] = []
        self._plans: dict[Path, Plan | None] = {}
        self._scanning = False
        self._scans = 0
        self._due: Timer | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="machine")
        with Horizontal(id="body"):
            yield RecipeList(id="recipes")
            with Vertical(id="main"):
                yield RunTable(id="runs")
                yield PreviewPane()
        yield Input(placeholder="filter recipes and runs…", compact=True, id="filter")
        yield KeyBar("home")

    def on_mount(self) -> None:
        self.query_one(RecipeList).border_title = "Recipes"
        self.query_one(RunTable).border_title = "Runs"
        self.query_one(RunTable).empty_message = self.query_one(RecipeList).empty_message = "loading…"
        self.query_one(RecipeList).focus()
        self.set_interval(POLL_S, self._scan)

    def on_screen_resume(self) -> None:
        """Scan again after the paint: the first scan imports the recipes' schema, which takes longer than drawing."""
        if self.is_mounted:
            self._watch.look_again()
            self._scans = 0
            self.call_after_refresh(self._scan)

    # ---- scanning the disk, in threads

    def _scan(self) -> None:
        if not self._scanning and not is_covered(self):
            self._scanning = True
            with_recipes = self._scans % SHELF_EVERY == 0
            self._scans += 1
            current = self.query_one(RunTable).current if self.is_mounted else None
            self.run_worker(
                lambda: self._scan_disk(with_recipes, current), thread=True, exit_on_error=False, group="scan"
            )

    def _scan_disk(self, with_recipes: bool, current: RunSummary | None) -> None:
        from cockpit.headless.machine_line import look, still_words, words

        found = _Scan(now=wall_clock_s())
        try:
            found.recipes = self._shelf.entries() if with_recipes else None
            found.runs = self._watch.poll(budget_s=READ_S)
            sample = own = None
            if current is not None and current.state.is_live and current.reading is None:
                with self._watch.reading(current.id) as reader:
                    old = reader.health(current.state).machine_is_old
                    sample = None if old else reader.state.machine()
                    own = reader.state.own_devices()
            machine, is_idle = look(self.runs_root), not any(run.state.is_live for run in found.runs or ())
            found.machine = still_words(machine) if is_idle else words(machine, sample, own)
        finally:
            self.app.call_from_thread(self._take, found)

    def _take(self, found: _Scan) -> None:
        self._scanning = False
        if not self.is_mounted:
            return
        if found.machine:
            self._show_machine(found.machine)
        table = self.query_one(RunTable)
        if found.recipes is not None and (found.recipes != self._recipes or not self._recipes):
            self._recipes = found.recipes
            self._plans.clear()
            self._show_recipes()
        if found.runs is not None:
            table.now = found.now
            if found.runs != self._runs or not table.items:
                self._runs = found.runs
                self._show_runs()
                self.query_one(KeyBar).refresh()
            for run in self._runs:
                if run.state.is_live:
                    table.refresh_item(run.path)
            if any(run.reading is not None for run in self._runs):
                self.set_timer(READ_AGAIN_S, self._scan)
        self._preview_soon()

    def _show_machine(self, found: list[str]) -> None:
        line = Text(no_wrap=True, overflow="crop")
        line.append(" cockpit", "bold")
        muted = palette(self.app.theme_variables)["text-muted"]
        for word in found:
            if line.cell_len + len(word) + 3 > self.size.width:
                break
            line.append("   " + word, muted)
        bar = self.query_one("#machine", Static)
        if bar.content != line:
            bar.update(line)

    # ---- lists

    @property
    def _wanted(self) -> str:
        return self.query_one("#filter", Input).value.strip().lower()

    def _show_recipes(self) -> None:
        wanted = self._wanted
        shown = [
            entry for entry in self._recipes if wanted in f"{entry.path.stem} {entry.name} {entry.description}".lower()
        ]
        listed = self.query_one(RecipeList)
        listed.empty_message = NO_MATCH.format("recipes", safe_text(wanted, 40)) if wanted else RecipeList.empty_message
        listed.show(shown)
        listed.border_title = f"Recipes ({len(shown)})"

    @property
    def _why_empty(self) -> str:
        """What an empty list of runs says: how to start one, or why the folder cannot be read."""
        return safe_text(self._watch.trouble) or RunTable.empty_message

    def _show_runs(self) -> None:
        wanted = self._wanted
        shown = [run for run in self._runs if wanted in f"{run.id} {run.recipe} {run.state} {run.stage or ''}".lower()]
        table = self.query_one(RunTable)
        table.empty_message = NO_MATCH.format("runs", safe_text(wanted, 40)) if wanted else self._why_empty
        table.set_items(shown)
        live = sum(1 for run in self._runs if run.state.is_live)
        of = f"{len(shown)} of {len(self._runs)}" if wanted else f"{len(shown)}"
        table.border_title = f"Runs ({of}){f' · {live} live' if live else ''}"

    @on(Input.Changed, "#filter")
    def _filtered(self) -> None:
        self._show_recipes()
        self._show_runs()

    @on(Input.Submitted, "#filter")
    def _filter_taken(self) -> None:
        table = self.query_one(RunTable)
        (table if table.items else self.query_one(RecipeList)).focus()

    def action_filter(self) -> None:
        self.add_class("-filtering")
        self.query_one("#filter", Input).focus()

    def action_clear_filter(self) -> None:
        if self.has_class("-filtering"):
            box = self.query_one("#filter", Input)
            had_focus = box.has_focus
            box.value = ""
            self.remove_class("-filtering")
            if had_focus:
                self.query_one(RunTable).focus()

    # ---- preview

    @property
    def on_recipes(self) -> bool:
        """Whether the selected item is a recipe; otherwise it is a run."""
        return self.query_one(RecipeList).has_focus or not self.query_one(RunTable).items

    @property
    def entry(self) -> RecipeEntry | None:
        """The selected recipe."""
        return self.query_one(RecipeList).entry

    @property
    def run_under_cursor(self) -> RunSummary | None:
        """The selected run."""
        return self.query_one(RunTable).current

    @on(LineList.Moved)
    def _moved(self) -> None:
        self._preview_soon()
        self.query_one(KeyBar).refresh()

    def on_descendant_focus(self) -> None:
        self._preview_soon()
        self.query_one(KeyBar).refresh()

    def _preview_soon(self) -> None:
        """Show the selected item's preview once the cursor rests on it."""
        if self._due is not None:
            self._due.stop()
        self._due = self.set_timer(PREVIEW_AFTER_S, self._preview)

    def _preview(self) -> None:
        pane = self.query_one(PreviewPane)
        entry, run = self.entry, self.run_under_cursor
        if self.on_recipes and entry is not None:
            pane.set_title(entry.path.name)
            colours, width = palette(self.app.theme_variables), pane.size.width - 2
            pane.show_text(recipe_preview(entry, self._plan_of(entry), colours, width))
        elif run is not None and run.reading is not None:
            self._show_reading(run, run.reading)
        elif run is not None and run.state == "unreadable":
            pane.set_title(run.id)
            pane.show_text(Text(safe_text(run.reason)))
        elif run is not None:
            # A separate group: an exclusive worker cancels the others of its group, even one that has not started.
            self.run_worker(
                lambda: self._read_run(run), thread=True, exclusive=True, exit_on_error=False, group="preview"
            )
        else:
            pane.set_title("Preview")
            pane.show_text(Text("no recipe or run selected"))

    def _plan_of(self, entry: RecipeEntry) -> Plan | None:
        if entry.path not in self._plans:
            from cockpit.launching.run_outputs import outputs_in
            from cockpit.planning.stages import plan
            from recipes.load import load_recipe

            try:
                loaded = None if entry.problems else load_recipe(entry.path, (), outputs_in(self.runs_root))
                self._plans[entry.path] = None if loaded is None else plan(loaded.recipe, loaded.graph)
            except OperatorError:
                self._plans[entry.path] = None
        return self._plans[entry.path]

    def _read_run(self, run: RunSummary) -> None:
        worker = get_current_worker()
        while (share := self._watch.read_on(run.id, READ_S)) is not None:
            self.app.call_from_thread(self._show_reading, run, share)
            if worker.is_cancelled:  # the cursor is on another row
                return
        with self._watch.reading(run.id) as reader:  # the lock keeps the state unchanged while the screen draws it
            self.app.call_from_thread(self._show_run, run, reader.state)

    def _show_reading(self, run: RunSummary, share: float) -> None:
        if self._is_selected(run):
            pane = self.query_one(PreviewPane)
            pane.set_title(run.id)
            pane.show_text(Text(f"reading {percent(share)} of the journal"))

    def _is_selected(self, run: RunSummary) -> bool:
        now = self.run_under_cursor if self.is_mounted else None
        return now is not None and now.path == run.path and not self.on_recipes

    def _show_run(self, run: RunSummary, state: RunState) -> None:
        now = self.run_under_cursor
        if now is not None and self._is_selected(run):
            pane = self.query_one(PreviewPane)
            pane.set_title(run.id)
            pane.show_run(now, state, wall_clock_s())

    # ---- keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002 - Textual's name
        """Offer only what is possible with the selected item."""
        if not self.is_mounted:
            return True
        run = None if self.on_recipes else self.run_under_cursor
        if action in {"actions", "replay", "note_run"}:
            return run is not None and RunDir(Path(run.path)).closed_to_us() is None
        if action in {"rename_run", "prune_run", "remove_run"}:
            return run is not None and not run.state.is_live
        if action == "stop":
            return run is not None and run.state.is_live
        if action in {"new_run", "edit_recipe"}:
            return self.entry is not None
        return True

    @on(LineList.Chosen)
    def action_open(self) -> None:
        if self.on_recipes:
            self.action_edit_recipe()
        elif (run := self.run_under_cursor) is not None:
            if RunDir(Path(run.path)).closed_to_us() is None:
                app_of(self).open_run(Path(run.path))
            else:
                say(self, f"{run.id} cannot be opened: permission denied", "error")

    def action_edit_recipe(self) -> None:
        if self.entry is not None:
            app_of(self).open_recipe(self.entry.path)

    def action_new_run(self) -> None:
        entry = self.entry
        if entry is None:
            return
        from cockpit.launching.run_outputs import outputs_in
        from cockpit.planning.stages import plan
        from recipes.load import load_recipe

        try:
            loaded = load_recipe(entry.path, (), outputs_in(self.runs_root))
        except OperatorError as error:
            say(self, f"{entry.path.name} cannot start: {error.message}", "error")
            return
        app_of(self).ask_to_launch(loaded, plan(loaded.recipe, loaded.graph))

    def action_replay(self) -> None:
        if self.run_under_cursor is not None:
            try:
                app_of(self).open_replay(Path(self.run_under_cursor.path))
            except OperatorError as error:
                say_error(self, error)

    def action_actions(self) -> None:
        if self.run_under_cursor is not None:
            app_of(self).open_checkpoints(Path(self.run_under_cursor.path))

    def action_stop(self) -> None:
        run = self.run_under_cursor
        if run is not None and run.state.is_live:
            app_of(self).ask_to_stop(RunDir(Path(run.path)))

    # Keeping house imports the schema of recipes, which Home does not load before it is needed.

    def action_note_run(self) -> None:
        from cockpit.tui.screens.housekeeping import ask_note

        self._keep_house(ask_note)

    def action_rename_run(self) -> None:
        from cockpit.tui.screens.housekeeping import ask_rename

        self._keep_house(ask_rename)

    def action_prune_run(self) -> None:
        from cockpit.tui.screens.housekeeping import ask_prune

        self._keep_house(ask_prune)

    def action_remove_run(self) -> None:
        from cockpit.tui.screens.housekeeping import ask_remove

        self._keep_house(ask_remove)

    def action_show_sizes(self) -> None:
        from cockpit.tui.screens.housekeeping import show_sizes

        show_sizes(self, self.runs_root)

    def _keep_house(self, ask: Callable[[Screen[None], RunDir, Callable[[], None]], None]) -> None:
        run = self.run_under_cursor
        if run is not None and not self.on_recipes:
            ask(self, RunDir(Path(run.path)), self._scan_again)

    def _scan_again(self) -> None:
        self._watch.look_again()
        self._scan()

    def action_copy_path(self) -> None:
        run, entry = self.run_under_cursor, self.entry
        path = str(entry.path) if self.on_recipes and entry else (run.path if run else "")
        if path:
            say(self, copy(self.app, path))

    def action_quit_cockpit(self) -> None:
        live = sum(1 for run in self._runs if run.state.is_live)
        if not live:
            self.app.exit()
            return

        def answered(answer: str | None) -> None:
            if answer == "quit":
                self.app.exit()

        runs = (
            "1 run is live: its training continues" if live == 1 else f"{live} runs are live: their training continues"
        )
        body = f"{runs} without this screen.\nTo show the newest run again: cockpit attach last"
        self.app.push_screen(
            ConfirmScreen("Quit Cockpit?", body, [Answer("stay", "Cancel"), Answer("quit", "Quit")]), answered
        )
