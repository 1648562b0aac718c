"""Memory that runs out in one process, in work without exchanges: the others hear of it at the exchange that follows.

Without this, that process would save what it has trained, which is an exchange, while the others are in another one.
"""

from __future__ import annotations

import traceback
from types import TracebackType

from engines.exhausted_memory import EvaluationMemoryError, exhausted_memory
from engines.world import World


class RanOut:
    """Keeps that memory ran out within its block, until `share`.

    Args:
        world: the processes.
        exchanges: the block has exchanges itself, so an error has to end it at once.
    """

    def __init__(self, world: World, *, exchanges: bool = False) -> None:
        self._world = world
        self._is_shared = world.size > 1 and not exchanges
        self._which = ""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        which = exhausted_memory(error) if error is not None and self._is_shared else ""
        if not which:
            return False
        traceback.print_exception(error)
        traceback.clear_frames(at)  # they hold what filled the memory
        self._which = which
        return True

    def share(self) -> None:
        """Learn what the others have met; every process calls it after its block.

        Raises:
            EvaluationMemoryError: memory ran out in at least one of them.
        """
        if not self._is_shared:
            return
        found = self._world.gather_objects(self._which)
        words = [f"rank {rank} of {len(found)}: {which}" for rank, which in enumerate(found) if which]
        if words:
            raise EvaluationMemoryError("; ".join(words))
