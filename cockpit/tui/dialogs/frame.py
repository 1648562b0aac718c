"""The CSS that dialogs share, and plain text for their bodies."""

from __future__ import annotations

from rich.text import Text

from cockpit.text.safe_text import safe_text

DIALOG_CSS = """
{name} {{ align: center middle; background: $background 60%; }}
{name} > Vertical {{
    width: 72; max-width: 96%; height: auto; max-height: 90%;
    background: $surface; border: round $border; padding: 0 1;
}}
{name} .title {{ text-style: bold; color: $foreground; height: auto; margin-bottom: 1; }}
{name} .body {{ height: auto; max-height: 14; }}
{name} .body Static {{ height: auto; }}
{name} .buttons {{ height: 1; margin-top: 1; align-horizontal: right; }}
{name} Button {{ margin-left: 2; min-width: 8; }}
"""


def plain_lines(text: str) -> Text:
    """Untrusted text with several lines, without markup and control characters."""
    return Text("\n".join(safe_text(line) for line in text.split("\n")))
