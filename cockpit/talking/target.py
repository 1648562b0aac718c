"""What a chat begins with: its models, and how they are asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cockpit.talking.settings import DEFAULT
from engines.chatting.lines import Job, Sampling


@dataclass(frozen=True)
class ChatTarget:
    """A chat to open.

    Attributes:
        models: one or two, each with its title.
        sampling: how tokens are chosen.
        system: the system prompt; may be empty.
        adapter: with the adapter, where there is one.
        save: the file that conversations are added to; None to choose one when the first is saved.
    """

    models: tuple[tuple[str, Job], ...]
    sampling: Sampling = DEFAULT
    system: str = ""
    adapter: bool = True
    save: Path | None = None
