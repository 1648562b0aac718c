"""Why a run ended, in full, with the end of its console.log, as rows of text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from cockpit.runs.ending import TAIL_BYTES, Ending, console_tail
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.tui.look.theme import ascii_only
from cockpit.tui.look.wrapping import wrapped, wrapped_lines
from engines.run_dir.paths import RunDir

LONGEST_SENTENCE = 4000
CONSOLE_LINES = 12
"""Lines of console.log that are read for a block; as many as fit are shown."""


def ending_block(
    ending: Ending, console: Sequence[str], width: int, rows: int, colours: dict[str, str], key: str
) -> list[Text]:
    """The reasons, wrapped, then as much of the console as fits in `rows`.

    Reasons that do not fit end with a row that names the key which opens them in full.
    """
    cross, bar = ("x", "|") if ascii_only() else ("✗", "│")
    room = max(1, width - 3)
    reasons = [
        f"{cross if number == 0 else ' '} {row}" if part == 0 else f"  {row}"
        for number, sentence in enumerate(ending.sentences)
        for part, row in enumerate(wrapped_lines(sentence, room - 2, LONGEST_SENTENCE))
    ]
    if len(reasons) > rows:
        left = len(reasons) - (rows - 1)
        reasons = [*reasons[: rows - 1], f"  … {left} more rows: {key} opens the whole reason and console.log"]
    error, muted = f"bold {colours.get('error', '')}".strip(), colours.get("text-muted", "")
    lines = [Text(f" {row}", style=error, no_wrap=True) for row in reasons]
    below = _console(console, room - 2, rows - len(lines) - 1)
    if below:
        head = f" {bar} console.log of {safe_text(ending.stage, 40)}, attempt {ending.attempt} ({key} opens it):"
        lines.append(Text(head, style=colours.get("text-disabled", ""), no_wrap=True))
        lines += [Text(f" {bar} {row}", style=muted, no_wrap=True) for row in below]
    for line in lines:
        line.truncate(width)
    return lines


def _console(lines: Sequence[str], width: int, rows: int) -> list[str]:
    """The last rows of the console; a long last line loses its start, never its end."""
    if rows < 1:
        return []
    every = [row for line in lines for row in wrapped(safe_text(line, LONGEST_SENTENCE), width)]
    return every[-rows:]


def console_text(run: RunDir, ending: Ending, colours: dict[str, str]) -> Text:
    """The reasons in full and the end of console.log, for a reading pane; says why when there is no console.log."""
    text = Text()
    for sentence in ending.sentences:
        reason = "\n".join(safe_text(line, None) for line in sentence.split("\n"))
        text.append(f"{reason}\n", f"bold {colours.get('error', '')}".strip())
    muted = colours.get("text-muted", "")
    if ending.stage is None or ending.attempt is None:
        return text.append("no stage has started: there is no console.log", muted)
    path = safe_text(run.console_log(ending.stage, ending.attempt), None)
    text.append(f"{path}, at most its last {fmt.size(TAIL_BYTES)}:\n\n", muted)
    try:
        lines = console_tail(run, ending.stage, ending.attempt)
    except OSError as error:
        return text.append(f"cannot be read: {safe_text(error.strerror or error)}", colours.get("warning", ""))
    return text.append("\n".join(safe_text(line, LONGEST_SENTENCE) for line in lines) or "it is empty")
