"""Keeping house on Home: note, rename, remove, prune and sizes. Whatever removes or renames something asks first.

Reading sizes and manifests takes time, so it is done in threads; a screen that was closed meanwhile is not shown again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rich.text import Text
from textual.screen import Screen

from cockpit.keeping.notes import write_note
from cockpit.keeping.prune import Removal, removals, remove
from cockpit.keeping.remove import remove_run, users_of
from cockpit.keeping.rename import check_name, rename
from cockpit.keeping.sizes import Sizes, sizes_of
from cockpit.keeping.uses import uses_in
from cockpit.runs.find import run_ids
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.text.text_table import text_table
from cockpit.tui.dialogs.ask import AskScreen
from cockpit.tui.dialogs.confirm import Answer, ConfirmScreen
from cockpit.tui.dialogs.read import TextScreen
from cockpit.tui.look.notices import say, say_error
from engines.run_dir.paths import RunDir, RunDirError
from recipes.problems import OperatorError

T = TypeVar("T")
KEEP, REMOVE = "keep", "remove"
LISTED = 8
NOT_SHOWN = "another screen was opened before the disk was read: press the key again"


def ask_note(over: Screen[Any], run: RunDir, done: Callable[[], None]) -> None:
    """Ask for the note of a run and store it."""

    def answered(text: str | None) -> None:
        if text is not None:
            _in_thread(over, lambda: write_note(run, text), lambda _: done())

    body = "One line that every list shows. An empty line removes the note."
    over.app.push_screen(AskScreen(f"Note of {run.id}", body, lambda _: None, run.read_note(), ENTER), answered)


def ask_rename(over: Screen[Any], run: RunDir, done: Callable[[], None]) -> None:
    """Ask for another name of a run and rename it."""

    def answered(name: str | None) -> None:
        if name is not None:
            _in_thread(over, lambda: rename(run, name), lambda now: _finish(over, f"{run.id} is now {now.id}", done))

    body = "The date in the id is kept. What refers to the run still finds it."
    over.app.push_screen(AskScreen(f"Rename {run.id}", body, lambda name: check_name(run, name), "", ENTER), answered)


def ask_remove(over: Screen[Any], run: RunDir, done: Callable[[], None]) -> None:
    """Measure a run, ask whether to remove it, and remove it."""

    def measured(found: tuple[Sizes, set[str]]) -> None:
        sizes, users = found
        lines = [f"{part}: {fmt.size(size)}" for part, size in sizes.parts.items() if size]
        lines.append(f"in {run.root}")
        if users:
            shown = ", ".join(sorted(users)[:LISTED])
            lines = [f"It is an ancestor of {shown}: their custody will not be complete any more.", *lines]
        label = "Remove anyway" if users else "Remove"
        title = f"Remove {run.id}, {fmt.size(sizes.total)}?"
        answers = [Answer(KEEP, "Cancel"), Answer(REMOVE, label, danger=True)]
        over.app.push_screen(ConfirmScreen(title, "\n".join(lines), answers), answered)

    def answered(answer: str | None) -> None:
        if answer == REMOVE:
            _in_thread(over, lambda: remove_run(run), lambda _: _finish(over, f"{run.id} was removed", done))

    def measure() -> tuple[Sizes, set[str]]:
        return sizes_of(run), users_of([run], run.root.parent).get(run.id, set())

    _in_thread(over, measure, _if_on_top(over, measured))


def ask_prune(over: Screen[Any], run: RunDir, done: Callable[[], None]) -> None:
    """List what a run does not need, ask, and remove it."""

    def listed(found: list[Removal]) -> None:
        if not found:
            say(over, f"{run.id}: every checkpoint and output is needed")
            return
        lines = [f"{run.relative(item.path)}: {fmt.size(item.bytes)}, {item.why}" for item in found[:LISTED]]
        lines += [f"and {len(found) - LISTED} more"] if len(found) > LISTED else []
        lines.append("The best and the newest healthy checkpoint are kept, and what other artifacts were made from.")
        total = fmt.size(sum(item.bytes for item in found))
        answers = [Answer(KEEP, "Cancel"), Answer(REMOVE, "Remove", danger=True)]
        title = f"Remove {fmt.counted(len(found), 'folder')} of {run.id}, {total}?"
        over.app.push_screen(ConfirmScreen(title, "\n".join(lines), answers), lambda answer: answered(answer, found))

    def answered(answer: str | None, found: list[Removal]) -> None:
        if answer == REMOVE:
            _in_thread(
                over,
                lambda: remove(run, found, uses_in(run.root.parent)),
                lambda gone: _finish(over, f"{fmt.counted(len(gone), 'folder')} removed", done),
            )

    _in_thread(over, lambda: removals(run, uses_in(run.root.parent)), _if_on_top(over, listed))


def show_sizes(over: Screen[Any], root: Path) -> None:
    """Measure every run of a folder and show a table, the largest first."""

    def measured(found: list[tuple[str, Sizes]]) -> None:
        found.sort(key=lambda item: (-item[1].total, item[0]))
        room = max(12, min(32, over.app.size.width * 96 // 100 - AROUND_NAMES))
        rows = [[safe_text(name, room), *map(_cell, _columns(sizes)), fmt.size(sizes.total)] for name, sizes in found]
        sums = [sum(column) for column in zip(*(_columns(sizes) for _, sizes in found), strict=True)]
        rows.append(["total", *map(_cell, sums), fmt.size(sum(sizes.total for _, sizes in found))])
        table = text_table(("run", "checkpoints", "outputs", "journals, logs", "total"), rows, right=range(1, 5))
        over.app.push_screen(TextScreen("What runs take on the disk", Text("\n".join(table), no_wrap=True)))

    _in_thread(
        over, lambda: [(name, sizes_of(RunDir(root / name))) for name in run_ids(root)], _if_on_top(over, measured)
    )


AROUND_NAMES = 6 + 49
"""Cells beside the names of runs in the table of sizes: the dialog's frame and scroll bar, and the other columns."""
ENTER = "enter stores it   esc cancels"


def _finish(over: Screen[Any], words: str, done: Callable[[], None]) -> None:
    say(over, words)
    done()


def _columns(sizes: Sizes) -> tuple[int, int, int]:
    parts = sizes.parts
    return parts["checkpoints"], parts["outputs"] + parts["replaced outputs"], parts["journals"] + parts["logs"]


def _cell(size: int) -> str:
    return fmt.size(size) if size else "-"


def _if_on_top(over: Screen[Any], then: Callable[[T], object]) -> Callable[[T], object]:
    """`then`, unless another screen was opened while the work was done: a question must not appear over that one."""

    def shown(result: T) -> None:
        if over.app.screen is over:
            then(result)
        else:
            say(over, NOT_SHOWN, "warning")

    return shown


def _in_thread(over: Screen[Any], work: Callable[[], T], then: Callable[[T], object]) -> None:
    """Do the work in a thread, then continue on the screen; an error is shown."""

    def worker() -> None:
        try:
            result = work()
        except OperatorError as error:
            over.app.call_from_thread(say_error, over, error)
        except (RunDirError, OSError) as error:
            over.app.call_from_thread(say, over, str(error), "error")
        else:
            over.app.call_from_thread(then, result)

    over.run_worker(worker, thread=True, exit_on_error=False, group="housekeeping")
