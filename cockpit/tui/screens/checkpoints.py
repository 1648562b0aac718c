"""A run's checkpoints and results, with Resume, Merge, Quantize and Chat for the selected one."""

from __future__ import annotations

import time
from collections.abc import Hashable
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Button, Static
from textual.worker import get_current_worker

from cockpit.one_stage.fits import WHY_SHARDS, resume_words, why_no_export, why_no_merge, why_no_resume
from cockpit.one_stage.from_run import export_recipe, merge_recipe
from cockpit.one_stage.origins import base_of
from cockpit.one_stage.recipe import Input, OneStageRecipe
from cockpit.one_stage.sources import Item, Source, items
from cockpit.planning.models import Need, export_need, file_plans, merge_need
from cockpit.runs.reader import RunReader
from cockpit.runs.state import StageView
from cockpit.schedule.resolved_recipe import RunRecipe
from cockpit.talking.run_models import run_models
from cockpit.talking.target import ChatTarget
from cockpit.text import formatting
from cockpit.text.safe_text import safe_text
from cockpit.tui.app_protocol import app_of
from cockpit.tui.dialogs.confirm import Answer, ConfirmScreen
from cockpit.tui.dialogs.make import MEANINGS, MakeScreen, export_facts, merge_facts, plan_words
from cockpit.tui.dialogs.pick import PickScreen
from cockpit.tui.look.clipboard import copy
from cockpit.tui.look.covered import is_covered
from cockpit.tui.look.keys import bindings
from cockpit.tui.look.notices import say
from cockpit.tui.look.theme import STATE_COLOURS, ascii_only, palette, state_glyph
from cockpit.tui.widgets.key_bar import KeyBar
from cockpit.tui.widgets.line_list import LineList
from engines.artifacts.sharded import is_in_shards
from engines.chatting.lines import Job
from engines.emitter import wall_clock_s
from engines.run_dir.paths import RunDir, RunDirError
from engines.words import RunStatus, StageStatus
from recipes.fields import fields_of
from recipes.file_types import FIRST_FILE_TYPES

POLL_S = 2.0
READ_S = 0.3
"""Longest time of reading a long journal before the screen says how much of it was read."""


class ItemList(LineList[Item]):
    """Results and checkpoints, one line each."""

    has_header = True
    now = 0.0
    empty_message = "no checkpoints or results yet"

    def key_of(self, item: Item) -> Hashable:
        if item.row is None:
            return item.stage, None, None
        return item.stage, item.row.checkpoint.attempt, item.row.checkpoint.step

    def draw_header(self, width: int) -> Text:
        wide = width >= 100
        return Text(
            f"   {'stage':<14} {'step':>9} {'loss':>8} {'size':>9} {'when':<9}{' attempt' if wide else ''} note",
            no_wrap=True,
        )

    def draw_item(self, item: Item, width: int) -> Text:
        colours = palette(self.app.theme_variables)
        wide = width >= 100
        row = item.row
        if row is None:
            line = Text(f" {'#' if ascii_only() else '◆'} {safe_text(item.stage, 14):<14} ", no_wrap=True)
            line.append(f"{'finished':>9} {'':>8} {'':>9} {'':<9}{'        ' if wide else ''} ")
            line.append(item.kind, colours["success"])
            return line
        saved = row.checkpoint
        star = ("*" if ascii_only() else "★") if row.best else " "
        line = Text(" ", no_wrap=True)
        line.append(star, colours["warning"])
        step, loss = formatting.whole(saved.step), formatting.loss(row.eval_loss) if row.eval_loss is not None else ""
        line.append(f" {safe_text(item.stage, 14):<14} {step:>9} {loss:>8} {formatting.size(saved.bytes):>9} ")
        line.append(f"{formatting.day_or_clock(saved.t, self.now):<9}")
        if wide:
            line.append(f" {saved.attempt:>7}")
        line.append(" ")
        good = ("+" if ascii_only() else "✓") if saved.healthy else ("x" if ascii_only() else "✗")
        line.append(good if saved.healthy else f"{good} not healthy", colours["success" if saved.healthy else "error"])
        facts = (("best", row.best), ("newest", item.newest), ("removed", row.removed), ("replaced", row.superseded))
        line.append(" " + " · ".join(name for name, is_so in facts if is_so))
        if row.removed or row.superseded:
            line.stylize(colours["text-disabled"])
        return line


