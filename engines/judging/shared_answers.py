"""The kept answers of several processes that divide the rows of one evaluation.

Each process writes its answers at once into a file of its own: the first one of all into that of the evaluation,
another one into `….rankN.jsonl` beside it. So a kill of any process loses no answer. The first process of each host
takes the files of an earlier attempt into its own before anything is asked, whatever their number was, and in the end
the first of all has every answer.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engines.judging.answers import AnswerFile, Kept
from engines.world import World


class SharedAnswers:
    """The answers of one model, open for those of this process.

    Attributes:
        known: keys of the tasks whose answers some process had when this was opened; equal in all processes.
    """

    def __init__(self, file: Path, identity: Mapping[str, Any], world: World) -> None:
        """Open the file of this process; every process calls it.

        Args:
            file: that of the evaluation.
            identity: as for `AnswerFile`.
            world: the processes.

        Raises:
            OperatorError: as `AnswerFile`.
        """
        self._world, self._common = world, file
        own = _own(file, world.rank)
        if world.local_rank == 0:
            self._own = AnswerFile(own, identity)
            self._take_in(identity)
        world.barrier()  # until then, the first process of the host may read and remove the others' files
        if world.local_rank != 0:
            self._own = AnswerFile(own, identity)
        had = world.gather_objects(set(self._own.kept))
        self.known = frozenset().union(*had)
        self._of_first = had[0]

    def add(self, one: Kept) -> None:
        """Keep an answer: it is in the file of this process when this returns.

        Raises:
            OSError: it cannot be written.
        """
        self._own.add(one)

    def gathered(self, waiting: Callable[[], None]) -> Mapping[str, Kept]:
        """All answers, in the first process and in its file; every process calls it when its own are complete.

        Args:
            waiting: called while other processes still answer; what it raises ends the wait.
        """
        if self._world.size == 1:
            return self._own.kept
        self._world.wait(waiting)
        missing = [one for key, one in self._own.kept.items() if key not in self._of_first]
        found = self._world.gather_objects(missing)
        if self._world.is_first:
            for one in (one for others in found[1:] for one in others):
                if one.key not in self._own.kept:
                    self._own.add(one)
            self._own.sync()
            for other in self._others():
                other.unlink()
        return self._own.kept

    def close(self) -> None:
        """Close the file."""
        self._own.close()

    def _take_in(self, identity: Mapping[str, Any]) -> None:
        """Move the answers that other processes of an earlier attempt kept on this host into this one's file."""
        for other in self._others():
            theirs = AnswerFile(other, identity)
            try:
                for key, one in theirs.kept.items():
                    if key not in self._own.kept:
                        self._own.add(one)
                self._own.sync()
                other.unlink()
            finally:
                theirs.close()

    def _others(self) -> list[Path]:
        pattern = f"{glob.escape(self._common.stem)}.rank*{glob.escape(self._common.suffix)}"
        found = [self._common, *self._common.parent.glob(pattern)]
        return sorted(path for path in found if path != self._own.path and path.is_file())


def _own(file: Path, rank: int) -> Path:
    return file if rank == 0 else file.with_name(f"{file.stem}.rank{rank}{file.suffix}")
