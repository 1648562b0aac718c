"""Checkpoints: the possible actions, and the reasons for disabled buttons."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Button

from cockpit.talking.target import ChatTarget
from cockpit.tui.app import CockpitApp
from cockpit.tui.dialogs.confirm import ConfirmScreen
from cockpit.tui.dialogs.make import MakeScreen
from cockpit.tui.screens.checkpoints import CheckpointsScreen, ItemList
from engines.events.runs import RunEnded, RunStarted
from engines.run_dir.locks import Lock
from engines.run_dir.paths import RunDir
from engines.words import RunStatus, StartReason
from recipes.file_types import FILE_TYPES
from recipes.load import LoadedRecipe
from recipes.problems import OperatorError
from recipes.stages.export import ExportStage
from recipes.stages.merge import MergeStage
from tests.tui.journals import Journal
from tests.tui.looking import HOSTILE, SIZES, no_control_characters, picture, until, until_seen
from tests.tui.made_runs import make_run


class CheckpointsApp(CockpitApp):
    """Opens at one run's checkpoints."""

    def __init__(self, run: RunDir) -> None:
        super().__init__(run.root.parent)
        self._run = run

    def open_first(self) -> None:
        self.open_checkpoints(self._run.root)


@asynccontextmanager
async def opened(run: RunDir, size: tuple[int, int] = SIZES[0]) -> AsyncIterator[tuple[CheckpointsScreen, Pilot[None]]]:
    app = CheckpointsApp(run)
    async with app.run_test(size=size, notifications=True) as pilot:
        screen = app.screen
        assert isinstance(screen, CheckpointsScreen)
        await until(pilot, lambda: bool(screen.query_one(ItemList).items), "checkpoints")
        yield screen, pilot


def disabled(screen: CheckpointsScreen) -> dict[str, bool]:
    return {name: screen.query_one(f"#{name}", Button).disabled for name in ("resume", "merge", "quantize")}


def adapter_run(tmp_path: Path) -> RunDir:
    run = make_run(tmp_path / "runs", kind="finetune")
    base = tmp_path / "base"
    base.mkdir()
    spec = {"inputs": {"model": {"origin": "path", "name": "base", "path": str(base), "manifest_sha256": "b" * 64}}}
    run.stage_json("train", 1).write_text(json.dumps(spec))
    return run


@pytest.mark.parametrize("size", SIZES)
async def test_checkpoints_are_listed_with_their_marks(tmp_path: Path, size: tuple[int, int]) -> None:
    async with opened(make_run(tmp_path / "runs"), size) as (_screen, pilot):
        seen = picture(pilot.app)
        assert "★ train" in seen
        assert "best · newest" in seen
        assert "removed" in seen
        assert "✓" in seen


@pytest.mark.parametrize("size", SIZES)
async def test_disabled_buttons_show_the_reason(tmp_path: Path, size: tuple[int, int]) -> None:
    async with opened(make_run(tmp_path / "runs"), size) as (screen, pilot):
        assert disabled(screen) == {"resume": False, "merge": True, "quantize": True}
        seen = picture(pilot.app)
        assert "no adapter here" in seen
        assert "no model here" in seen
        before = len(pilot.app.screen_stack)
        await pilot.press("m", "g", "2", "3", "end")
        await until_seen(pilot, "this checkpoint was removed")
        await pilot.press("r")
        assert len(pilot.app.screen_stack) == before


async def test_a_live_run_has_only_disabled_buttons(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", state=None)
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({"pid": 0})
    try:
        async with opened(run) as (screen, pilot):
            await until_seen(pilot, "running")
            assert disabled(screen) == {"resume": True, "merge": True, "quantize": True}
            assert picture(pilot.app).count("the run is live: stop it first") == 3
    finally:
        lock.release()


async def test_resume_asks_and_says_which_steps_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str | None, int | None]] = []

    def resume(run: RunDir, *, stage: str | None = None, checkpoint: int | None = None) -> None:
        asked.append((stage, checkpoint))
        raise OperatorError("stopped by the test")

    monkeypatch.setattr("cockpit.launching.launch.resume", resume)
    async with opened(make_run(tmp_path / "runs", state="stopped")) as (screen, pilot):
        await pilot.press("down", "r")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen), "the question")
        await until_seen(pilot, "Steps 31 to 40 are repeated; nothing is deleted.")
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is screen, "back")
        assert not asked
        await pilot.press("r")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen), "the question")
        await pilot.press("right", "enter")
        await until_seen(pilot, "stopped by the test")
        assert asked == [("train", 30)]
        await pilot.press("home", "r")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen), "the question")
        await pilot.press("right", "enter")
        await until(pilot, lambda: len(asked) == 2, "asked again")
        assert asked[1] == (None, None)  # the newest checkpoint of an unfinished stage: an ordinary resume


