"""The command palette: the actions that are possible on the current screen now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from textual.command import DiscoveryHit, Hit, Hits, Provider

from cockpit.text.safe_text import safe_text
from cockpit.tui.look.keys import SCOPES, Key, scopes_of


class KeyCommands(Provider):
    """One command for every key of the current screen whose action is possible now."""

    async def discover(self) -> Hits:
        for name, key in self._commands():
            yield DiscoveryHit(name, self._runner(key), help=key.help)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for name, key in self._commands():
            score = max(matcher.match(name), matcher.match(key.help))
            if score > 0:
                yield Hit(score, matcher.highlight(name), self._runner(key), help=key.help)

    def _commands(self) -> Iterator[tuple[str, Key]]:
        screen = self.screen
        seen: set[str] = set()
        for scope in scopes_of(screen):
            for key in SCOPES.get(scope, ()):
                if not key.action or key.action in seen or key.id == "app.palette":
                    continue
                target = self.app if key.action.startswith("app.") else screen
                name = key.action.removeprefix("app.").partition("(")[0]
                if target.check_action(name, ()):
                    seen.add(key.action)
                    yield safe_text(f"{key.label or key.help.rstrip('.')} ({key.drawn})", 80), key

    def _runner(self, key: Key) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            await self.app.run_action(key.action, self.screen)

        return run
