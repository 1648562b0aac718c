"""How many CPU threads torch uses."""

from __future__ import annotations

import torch


def use_threads(threads: int | None) -> None:
    """Give torch the stage's number of threads; without one, what the environment says stands."""
    if threads is not None:
        torch.set_num_threads(threads)
