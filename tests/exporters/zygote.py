"""`python zygote.py STAGES`: runs attempts of exporter stages, each in a forked child, so that imports are paid once.

Reads paths of `stage.json` files, one per line, each followed by the number of bytes after which the child is killed
with SIGKILL (0: never; below 0: no file may grow beyond so many, as on a full disk). Prints, per attempt, the child's
wait status and the bytes that it had written when it ended.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch
import transformers

import exporters.stages.export_stage
import exporters.stages.merge_stage
from engines.host import host_main
from recipes.stages.registry import modules_of

LOADED = (
    exporters.stages.export_stage,
    exporters.stages.merge_stage,
    transformers.AutoModelForCausalLM,
    transformers.AutoTokenizer,
)


def attempt(stage_json: str) -> None:
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    host_main(["zygote", stage_json], modules_of("exporters.run"))


def written(pid: int) -> int:
    """Bytes the process has passed to write calls so far (proc(5), wchar)."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("wchar")).split()[1])
    return 0


def watch(pid: int, limit: int) -> tuple[int, int]:
    seen = 0
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status, seen
        seen = max(seen, written(pid))
        if limit and seen >= limit:
            os.kill(pid, signal.SIGKILL)
            return os.waitpid(pid, 0)[1], seen


def main() -> None:
    for line in sys.stdin:
        path, _, limit = line.strip().rpartition(" ")
        child = os.fork()
        if child == 0:
            if int(limit) < 0:
                resource.setrlimit(resource.RLIMIT_FSIZE, (-int(limit), resource.RLIM_INFINITY))
            attempt(path)
        print(*watch(child, max(0, int(limit))), flush=True)


if __name__ == "__main__":
    main()
