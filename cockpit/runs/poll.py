"""The whole state of one run, from its journals, read as they grow."""

from __future__ import annotations

from pathlib import Path

from cockpit.runs.state import RunState
from engines.journal import JournalReader, journal_files
from engines.run_dir import RunDir


class FoldedRun:
    """The state of one run, kept up to date from its journals; only what is new is read."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.state = RunState()
        self._readers: dict[Path, JournalReader] = {}

    def poll(self) -> bool:
        """Read what is new; whether there was anything."""
        before = self.state.version
        for path in journal_files(self.run.root):
            reader = self._readers.setdefault(path, JournalReader(path))
            while records := reader.read():
                for record in records:
                    self.state.apply(record.event)
        return self.state.version != before

    @property
    def replaced(self) -> bool:
        """Whether a journal was cut or replaced: the state then holds what is no longer there."""
        return any(reader.restarted for reader in self._readers.values())

    @property
    def torn(self) -> bool:
        """Whether a journal ends within a line: its writer has yet to finish it, or died over it."""
        return any(reader.in_line for reader in self._readers.values())
