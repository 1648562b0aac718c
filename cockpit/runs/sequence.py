"""The sequence numbers of a writer that have been seen, and the holes between them."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field


@dataclass
class Numbers:
    """The numbers of one writer.

    Attributes:
        next: the highest number seen plus one.
        holes: ranges [start, stop) below `next` that have not been seen, in order. On a full disk, the live stream
            continues, and the journal gets the delayed lifecycle records once there is space.
    """

    next: int = 0
    holes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """The number of sequence numbers below `next` that have not been seen."""
        return sum(stop - start for start, stop in self.holes)

    def is_late(self, seq: int) -> bool:
        """Whether the number is in a hole."""
        at = bisect_right(self.holes, (seq, float("inf"))) - 1
        return at >= 0 and self.holes[at][0] <= seq < self.holes[at][1]

    def pass_to(self, seq: int) -> None:
        """Add `seq`, a number at or above `next`; the numbers between become a hole."""
        if seq > self.next:
            self.holes.append((self.next, seq))
        self.next = seq + 1

    def fill(self, seq: int) -> None:
        """Add `seq`, a number in a hole."""
        at = bisect_right(self.holes, (seq, float("inf"))) - 1
        start, stop = self.holes[at]
        self.holes[at : at + 1] = [part for part in ((start, seq), (seq + 1, stop)) if part[0] < part[1]]

    def copy(self) -> Numbers:
        """An independent object with the same numbers."""
        return Numbers(self.next, self.holes[:])
