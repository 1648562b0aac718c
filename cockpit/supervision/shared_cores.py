"""Engines that share this machine's cores: how many others run, and what a launch says about it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from cockpit.provenance.mark import RUN_ENV
from engines.run_dir.paths import RunDir

WAITS, SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
"""What a thread does that waits for the others: the policy, and how often libgomp's loop looks before it sleeps."""
BRIEF_SPINS = "1000"
"""About ten microseconds: what most waits within a step take, and less than waking a thread."""
PROGRAMS = (b"engines.run", b"exporters.run")


def other_engines(run: RunDir) -> int:
    """The number of engines of this user's other runs on this machine."""
    return sum(1 for _ in environments_of_others(run))


def environments_of_others(run: RunDir) -> Iterator[dict[bytes, bytes]]:
    """The environments of the engines of this user's other runs on this machine, as they were started."""
    mine, uid = os.fsencode(str(run.root)), os.getuid()
    name = os.fsencode(RUN_ENV)
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            if words[1:2] != [b"-m"] or words[2:3] == [] or words[2] not in PROGRAMS or entry.stat().st_uid != uid:
                continue
            pairs = (pair.partition(b"=") for pair in Path(entry.path, "environ").read_bytes().split(b"\0"))
            found = {key: value for key, _, value in pairs}
            if found.get(name, mine) != mine:
                yield found


def thread_waits(environment: Mapping[str, str], others: int) -> dict[str, str]:
    """The variables for how an engine's threads wait for each other; an operator's value of either has priority.

    A thread that spins takes a core from another engine, and one that sleeps is late for the next product. So threads
    sleep at once beside other engines, and an engine that is alone spins briefly.

    Args:
        environment: of the engine so far.
        others: engines of other runs on this machine at its start.
    """
    if WAITS in environment or SPINS in environment:
        return {}
    return {WAITS: "PASSIVE"} if others else {WAITS: "PASSIVE", SPINS: BRIEF_SPINS}


def sharing_words(others: int, cores: int, threads: int) -> str:
    """What a launch says about engines that share the cores; "" when there are cores for all.

    Args:
        others: engines of other runs.
        cores: cores of the machine.
        threads: threads of this engine.
    """
    if not others or (others + 1) * threads <= cores:
        return ""
    runs = "1 other engine runs" if others == 1 else f"{others} other engines run"
    each = "core" if cores == 1 else "cores"
    return (
        f"{runs} on this machine: they share its {cores} {each}, and each takes longer; "
        f"the field threads of a stage limits the threads of its engine (now {threads})"
    )