@pytest.mark.parametrize("size", SIZES)
async def test_merge_starts_a_run_of_one_stage_with_this_run_as_parent(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[LoadedRecipe, object]] = []

    def launch(loaded: LoadedRecipe, *, parent: str | None = None, **_: object) -> None:
        started.append((loaded, parent))
        raise OperatorError("stopped by the test")

    monkeypatch.setattr("cockpit.launching.launch.launch", launch)
    run = adapter_run(tmp_path)
    async with opened(run, size) as (screen, pilot):
        assert disabled(screen)["merge"] is False
        await pilot.press("down", "down", "m")
        await until(pilot, lambda: isinstance(pilot.app.screen, MakeScreen), "the dialog")
        await until_seen(pilot, "step 30")
        await until_seen(pilot, "free")
        await pilot.press("down", "space", "enter", "enter")
        await until_seen(pilot, "stopped by the test")
    ((loaded, parent),) = started
    (stage,) = loaded.recipe.stage
    assert isinstance(stage, MergeStage)
    assert (stage.dtype, parent) == ("float32", run.id)
    assert stage.adapter == str(run.checkpoints("train", 1) / "step-30")


async def test_quantize_takes_the_marked_types_and_needs_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[LoadedRecipe] = []

    def launch(loaded: LoadedRecipe, **_: object) -> None:
        started.append(loaded)
        raise OperatorError("stopped by the test")

    monkeypatch.setattr("cockpit.launching.launch.launch", launch)
    async with opened(make_run(tmp_path / "runs", kind="pretrain")) as (_screen, pilot):
        await pilot.press("g")
        await until(pilot, lambda: isinstance(pilot.app.screen, MakeScreen), "the dialog")
        dialog = pilot.app.screen
        assert isinstance(dialog, MakeScreen)
        assert dialog.marked == ["F16", "Q8_0", "Q4_K_M"]
        for word in ("F16", "Q8_0", "Q4_K_M"):
            dialog.query_one("LineList").select(word)  # type: ignore[attr-defined]
            await pilot.press("space")
        assert dialog.query_one("#start", Button).disabled
        await pilot.press("space", "enter", "enter")
        await until_seen(pilot, "stopped by the test")
    (stage,) = started[0].recipe.stage
    assert isinstance(stage, ExportStage)
    assert stage.file_types == ["Q4_K_M"]


async def test_an_adapter_is_quantized_with_its_base_and_merged_during_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[LoadedRecipe] = []

    def launch(loaded: LoadedRecipe, **_: object) -> None:
        started.append(loaded)
        raise OperatorError("stopped by the test")

    monkeypatch.setattr("cockpit.launching.launch.launch", launch)
    run = adapter_run(tmp_path)
    async with opened(run) as (screen, pilot):
        await until_seen(pilot, "merged during the export")
        chosen = screen.item
        await pilot.press("g")
        await until(pilot, lambda: isinstance(pilot.app.screen, MakeScreen), "the dialog")
        await pilot.press("enter", "enter")
        await until_seen(pilot, "stopped by the test")
    (stage,) = started[0].recipe.stage
    assert chosen is not None
    assert chosen.source is not None
    assert isinstance(stage, ExportStage)
    assert (stage.model, stage.adapter) == (str(tmp_path / "base"), str(chosen.source.path))


