"""`python sharded_save.py`: two ranks that save one sharded checkpoint, of which one dies at a place.

Each save is two forked children, so that imports are paid once. Reads lines of JSON, `{"folder": PATH, "step": N,
"seed": N, "rank": R or null, "at": "change" | "fsync", "count": K}`: before its K-th change to files, or its K-th sync,
the rank dies by SIGKILL. Prints the exit codes of both; the first rank stops waiting when the other has died.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

_CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate"}


def die_at(at: str, count: int) -> None:
    left = [count]

    def counted() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if at == "fsync":
        real = os.fsync

        def fsync(fd: Any) -> None:
            counted()
            real(fd)

        os.fsync = fsync
        return

    def heard(event: str, args: tuple[Any, ...]) -> None:
        if event in _CHANGES and not (event == "open" and not (args[2] & (os.O_WRONLY | os.O_RDWR))):
            counted()

    sys.addaudithook(heard)


def save(folder: Path, step: int, seed: int, rank: int, lives: Callable[[], bool]) -> None:
    """What a rank does in a sharded save; the first one commits."""
    import torch

    from engines.artifacts.manifest import commit_folder, write_manifest
    from engines.training.saves import shards

    draft = folder / f".tmp-step-{step}-0"
    generator = torch.Generator().manual_seed(seed)
    whole = {"embed": torch.randn(7, 4, generator=generator), "norm": torch.randn(4, generator=generator)}
    half = [(0, 4), (4, 7)][rank]
    pieces = {"embed": shards.Piece(whole["embed"][slice(*half)], (half[0], 0), (7, 4))}
    if rank == 1:
        pieces["norm"] = shards.Piece(whole["norm"], (0,), (4,))
    shards.write_shard(draft, rank, 2, pieces)
    if rank == 0:
        shards.collect_shards(draft, 2, why_stop=lambda: "" if lives() else "rank 1 has died", timeout_s=60.0)
        (draft / "config.json").write_text("{}")
        write_manifest(draft, step=step, healthy=True)
        commit_folder(draft, folder / f"step-{step}")


def main() -> None:
    import torch

    import engines.training.saves.shards  # noqa: F401 - loaded once, before the forks

    torch.set_num_threads(1)
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        wanted = json.loads(line)
        folder = Path(wanted["folder"])
        (folder / f".tmp-step-{wanted['step']}-0" / "shards").mkdir(parents=True)
        children: list[int] = []
        for rank in (1, 0):
            child = os.fork()
            if child == 0:
                os.close(answers)
                code = 0
                try:
                    if wanted["rank"] == rank:
                        die_at(wanted["at"], wanted["count"])
                    save(folder, wanted["step"], wanted["seed"], rank, partial(lives, *children))
                except OSError:
                    code = 3
                os._exit(code)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in reversed(children)]
        os.write(answers, f"{json.dumps(codes)}\n".encode())


def lives(pid: int = 0) -> bool:
    """Whether a sibling has not ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    main()
