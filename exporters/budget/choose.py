"""Chooses one tensor type for each matrix: the smallest sum of measured errors that fits a size. Needs neither torch
nor numpy.

Each matrix has options of growing size and falling error. Starting with the smallest of each, the upgrade that removes
most error per byte comes first (the greedy solution of the multiple-choice knapsack problem on the lower convex hulls).
Then single upgrades and exchanges of an upgrade for a downgrade fill what is left.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """A type that a matrix may have.

    Attributes:
        type: the tensor type.
        bytes: size of the matrix.
        error: how much it adds to the mean KL of the model, nats.
    """

    type: str
    bytes: int
    error: float


def choose(options: Mapping[str, Sequence[Option]], budget_bytes: int) -> dict[str, Option]:
    """One option for each matrix, by name.

    Args:
        options: by matrix; at least one each.
        budget_bytes: size of all matrices together; if not even the smallest options fit, those are chosen.
    """
    ladders = {name: _falling(found) for name, found in options.items()}
    chosen = dict.fromkeys(ladders, 0)
    left = budget_bytes - sum(ladder[0].bytes for ladder in ladders.values())
    left = _climb({name: _hull(ladder) for name, ladder in ladders.items()}, ladders, chosen, left)
    _improve(ladders, chosen, left)
    return {name: ladders[name][index] for name, index in chosen.items()}


def _falling(options: Sequence[Option]) -> list[Option]:
    """The options by size, without those that are larger than another and not better."""
    found: list[Option] = []
    for option in sorted(options, key=lambda option: (option.bytes, option.error)):
        if not found or option.error < found[-1].error:
            found.append(option)
    return found


def _hull(ladder: Sequence[Option]) -> list[int]:
    """Positions of the options on the lower convex hull: each step removes less error per byte than the one before."""
    hull: list[int] = []
    for index in range(len(ladder)):
        while len(hull) > 1 and _gain(ladder, hull[-2], hull[-1]) <= _gain(ladder, hull[-1], index):
            hull.pop()
        hull.append(index)
    return hull


def _gain(ladder: Sequence[Option], low: int, high: int) -> float:
    """Removed error per added byte."""
    return (ladder[low].error - ladder[high].error) / (ladder[high].bytes - ladder[low].bytes)


def _climb(
    hulls: Mapping[str, list[int]], ladders: Mapping[str, list[Option]], chosen: dict[str, int], left: int
) -> int:
    """Take upgrades along the hulls, best first, until the next of every matrix is too large; returns unused bytes."""
    waiting = [(-_gain(ladders[name], hull[0], hull[1]), name, 1) for name, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(waiting)
    while waiting:
        _, name, place = heapq.heappop(waiting)
        hull, ladder = hulls[name], ladders[name]
        more = ladder[hull[place]].bytes - ladder[hull[place - 1]].bytes
        if more > left:
            continue
        left -= more
        chosen[name] = hull[place]
        if place + 1 < len(hull):
            heapq.heappush(waiting, (-_gain(ladder, hull[place], hull[place + 1]), name, place + 1))
    return left


def _improve(ladders: Mapping[str, list[Option]], chosen: dict[str, int], left: int) -> None:
    """Take the best single upgrade, or exchange of an upgrade for a step down, while one removes error."""
    while True:
        moves = [(name, index) for name, ladder in ladders.items() for index in range(chosen[name] + 1, len(ladder))]
        downs = [(name, chosen[name] - 1) for name in ladders if chosen[name] > 0]
        best: tuple[float, int, list[tuple[str, int]]] | None = None
        for up in moves:
            won, cost = _change(ladders, chosen, up)
            for down in [None, *downs]:
                if down is not None and down[0] == up[0]:
                    continue
                lost, freed = _change(ladders, chosen, down) if down is not None else (0.0, 0)
                if cost + freed <= left and won + lost > 0 and (best is None or won + lost > best[0]):
                    best = won + lost, cost + freed, [up, *([down] if down is not None else [])]
        if best is None:
            return
        left -= best[1]
        chosen.update(best[2])


def _change(ladders: Mapping[str, list[Option]], chosen: Mapping[str, int], move: tuple[str, int]) -> tuple[float, int]:
    """Removed error and added bytes of a move."""
    now, then = ladders[move[0]][chosen[move[0]]], ladders[move[0]][move[1]]
    return now.error - then.error, then.bytes - now.bytes
