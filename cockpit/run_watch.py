"""Watching runs without reading anything twice: the list of all, and the whole state of one."""

from __future__ import annotations

from pathlib import Path

from cockpit.locations import run_ids
from cockpit.run_list import ENDED, RunSummary, summarize
from cockpit.run_state import RunState
from engines.journal import JournalReader, journal_files
from engines.run_dir import RunDir, RunDirError

WHOLE_EVERY = 20
"""Polls between two looks at runs that have ended: an operator's resume elsewhere can set one going again."""


class RunWatch:
    """The summaries of a folder of runs, newest first. Each poll looks at new runs and those that have not ended."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, RunSummary] = {}
        self._polls = 0

    def poll(self) -> list[RunSummary]:
        """The summaries as they are now."""
        whole = self._polls % WHOLE_EVERY == 0
        self._polls += 1
        found: dict[str, RunSummary] = {}
        for run_id in run_ids(self.root):
            known = self._known.get(run_id)
            if known is None or whole or known.state not in ENDED:
                try:
                    known = summarize(RunDir(self.root / run_id))
                except RunDirError:
                    continue
            found[run_id] = known
        self._known = found
        return list(found.values())

    def look_again(self) -> None:
        """Look at every run in the next poll: something was started or stopped here."""
        self._polls = 0


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
            reader = self._readers.get(path)
            if reader is None:
                reader = self._readers[path] = JournalReader(path)
            while records := reader.read():
                for record in records:
                    self.state.apply(record.event)
        return self.state.version != before
