"""What the processes of all hosts must have in common before they train: each host has a run of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True)
class Beginning:
    """What one process begins with.

    Attributes:
        host: the name of its host.
        run: the id of its run.
        fingerprint: of the stage's fields and inputs.
        resume: the step and the SHA-256 of the checkpoint that it resumes from; None at the start.
        root: the folder of its run.
        place: the folder of that checkpoint.
    """

    host: str
    run: str
    fingerprint: str
    resume: tuple[int, str] | None
    root: str = ""
    place: str = ""


def disagreement(found: Sequence[Beginning]) -> str:
    """What a process begins with otherwise than rank 0, with the way out; empty if all begin alike."""
    first = found[0]
    for rank, other in enumerate(found):
        where = f"rank {rank} on {other.host} (run {other.run})"
        if other.fingerprint != first.fingerprint:
            return (
                f"{where} has other fields or other data than rank 0 on {first.host} (run {first.run}): launch the same"
                " recipe with the same files on every host"
            )
        if other.resume != first.resume:
            return (
                f"{where} begins {_beginning(other)}, and rank 0 on {first.host} (run {first.run})"
                f" {_beginning(first)}: {_way_out(first, other)}"
            )
    return ""


def _way_out(first: Beginning, other: Beginning) -> str:
    """What to do on the other host; it names the checkpoint that is missing there."""
    inside = PurePath(first.place)
    if first.resume is None or not inside.is_relative_to(first.root):
        return "launch both again"
    missing = PurePath(other.root) / inside.relative_to(first.root)
    return (
        f"{other.host} needs the folder {missing}, a copy of {inside} of {first.host}: copy it there and resume both"
        " runs, or launch both again"
    )


def _beginning(one: Beginning) -> str:
    return "at step 0" if one.resume is None else f"from the checkpoint of step {one.resume[0]}"
