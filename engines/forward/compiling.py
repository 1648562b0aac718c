"""torch.compile for a training: the decoder layers, each of which is called in every step.

Layers of the same class share their compiled code, so the first step takes seconds to minutes, not their number times
that. Evaluations and samples run the same layers uncompiled: each would need code of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from engines.forward.rows_attention import keep_out_of_compiled_code
from engines.processor import NO_COMPILER, cpp_compiler
from recipes.problems import OperatorError

_CACHE = "TORCHINDUCTOR_CACHE_DIR"


class _Present:
    """Whether this process has compiled layers."""

    compiled = False


def require_compiler() -> None:
    """Check that compiled code can be made here, and keep it where no other user can write: it is executed.

    Raises:
        OperatorError: there is no C++ compiler.
    """
    if not cpp_compiler():
        raise OperatorError(f"torch_compile — {NO_COMPILER[0]}", NO_COMPILER[1])
    if _CACHE not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "cockpit" / "torchinductor"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ[_CACHE] = str(folder)


def compile_layers(model: Any, *, same_lengths: bool) -> int:
    """Compile the decoder layers of a model in place at their next call; returns their number. Names of weights stay.

    Args:
        model: a model of transformers, with or without an adapter.
        same_lengths: all sequences have one length. Otherwise the code takes any length from the first one on: code
            that depends on which lengths came before would make a resumed training another one.

    Raises:
        OperatorError: the model has no such layers.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise OperatorError(
            f"torch_compile — {type(model).__name__} has no decoder layers that transformers marks as such",
            "set torch_compile = false",
        )
    keep_out_of_compiled_code()
    _Present.compiled = True
    for layer in layers:
        layer.compile(dynamic=not same_lengths)
    return len(layers)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Compiled layers run as they are written meanwhile."""
    if not _Present.compiled:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
