"""The two lists at the left of the recipe form: stages, and the sections of the selected stage."""

from __future__ import annotations

from collections.abc import Hashable

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from cockpit.forms.rows import Head, SectionHead
from cockpit.text.safe_text import safe_text
from cockpit.tui.look.theme import palette
from cockpit.tui.widgets.line_list import LineList


class StageList(LineList[Head]):
    """The recipe itself, then its stages, each with its numbers of changed fields and problems."""

    empty_message = "no stages"

    def key_of(self, item: Head) -> Hashable:
        return item.place

    def draw_item(self, item: Head, width: int) -> Text:
        return _line(item.name, item.changed, item.problems, width, palette(self.app.theme_variables), item.kind)


class SectionList(LineList[SectionHead]):
    """Sections, each with its numbers of changed fields and problems."""

    empty_message = "no fields"

    def key_of(self, item: SectionHead) -> Hashable:
        return item.name

    def draw_item(self, item: SectionHead, width: int) -> Text:
        return _line(item.name, item.changed, item.problems, width, palette(self.app.theme_variables))


def _line(name: str, changed: int, problems: int, width: int, colours: dict[str, str], kind: str = "") -> Text:
    marks = Text()
    if changed:
        marks.append(f"*{changed}", colours["accent"])
    if problems:
        marks.append(f"{' ' if changed else ''}!{problems}", colours["error"])
    room = max(1, width - 2 - marks.cell_len)
    safe = safe_text(name, 80)
    line = Text(" ")
    line.append(set_cell_size(safe, room) if cell_len(safe) > room else safe)
    if kind and kind != name and room - cell_len(safe) > len(kind) + 1:
        line.append(f" {kind}", colours["text-muted"])
    line.append(" " * max(0, width - 1 - line.cell_len - marks.cell_len))
    line.append_text(marks)
    return line
