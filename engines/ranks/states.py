"""What a checkpoint has of several processes: the random states of each, and weights that are divided over them.

A checkpoint has the same files for any number of processes: weights and optimizer whole, and `rng_state.pth` of the
first process. The others' random states are beside it, as transformers names them: `rng_state_1.pth`, …
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open

from engines.ranks.placement import divided_like, is_sharded

_FIRST = "rng_state.pth"


def random_states_file(rank: int) -> str:
    """The name of the file with the random states of a process."""
    return _FIRST if rank == 0 else f"rng_state_{rank}.pth"


def own_random_states(checkpoint: Path, work: Path, rank: int) -> Path | None:
    """A folder in which the file of this process has the name that Trainer reads; None if the checkpoint has none."""
    file = checkpoint / random_states_file(rank)
    if not file.is_file():
        return None
    folder = work / f"rng-{rank}"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, folder / _FIRST)
    return folder


def load_divided(model: Any, folder: Path) -> bool:
    """Load a folder's weights into a model whose weights are divided; False, and nothing loaded, if they are not."""
    if not is_sharded(model):
        return False
    here = dict(model.state_dict())
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - an open file, not a table
                model.load_state_dict({name: divided_like(tensors.get_tensor(name), here[name])}, strict=False)
    return True
