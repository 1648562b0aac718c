"""Divide names into train, val and test by a keyed hash, so that a name's split does not depend on other names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b

from recipes.problems import OperatorError

SPLITS = ("train", "val", "test")


def keyed_fraction(seed: int, name: str, purpose: str = "") -> float:
    """A number in [0, 1) from the arguments alone: blake2b of `seed:name`, the same on every machine.

    `purpose` gives an independent number for the same name (the order of a choice must not depend on the split).
    """
    digest = blake2b(f"{seed}:{name}".encode("utf-8", "surrogateescape"), digest_size=8, person=purpose.encode())
    return int.from_bytes(digest.digest(), "big") / 2**64


@dataclass
class Assignment:
    """The split of every name, and the names that were moved because a requested split would have been empty."""

    split_of: dict[str, str]
    moved: dict[str, str] = field(default_factory=dict)

    def names(self, split: str) -> list[str]:
        """The names of a split, sorted."""
        return sorted(name for name, its_split in self.split_of.items() if its_split == split)


def assign_splits(names: Iterable[str], *, val_fraction: float, test_fraction: float, seed: int) -> Assignment:
    """Give every name a split: test takes the lowest hashes, then val, then train.

    New names do not move old ones, unless the corpus is so small that a requested split would be empty: it then gets
    the name whose hash is nearest to its range, from a split that keeps at least one.

    Raises:
        OperatorError: fewer names than requested splits.
    """
    bounds = {"test": (0.0, test_fraction), "val": (test_fraction, test_fraction + val_fraction)}
    bounds["train"] = (test_fraction + val_fraction, 1.0)
    wanted = [split for split in SPLITS if bounds[split][1] > bounds[split][0]]
    place = {name: keyed_fraction(seed, name) for name in names}
    if len(place) < len(wanted):
        raise OperatorError(
            f"cannot divide {len(place)} document(s) into {', '.join(wanted)}",
            "set val_fraction = 0 and test_fraction = 0, or give a larger source",
        )
    split_of = {
        name: next(split for split in ("test", "val", "train") if at < bounds[split][1] or split == "train")
        for name, at in place.items()
    }
    assignment = Assignment(split_of)
    for split in wanted:
        if split not in split_of.values():
            _move_nearest(assignment, split, bounds[split], place)
    return assignment


def _move_nearest(assignment: Assignment, split: str, bounds: tuple[float, float], place: dict[str, float]) -> None:
    sizes = {split: list(assignment.split_of.values()).count(split) for split in SPLITS}
    low, high = bounds
    candidates = [name for name, its_split in assignment.split_of.items() if sizes[its_split] > 1]
    nearest = min(candidates, key=lambda name: (max(low - place[name], place[name] - high, 0.0), name))
    assignment.moved[nearest] = split
    assignment.split_of[nearest] = split
