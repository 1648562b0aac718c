"""A stage without curves, drawn large: its phase, progress and ETA, or its results, as text."""

from __future__ import annotations

from rich.text import Text

from cockpit.headless.file_rows import files_table
from cockpit.runs.eta import stage_time_left
from cockpit.runs.state import StageView
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.text.text_table import cells
from cockpit.tui.look.theme import STATE_COLOURS, ascii_only, state_glyph
from engines.words import StageStatus

LIGHT_COLOURS = {"green": "success", "yellow": "warning", "red": "error"}
FIRST_METRICS = ("loss", "perplexity", "success", "difference", "p_value", "won_rows", "lost_rows", "forgetting")
"""Metrics that a small panel shows before all others; of a file, the same with its file type (loss.Q8_0)."""
_WAITING = {StageStatus.PENDING: "waiting for earlier stages", StageStatus.SKIPPED: "skipped"}


def stage_panel(
    stage: StageView, width: int, height: int, colours: dict[str, str], *, enlarged: bool = False
) -> list[Text]:
    """Lines for an area of this size. `enlarged`: it already has the whole screen."""
    lines = [
        _centred(_spaced(_headline(stage), width), width, f"bold {colours.get(STATE_COLOURS.get(stage.state, ''), '')}")
    ]
    lines.append(
        _centred(f"{state_glyph(stage.state)} {safe_text(stage.name, 40)} ({stage.kind}) {stage.state}", width, "")
    )
    lines.append(Text(""))
    if stage.state == StageStatus.RUNNING:
        lines += _progress(stage, width, colours)
    elif stage.reason:
        lines.append(
            _centred(
                safe_text(stage.reason, 400),
                width,
                colours.get("error" if stage.state == StageStatus.FAILED else "text-muted", ""),
            )
        )
    table = files_table([stage], width - 2)
    if table:
        head = (
            lines if stage.state == StageStatus.RUNNING else [lines[1], *lines[3:]]
        )  # the large headline gives its lines to the table
        return [*head, Text(""), *_table(table, width, height - len(head) - 1, colours, enlarged)][:height]
    facts = _results(stage)
    room = height - len(lines) - 1
    if facts and room > 0:
        lines.append(Text(""))
        if len(facts) > room:
            shown = max(0, room - 1)
            facts = [*facts[:shown], _more(len(facts) - shown, enlarged)]
        lines += [_centred(line, width, "") for line in facts]
    above = max(0, (height - len(lines)) // 2)
    return [Text("")] * above + lines


def _table(table: list[str], width: int, height: int, colours: dict[str, str], enlarged: bool) -> list[Text]:
    """A table as a centred block, with coloured lights and the number of rows that do not fit."""
    room, shown = max(0, height), table
    if len(table) > room:
        shown = [*table[: max(0, room - 1)], _more(len(table) - max(2, room - 1), enlarged)]
    left = max(0, (width - max(map(cells, table))) // 2)
    lines = []
    for words in shown:
        text = Text(" " * left + words, no_wrap=True)
        text.truncate(width, overflow="ellipsis")
        for light, colour in LIGHT_COLOURS.items():
            if words.endswith(light):
                text.stylize(colours.get(colour, ""), left + len(words) - len(light))
        lines.append(text)
    return lines


def _more(count: int, enlarged: bool) -> str:
    """The row below a list that does not fit."""
    ways = "cockpit show lists all" if enlarged else "z enlarges, cockpit show lists all"
    return f"… {count} more: {ways}"


def _headline(stage: StageView) -> str:
    if stage.state == StageStatus.RUNNING:
        return stage.phase or "starting"
    return stage.kind or stage.name


def _spaced(words: str, width: int) -> str:
    """Capital letters with spaces between them; without spaces when they do not fit."""
    clean = safe_text(words, 60).upper()
    spaced = "   ".join(" ".join(word) for word in clean.split())
    return spaced if len(spaced) <= width - 2 else clean


def _progress(stage: StageView, width: int, colours: dict[str, str]) -> list[Text]:
    progress, share = stage.progress, stage.fraction
    plain = ascii_only()
    room = max(10, min(96, width - 8))
    lines: list[Text] = []
    if share is not None:
        filled = round(share * room)
        for _ in range(2):
            bar = Text(" " * max(0, (width - room) // 2))
            bar.append(("#" if plain else "█") * filled, colours.get("primary", ""))
            bar.append(("-" if plain else "░") * (room - filled), colours.get("text-disabled", ""))
            lines.append(bar)
    words = []
    if progress is not None:
        words.append(fmt.of_unit(progress.done, progress.total, safe_text(progress.unit, 20)))
    if share is not None:
        words.append(fmt.percent(share, 1))
    rate = stage.current.progress_rate if stage.current else None
    if rate is not None and progress is not None:
        words.append(fmt.rate(rate, safe_text(progress.unit, 20)))
    left = stage_time_left(stage)
    words.append(left.words if left is not None else "ETA n/a")
    return [*lines, Text(""), _centred("   ".join(words), width, "bold")]


def _results(stage: StageView) -> list[str]:
    if not stage.state.has_ended:
        return [_WAITING[stage.state]] if stage.state in _WAITING else []
    lines = [
        f"{safe_text(name, 40)}  {_metric(name, value)}" for name, value in sorted(stage.metrics.items(), key=_rank)
    ]
    gates = [
        f"gate {safe_text(g.metric, 40)} {g.op} {fmt.exact(g.limit)}: {g.result} ({fmt.number(g.value)})"
        for g in stage.gates
    ]
    made = [
        f"{safe_text(a.kind, 20)} {safe_text(a.name, 40)}  {fmt.size(a.bytes)}  {safe_text(a.path, 120)}"
        for a in stage.artifacts
    ]
    return gates + lines + made


def _rank(metric: tuple[str, float | None]) -> tuple[int, bool]:
    """The results of a model come first, then what was counted; counts of things that did not occur come last."""
    name, value = metric
    base, _, of_file = name.partition(".")
    if base in FIRST_METRICS:
        return FIRST_METRICS.index(base), bool(of_file)
    return len(FIRST_METRICS), value == 0


def _metric(name: str, value: float | None) -> str:
    if name.endswith("_bytes") or name == "bytes":
        return fmt.size(value)
    if name.endswith("_s"):
        return fmt.duration(value)
    if value is not None and value == int(value) and abs(value) < 1e15:  # counts
        return fmt.whole(value)
    return fmt.number(value)


def _centred(words: str, width: int, style: str) -> Text:
    text = Text(words, style=style.strip(), no_wrap=True)
    text.truncate(width, overflow="ellipsis")
    text.pad_left(max(0, (width - text.cell_len) // 2))
    return text