@pytest.mark.parametrize("size", [(80, 24), (60, 20), (160, 48)])
async def test_a_dialogs_buttons_are_on_every_screen_and_its_list_scrolls_to_the_end(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    async with opened(make_run(tmp_path / "runs", kind="pretrain"), size) as (_screen, pilot):
        await pilot.press("g")
        await until(pilot, lambda: isinstance(pilot.app.screen, MakeScreen), "the dialog")
        dialog = pilot.app.screen
        start = dialog.query_one("#start", Button)
        await until(pilot, lambda: start.region.height == 1 and start.region.bottom < size[1], "the button")
        assert dialog.query_one("Vertical").region.contains_region(start.region)
        choices = dialog.query_one("LineList")
        assert choices.size.height >= 3
        for _ in FILE_TYPES:
            await pilot.press("down")
        assert choices.current == list(FILE_TYPES)[-1]  # type: ignore[attr-defined]


async def test_hostile_runs_are_inert(tmp_path: Path) -> None:
    words = " ".join(HOSTILE)
    run = make_run(tmp_path / "runs", recipe=words, warning=words)
    moved = run.root.rename(run.root.with_name(f"20261120-2130-{words.replace('/', '')}"))
    async with opened(RunDir(moved)) as (_screen, pilot):
        await pilot.press("r")
        await pilot.pause()
        assert no_control_characters(pilot.app)


async def test_the_screen_says_reading_before_it_reads_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures: list[str] = []
    read = CheckpointsScreen._read_run

    def recorded(screen: CheckpointsScreen) -> None:
        pictures.append(picture(screen.app))
        read(screen)

    monkeypatch.setattr(CheckpointsScreen, "_read_run", recorded)
    run = make_run(tmp_path / "runs", kind="finetune")
    async with opened(run) as (_, pilot):
        assert f"reading 0% of {run.id}" in pictures[0]
        assert "no checkpoints" not in pictures[0]
        await until(pilot, lambda: "reading" not in picture(pilot.app), "a title without reading")


async def test_a_read_that_fails_says_so_and_calls_no_run_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "runs", kind="finetune")
    async with opened(run) as (screen, pilot):
        await until(pilot, lambda: "succeeded" in picture(pilot.app), "the run's state")

        def broken(*_: object) -> list[object]:
            raise OSError("input/output error")

        monkeypatch.setattr("cockpit.tui.screens.checkpoints.items", broken)
        screen._read()
        await until(pilot, lambda: "could not be read: input/output error" in picture(pilot.app), "the reason")
        assert "lost" not in picture(pilot.app)
        monkeypatch.undo()
        screen._read()
        await until(pilot, lambda: "succeeded" in picture(pilot.app), "the state again")


async def test_a_chat_asks_for_the_model_where_the_run_has_gguf_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_with: list[ChatTarget] = []
    monkeypatch.setattr(CheckpointsApp, "open_chat", lambda _app, target: opened_with.append(target))
    async with opened(adapter_run(tmp_path)) as (screen, pilot):
        await pilot.press("c")
        assert [target.models[0][1].model for target in opened_with] == [str(screen.item.source.path)]
        file = tmp_path / "m-Q4_K_M.gguf"
        monkeypatch.setattr(
            "cockpit.tui.screens.checkpoints.run_models", lambda *_given: [("train (result)", tmp_path), ("m", file)]
        )
        await pilot.press("c")
        await until_seen(pilot, "Chat with")
        await pilot.press("down", "enter")
        await until(pilot, lambda: len(opened_with) == 2, "the second chat")
        assert opened_with[1].models[0][1].model == str(file)


async def test_a_run_without_checkpoints_says_so_once_its_journal_is_read(tmp_path: Path) -> None:
    journal = Journal()
    journal.open("s", "supervisor")
    journal.say("s", RunStarted(run="r", recipe="x", reason=StartReason.LAUNCH, stages=["judge"], kinds=["evaluate"]))
    journal.say("s", RunEnded(state=RunStatus.FAILED, reason="judge: why (attempt 1 of 1)"))
    app = CheckpointsApp(RunDir(journal.write(tmp_path / "20261120-2130-judge")))
    async with app.run_test(size=SIZES[0]) as pilot:
        await until(pilot, lambda: "failed" in picture(app), "the title")
        await until(pilot, lambda: "no checkpoints or results yet" in picture(app), "the list's message")
        assert "reading the journal" not in picture(app)
