"""The cockpit's screens in one application.

The application owns nothing: runs live in their own processes, and any screen may die at any time. Screens are opened
by path through `open_run`, `open_replay`, `open_home`, `open_recipe` and `open_checkpoints`, each loaded when first used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.app import App
from textual.binding import BindingType
from textual.color import Color
from textual.command import Provider
from textual.events import Resize
from textual.filter import LineFilter
from textual.screen import Screen

from cockpit.text.safe_text import UNSAFE
from cockpit.tui.look.keys import bindings
from cockpit.tui.look.theme import ANSI_VARIABLES, THEMES, chosen_theme


class HarmlessLines(LineFilter):
    """The one choke point before the terminal: no control, reordering or invisible character of any text passes.

    Widgets show such characters through `safe_text` as visible stand-ins; this is for whatever forgot to. Hyperlinks are
    taken off too: no text of ours needs one, and a link's address would reach the terminal as it is.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002 - Textual's name
        """The segments, with the same widths and nothing but printable characters."""
        if all(_harmless(segment) for segment in segments):
            return segments
        return [_clean(segment) for segment in segments]


def _harmless(segment: Segment) -> bool:
    text, style, control = segment
    plain = (text.isascii() and text.isprintable()) or UNSAFE.search(text) is None
    return plain and not control and not _linked(style)


def _linked(style: Style | None) -> bool:
    return style is not None and style.link is not None


def _clean(segment: Segment) -> Segment:
    text, style, _control = segment
    clean = UNSAFE.sub(lambda match: " " * cell_len(match[0]), text)
    if style is not None and _linked(style):
        style = style.update_link(None)
    return Segment(clean, style)


def key_commands() -> type[Provider]:
    """The palette's provider, loaded when the palette is first opened."""
    from cockpit.tui.commands import KeyCommands

    return KeyCommands


class CockpitApp(App[None]):
    """Home, recipe forms, runs and replays.

    Args:
        runs_root: the folder of runs.
        open_run: a run directory to show at once.
        replay: a run directory (or journal file) to play back at once.
        speed: how fast that replay plays, as a multiple of real time; None for the screen's own choice.
    """

    TITLE = "cockpit"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS = App.COMMANDS | {key_commands}
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("app")]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (120, "-wide")]  # noqa: RUF012 - the base declares it
    VERTICAL_BREAKPOINTS = [(0, "-short"), (36, "-tall")]  # noqa: RUF012 - the base declares it
    CSS = """
    Screen { background: $background; }
    """

    def __init__(
        self, runs_root: Path, open_run: Path | None = None, replay: Path | None = None, speed: float | None = None
    ) -> None:
        super().__init__()
        self.runs_root = runs_root
        self._first_run = open_run
        self._first_replay = replay
        self._first_speed = speed
        self._safety = HarmlessLines()
        self.animation_level = "none"
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = chosen_theme()

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Textual's own filters, after the one that lets nothing harmful through."""
        return [self._safety, *super().get_line_filters()]

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Colours of ours for themes that do not define them."""
        return ANSI_VARIABLES

    def on_mount(self) -> None:
        self.open_first()

    def open_first(self) -> None:
        """The screen the operator asked for; Home otherwise."""
        if self._first_replay is not None:
            self.open_replay(self._first_replay, self._first_speed)
        elif self._first_run is not None:
            self.open_run(self._first_run)
        else:
            self.open_home()

    def on_resize(self, event: Resize) -> None:
        from cockpit.tui.screens.too_small import fit_to_terminal

        fit_to_terminal(self, event.size.width, event.size.height)

    # ---- opening screens

    def open_home(self) -> None:
        """Show the recipes and runs."""
        from cockpit.tui.screens.home import HomeScreen

        for screen in self.screen_stack:
            if isinstance(screen, HomeScreen):
                while self.screen is not screen:
                    self.pop_screen()
                return
        self.push_screen(HomeScreen(self.runs_root))

    def open_run(self, run_dir: Path) -> None:
        """Show a run: live while it runs, and where it ended afterwards."""
        from cockpit.tui.screens.run import RunScreen
        from cockpit.tui.screens.sources import LiveSource

        self.push_screen(RunScreen(LiveSource(run_dir), run_dir=run_dir))

    def open_replay(self, path: Path, speed: float | None = None) -> None:
        """Play a run back from its directory or its journal file; `speed` is a multiple of real time."""
        from cockpit.tui.screens.run import RunScreen
        from cockpit.tui.screens.sources import load_replay

        self.push_screen(RunScreen(load_replay(path, speed), run_dir=path if path.is_dir() else path.parent))

    def open_recipe(self, path: Path) -> None:
        """Edit a recipe in forms."""
        from cockpit.tui.screens.recipe_form import RecipeScreen

        self.push_screen(RecipeScreen(path))

    def open_checkpoints(self, run_dir: Path) -> None:
        """Checkpoints of a run: resume, merge, quantize."""
        from cockpit.tui.screens.checkpoints import CheckpointsScreen

        self.push_screen(CheckpointsScreen(run_dir))

    # ---- actions of every screen

    def action_keys_help(self) -> None:
        """Every key of the current screen."""
        from cockpit.tui.screens.help import HelpScreen

        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(scopes_of(self.screen)))

    async def action_back(self) -> None:
        """Close the current screen; from the last one, go home."""
        notice = getattr(self.screen, "leaving", str)()
        if notice:
            self.notify(notice, markup=False, timeout=3)
        if len(self.screen_stack) > 2:
            self.pop_screen()
            return
        from cockpit.tui.screens.home import HomeScreen

        if not isinstance(self.screen, HomeScreen):
            self.switch_screen(HomeScreen(self.runs_root))

    def action_leave(self) -> None:
        """End the screen, and nothing else."""
        self.exit()


def scopes_of(screen: Screen[object]) -> tuple[str, ...]:
    """The key scopes that a screen declares in `key_scopes`, and those of the application."""
    return (*getattr(screen, "key_scopes", ()), "app")
