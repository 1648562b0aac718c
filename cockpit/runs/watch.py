"""Watching a folder of runs without reading anything twice."""

from __future__ import annotations

from pathlib import Path

from cockpit.runs.find import run_ids
from cockpit.runs.summaries import RunSummary, summarize
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
            if known is None or whole or not known.state.has_ended:
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