class CheckpointsScreen(Screen[None]):
    """The checkpoints of one run. The reason for a disabled button is next to it."""

    key_scopes: ClassVar[tuple[str, ...]] = ("checkpoints", "lists")
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("checkpoints")]
    CSS = """
    CheckpointsScreen > #title { height: 1; background: $surface; text-wrap: nowrap; text-overflow: ellipsis; }
    CheckpointsScreen ItemList { border: round $frame; }
    CheckpointsScreen ItemList { border-title-color: $text-muted; }
    CheckpointsScreen ItemList:focus { border: round $border; border-title-color: $foreground; }
    CheckpointsScreen > #actions { height: 5; border: round $frame; padding: 0 1; }
    CheckpointsScreen:focus-within > #actions:focus-within { border: round $border; }
    CheckpointsScreen #actions Horizontal { height: 1; }
    CheckpointsScreen #actions Button { width: 14; margin-right: 1; border: none; }
    CheckpointsScreen #actions Button:disabled { border: none; }
    CheckpointsScreen #actions Static { width: 1fr; height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.run_dir = run_dir
        self._run = RunDir(run_dir)
        self._reader = RunReader(self._run, indexed=True)
        self._state = RunStatus.QUEUED
        self._recipe = ""
        self._dependents: dict[str, list[str]] = {}
        self._items: list[Item] = []
        self._stages: list[StageView] = []
        """the stages at the time when the items were read; the state itself may still grow"""
        self._reading = False
        self._titled = False

    def compose(self) -> ComposeResult:
        yield Static(self._reading_words(0.0), id="title")
        listed = ItemList(id="items")
        listed.empty_message = "reading the journal…"
        yield listed
        with Vertical(id="actions"):
            for name, label in (("resume", "r Resume"), ("merge", "m Merge"), ("quantize", "g Quantize")):
                with Horizontal():
                    yield Button(Text(label), id=name, compact=True)
                    yield Static(id=f"why_{name}")
        yield KeyBar("checkpoints")

    def on_mount(self) -> None:
        self.query_one(ItemList).border_title = "Checkpoints and results"
        self.query_one(ItemList).focus()
        self.set_interval(POLL_S, self._read)
        self.call_after_refresh(self._read)

    def on_screen_resume(self) -> None:
        if self.is_mounted:
            self.call_after_refresh(self._read)

    # ---- reading the run

    def _read(self) -> None:
        if not self._reading and not is_covered(self):
            self._reading = True
            self.run_worker(self._read_run, thread=True, exit_on_error=False, group="read")

    def _read_run(self) -> None:
        try:
            while self._reader.behind and not self._reader.catch_up_until(time.monotonic() + READ_S):
                self.app.call_from_thread(self._show_reading, self._reader.share_read)
                if get_current_worker().is_cancelled:
                    self._reading = False
                    return
            state = self._reader.refresh()
            found = items(self._run, self._reader.state.stages)
            if not self._recipe:
                self._read_recipe()
        except (OSError, RunDirError) as error:
            self.app.call_from_thread(self._show_unreadable, str(error))
        else:
            self.app.call_from_thread(self._take, state, found)

    def _show_unreadable(self, why: str) -> None:
        """What a read failed with. The state and the list of the last read stay: a failed read changes neither."""
        self._reading = False
        if self.is_mounted:
            words = f" {safe_text(self._run.id, 100)} could not be read: {safe_text(why, 300)}"
            self.query_one("#title", Static).update(Text(words, no_wrap=True, overflow="ellipsis"))
            self._titled = False  # the next read that succeeds writes the title again

    def _show_reading(self, share: float) -> None:
        if self.is_mounted:
            self.query_one("#title", Static).update(self._reading_words(share))

    def _reading_words(self, share: float) -> Text:
        """How much of the journal was read, and nothing that the rest of it could contradict."""
        words = f" reading {formatting.percent(share)} of {safe_text(self._run.id, 100)}"
        return Text(words, no_wrap=True, overflow="ellipsis")

    def _read_recipe(self) -> None:
        try:
            self._recipe = str(self._run.read_run_json().get("recipe") or "run")
            plan = RunRecipe.read(self._run)
            for stage in plan.order:
                after = plan.descendants({stage}) - {stage}
                self._dependents[stage] = [name for name in plan.wanted() if name in after]
        except RunDirError:
            self._recipe = self._recipe or "run"

    def _take(self, state: RunStatus, found: list[Item]) -> None:
        self._reading = False
        if not self.is_mounted:
            return
        self._stages = self._reader.state.stages
        changed = (state, found) != (self._state, self._items)
        self._state, self._items = state, found
        listed = self.query_one(ItemList)
        if listed.empty_message != ItemList.empty_message:
            listed.empty_message = ItemList.empty_message
            listed.refresh()  # a list that stays empty is not drawn again by its items
        listed.now = wall_clock_s()
        listed.set_items(found)
        if changed or not self._titled:
            self._titled = True
            title = Text(" ", no_wrap=True, overflow="ellipsis")
            title.append(
                f"{state_glyph(state)} {state}",
                f"bold {palette(self.app.theme_variables).get(STATE_COLOURS.get(state, ''), '')}".strip(),
            )
            title.append(f"  {safe_text(self._run.id, 100)}", "bold")
            title.append(f"  {safe_text(self._recipe, 40)}", palette(self.app.theme_variables)["text-muted"])
            self.query_one("#title", Static).update(title)
        self._show_actions()

    @property
    def item(self) -> Item | None:
        """The selected item."""
        return self.query_one(ItemList).current

    def _source(self, kind: str) -> Source | None:
        item = self.item
        if item is not None and item.source is not None and item.source.kind == kind:
            return item.source
        finished = [other.source for other in self._items if other.row is None and other.source is not None]
        return next((source for source in finished if source.kind == kind), None)

    def _to_export(self) -> tuple[Source | None, Input | None]:
        """The selected adapter and its base model, if that is a local folder; otherwise a model without a base."""
        item = self.item
        if item is not None and item.source is not None and item.source.kind == "adapter":
            base = base_of(self._run, item.source)
            if base is not None and base.path is not None and base.path.is_dir():
                return item.source, base
        return self._source("model"), None

    # ---- buttons

    @on(LineList.Moved)
    def _show_actions(self) -> None:
        item = self.item
        rows = [other.row for other in self._items if other.row is not None]
        row = item.row if item is not None else None
        resume = why_no_resume(self._state, row, rows)
        adapter = self._source("adapter")
        base = base_of(self._run, adapter) if adapter is not None else None
        merge = why_no_merge(self._state, adapter, base)
        source, under = self._to_export()
        export = why_no_export(self._state, source)
        where = (
            f"from {item.stage}, step {row.checkpoint.step}"
            if item is not None and row is not None
            else "continue where the run ended"
        )
        self._show_action("resume", resume, where)
        self._show_action("merge", merge, f"{adapter.title} into {base.text}" if adapter and base else "")
        words = "" if source is None else f"{source.title} to GGUF" + (", merged during the export" if under else "")
        self._show_action("quantize", export, words)
        self.query_one(KeyBar).refresh()

    def _show_action(self, name: str, why_not: str, what: str) -> None:
        self.query_one(f"#{name}", Button).disabled = bool(why_not)
        colours = palette(self.app.theme_variables)
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(safe_text(why_not or what, 200), colours["text-muted"] if why_not else "")
        self.query_one(f"#why_{name}", Static).update(text)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002 - Textual's name
        """Hide the keys of disabled buttons."""
        if action in {"resume", "merge", "quantize"} and self.is_mounted:
            return not self.query_one(f"#{action}", Button).disabled
        return True

    @on(Button.Pressed, "#resume")
    def action_resume(self) -> None:
        item = self.item
        of_checkpoint = item if item is not None and item.row is not None else None
        dependents = self._dependents.get(item.stage, []) if of_checkpoint and item else []
        body = resume_words(self._stages, of_checkpoint, dependents)

        def answered(answer: str | None) -> None:
            if answer == "go":
                app_of(self).start(lambda: self._resume(of_checkpoint))

        answers = [Answer("no", "Cancel"), Answer("go", "Resume")]
        self.app.push_screen(ConfirmScreen(f"Resume {self._run.id}?", body, answers), answered)

    def _resume(self, item: Item | None) -> RunDir:
        from cockpit.launching.launch import resume

        row = item.row if item is not None else None
        stage = next((s for s in self._stages if item is not None and s.name == item.stage), None)
        continues = item is not None and item.newest and stage is not None and stage.state != StageStatus.SUCCEEDED
        if row is None or item is None or continues:
            resume(self._run)
        else:
            resume(self._run, stage=item.stage, checkpoint=row.checkpoint.step)
        return self._run

    @on(Button.Pressed, "#merge")
    def action_merge(self) -> None:
        source = self._source("adapter")
        base = base_of(self._run, source) if source is not None else None
        if source is None or base is None:
            return
        words = next(spec.choices for spec in fields_of("merge") if spec.path == "dtype")

        def answered(answer: list[str] | None) -> None:
            if answer:
                self._launch(merge_recipe(self._run, self._recipe, source, base, answer[0]))

        def need(marked: list[str]) -> Need:
            return merge_need(self._root, base.path, marked[0] if marked else "base")

        title = f"Merge {source.title}"
        screen = MakeScreen(title, merge_facts(source, base), words, ["base"], MEANINGS, need, "Merge", single=True)
        self.app.push_screen(screen, answered)

    @on(Button.Pressed, "#quantize")
    def action_quantize(self) -> None:
        source, base = self._to_export()
        if source is None:
            return
        folder = base.path if base is not None and base.path is not None else source.path
        words = next(spec.choices for spec in fields_of("export") if spec.path == "file_types")
        sizes = {word: plan_words(plan) for word, plan in file_plans(folder, words).items()}

        def answered(answer: list[str] | None) -> None:
            if answer:
                self._launch(export_recipe(self._run, self._recipe, source, answer, base=base))

        screen = MakeScreen(
            f"Quantize {source.title}",
            export_facts(source, base),
            words,
            FIRST_FILE_TYPES,
            sizes,
            lambda marked: export_need(self._root, folder, marked),
            "Quantize",
            single=False,
        )
        self.app.push_screen(screen, answered)

    def action_chat(self) -> None:
        """Talk with the selected result or checkpoint, or the newest; asks which where the run has GGUF files."""
        item = self.item
        chosen = item.source if item is not None else None
        if chosen is not None and is_in_shards(chosen.path):
            say(self, WHY_SHARDS, "warning")
            return
        found = [other.source for other in self._items if other.row is None and other.source is not None]
        models = dict(run_models(self._run, self._stages, chosen or next(iter(found), None)))

        def take(titles: list[str] | None) -> None:
            for title in (titles or [])[:1]:
                job = Job(model=str(models[title]))
                app_of(self).open_chat(ChatTarget(((f"{self._run.id}: {title}", job),)))

        if not models:
            say(self, "this run has no model or adapter yet", "warning")
        elif len(models) == 1:
            take(list(models))
        else:
            self.app.push_screen(PickScreen("Chat with", list(models)), take)

    def action_copy_path(self) -> None:
        item = self.item
        if item is None:
            return
        path = self._run.root / item.row.checkpoint.path if item.row is not None else item.source and item.source.path
        say(self, copy(self.app, str(path)))

    def _launch(self, recipe: OneStageRecipe) -> None:
        def work() -> RunDir:
            from cockpit.launching.launch import launch_text

            return launch_text(recipe.text, runs_root=self._root, folder=self._run.root, parent=recipe.parent)

        app_of(self).start(work)

    @property
    def _root(self) -> Path:
        return app_of(self).runs_root
