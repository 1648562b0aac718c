"""What the processes of all hosts must have in common before they train: each host has a run of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Beginning:
    """What one process begins with.

    Attributes:
        host: the name of its host.
        run: the id of its run.
        fingerprint: of the stage's fields and inputs.
        resume: the step and the SHA-256 of the checkpoint that it resumes from; None at the start.
    """

    host: str
    run: str
    fingerprint: str
    resume: tuple[int, str] | None


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
                f" {_beginning(first)}: copy the folder of rank 0's attempts into the other run, or launch both again"
            )
    return ""


def _beginning(one: Beginning) -> str:
    return "at step 0" if one.resume is None else f"from the checkpoint of step {one.resume[0]}"
