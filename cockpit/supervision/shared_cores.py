"""Engines that share this machine's cores: how many others run, and what a launch says about it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cockpit.provenance.mark import RUN_ENV
from engines.run_dir import RunDir

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
