"""Events of any process that writes a journal: which it is, what it warns of, and what it could not write."""

from __future__ import annotations

from engines.events.event import Event
from engines.words import WriterRole


class WriterOpened(Event, frozen=True, kw_only=True, tag="writer_opened"):
    """The first record of every writer: which process it is."""

    role: WriterRole
    host: str
    boot_id: str
    pid: int
    start_time: int
    stage: str | None = None
    attempt: int | None = None
    rank: int = 0
    launch: int = 0
    """number of the supervisor that the process is, or that started it; see `RunStarted`"""


class Warned(Event, frozen=True, kw_only=True, tag="warned"):
    """A warning for the operator; the text may quote data and is hostile until rendered safe."""

    message: str
    stage: str | None = None
    attempt: int | None = None


class Gap(Event, frozen=True, kw_only=True, tag="gap"):
    """This writer could not write `lost` records (a full disk, for example); training continued."""

    lost: int
    reason: str = ""
