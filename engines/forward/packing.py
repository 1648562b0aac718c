"""Which rows share a sequence: best fit, longest first. It computes with lengths only, so a plan can use it too."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def packs_of(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Rows by their indices, sequence by sequence; in each, and among sequences, in the order of the data.

    The longest row comes first into the sequence that it fills best (TRL's strategy "bfd"). No row is cut.

    Args:
        lengths: tokens of each row.
        length: tokens of the longest sequence.

    Raises:
        ValueError: a row is longer than a sequence.
    """
    if lengths and max(lengths) > length:
        raise ValueError(f"a row of {max(lengths)} tokens does not fit into a sequence of {length}")
    packs: list[list[int]] = []
    free: list[tuple[int, int]] = []  # the free tokens of each sequence, and its number; the fullest first
    for row in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        at = bisect_left(free, (lengths[row], -1))
        if at == len(free):
            packs.append([row])
            insort(free, (length - lengths[row], len(packs) - 1))
        else:
            room, number = free.pop(at)
            packs[number].append(row)
            insort(free, (room - lengths[row], number))
    return sorted(sorted(pack) for pack in packs)


def longer_than_a_sequence(longest: int, length: int) -> tuple[str, str]:
    """Why rows cannot be packed whose longest is longer than a sequence and is not cut, and what to do."""
    return (
        f"the longest row has {longest} tokens, a packed sequence has max_length = {length}",
        f'set max_length to {longest}, or cut longer rows: truncation = "left" or "answer"',
    )
