"""The timeline of a replay, with its events and its playhead, as text from a playback."""

from __future__ import annotations

import math

from rich.text import Text

from cockpit.replay.playback import Moment, Playback
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.tui.look.theme import CROSS, ascii_only

_RANK = {"✗": 4, "!": 3, "◆": 2, "■": 2, "|": 1, "·": 0}
_COLOURS = {"●": "accent", "✗": "error", "!": "error", "◆": "success", "■": "warning", "━": "primary"}
_ASCII = {"✗": "x", "◆": "*", "■": "#", "·": ".", "─": "-", "●": "O", "━": "="}


def timeline(playback: Playback, width: int, colours: dict[str, str]) -> Text:
    """One line: the played part, the remaining part, a character for every moment, and the playhead."""
    room = max(10, width - 2)
    head = min(room - 1, int(playback.share(playback.index) * (room - 1) + 0.5))
    cells = ["━" if at < head else "─" for at in range(room)]
    ranks = [-1] * room
    for moment in playback.moments:
        at = min(room - 1, int(playback.share(moment.index) * (room - 1) + 0.5))
        rank = _RANK.get(moment.character, 0)
        if rank > ranks[at]:
            cells[at], ranks[at] = moment.character, rank
    line = Text(" ", no_wrap=True)
    cells[head] = "●"
    for cell in cells:
        colour = _COLOURS.get(cell, "text-disabled")
        line.append(_ASCII.get(cell, cell) if ascii_only() else cell, colours.get(colour, ""))
    return line


def transport_line(playback: Playback, width: int, colours: dict[str, str]) -> Text:
    """One line: playing or paused, speed, time, and the last moment before the playhead."""
    speed = (
        "max" if math.isinf(playback.speed) else f"{CROSS}{fmt.exact(playback.speed)}" if playback.speed >= 1 else "½"
    )
    sign = "▶ playing" if playback.playing else "‖ paused"
    if ascii_only():
        sign, speed = ("> playing" if playback.playing else "= paused"), speed.replace(CROSS, "x").replace("½", "0.5")
    line = Text(" ", no_wrap=True)
    line.append(sign, colours.get("accent", ""))
    line.append(f"  {speed}  t+{fmt.duration(round(playback.elapsed_s))} / {fmt.duration(round(playback.length_s))}")
    before = _latest(playback)
    if before is not None:
        line.append("  " + before.character + " ", colours.get("text-muted", ""))
        line.append(safe_text(before.text, 80), colours.get("text-muted", ""))
    line.truncate(width, overflow="ellipsis")
    return line


def events_around(playback: Playback, height: int) -> tuple[list[Moment], int]:
    """Moments for a list of this height, and how many of them the playhead has passed."""
    listed = [m for m in playback.moments if m.character != "·"]
    passed = sum(1 for m in listed if m.index <= playback.index)
    first = max(0, min(passed - height // 2, len(listed) - height))
    return listed[first : first + height], passed - first


def _latest(playback: Playback) -> Moment | None:
    return next((m for m in reversed(playback.moments) if m.index <= playback.index), None)
