"""Which of a writer's sequence numbers have been seen: in order, late, or not yet."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field


@dataclass
class Numbers:
    """The numbers of one writer.

    Attributes:
        next: the lowest number above everything seen.
        holes: ranges [start, stop) below `next` that were passed over, in order. A full disk delays what matters: the
            live stream runs on, and the journal gets the delayed records once there is space.
    """

    next: int = 0
    holes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """How many numbers were passed over and have not come since."""
        return sum(stop - start for start, stop in self.holes)

    def is_late(self, seq: int) -> bool:
        """Whether the number is one that was passed over."""
        at = bisect_right(self.holes, (seq, float("inf"))) - 1
        return at >= 0 and self.holes[at][0] <= seq < self.holes[at][1]

    def pass_to(self, seq: int) -> None:
        """See `seq`, a number at or above `next`; what lies between is passed over."""
        if seq > self.next:
            self.holes.append((self.next, seq))
        self.next = seq + 1

    def fill(self, seq: int) -> None:
        """See `seq`, a number that is late."""
        at = bisect_right(self.holes, (seq, float("inf"))) - 1
        start, stop = self.holes[at]
        self.holes[at : at + 1] = [part for part in ((start, seq), (seq + 1, stop)) if part[0] < part[1]]

    def copy(self) -> Numbers:
        """An independent object with the same numbers."""
        return Numbers(self.next, self.holes[:])
