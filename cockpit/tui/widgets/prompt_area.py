"""A field for a prompt of several lines: enter sends it, up at its start recalls earlier ones."""

from __future__ import annotations

from textual.events import Key
from textual.message import Message
from textual.widgets import TextArea

MOST_RECALLED = 200


class PromptArea(TextArea):
    """The prompt that is written."""

    DEFAULT_CSS = """
    PromptArea { height: 3; max-height: 8; border: none; padding: 0 1; background: $surface; }
    PromptArea:focus { border: none; }
    """

    class Sent(Message):
        """The operator sent the prompt."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self) -> None:
        super().__init__(id="prompt", soft_wrap=True, show_line_numbers=False, tab_behavior="focus")
        self.cursor_blink = False  # each blink would be sent to the terminal
        self._earlier: list[str] = []
        self._at = 0

    async def _on_key(self, event: Key) -> None:
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            if self.text.strip():
                self.post_message(self.Sent(self.text))
            return
        if event.key in {"up", "down"} and self._recall(-1 if event.key == "up" else 1):
            event.stop()
            event.prevent_default()
            return
        await super()._on_key(event)

    def keep(self, text: str) -> None:
        """Add a sent prompt to those that can be recalled, and empty the field."""
        self._earlier = [*self._earlier, text][-MOST_RECALLED:]
        self._at = len(self._earlier)
        self.text = ""

    def write(self, text: str) -> None:
        """Replace the text."""
        self.text = text
        self.move_cursor(self.document.end)

    def _recall(self, by: int) -> bool:
        """Show an earlier or later prompt, where the cursor cannot move that way within the text."""
        row, _ = self.cursor_location
        if not self._earlier or (row > 0 if by < 0 else row < self.document.line_count - 1):
            return False
        if not 0 <= self._at + by <= len(self._earlier):
            return False
        self._at += by
        self.write(self._earlier[self._at] if self._at < len(self._earlier) else "")
        return True
