"""Process-wide settings of an engine, made before it loads a model, and the line that says what it computes with."""

from __future__ import annotations

from contextlib import suppress
from importlib import metadata

import torch
from transformers.utils import logging

from engines.forward.arrangement import causal_model
from engines.forward.rows_attention import NAME, OWN
from recipes.stages.training import TrainingFields

_SHOWN = {"hf": ("transformers", "peft"), "unsloth": ("unsloth", "unsloth_zoo", "transformers", "peft")}
"""The distributions that the line of a backend names, with their versions."""


def set_up_process(stage: TrainingFields) -> None:
    """Set torch's number of threads from the stage, if it has one, and keep progress bars out of the log."""
    if stage.threads is not None:
        torch.set_num_threads(stage.threads)
    logging.disable_progress_bar()


def setup_text(
    model: torch.nn.Module, device: torch.device, *, bf16: bool, arrangement: str, backend: str = "hf"
) -> str:
    """What a training computes with: libraries, device, number formats, attention, arrangement of its rows, and threads
    on the CPU.

    Args:
        model: the model as it is trained.
        device: the device of its first step.
        bf16: matrix products are computed in bfloat16.
        arrangement: how the rows of a batch are computed, as text; empty where every row is full.
        backend: the libraries that loaded and adapted the model.
    """
    frozen = {str(weight.dtype).removeprefix("torch.") for weight in model.parameters() if not weight.requires_grad}
    parts = [libraries(backend), f"on {device.type}", f"products in {'bfloat16' if bf16 else 'float32'}"]
    if frozen:
        parts.append(f"frozen weights in {' and '.join(sorted(frozen))}")
    attention = getattr(causal_model(model).config, "_attn_implementation", None)
    if attention:
        parts.append(f"attention {OWN if attention == NAME else attention}")
    if arrangement:
        parts.append(arrangement)
    if device.type == "cpu":
        count = torch.get_num_threads()
        parts.append(f"{count} thread{'' if count == 1 else 's'}")
    return ", ".join(parts)


def libraries(backend: str) -> str:
    """A backend's libraries with their versions, such as `hf: transformers 5.23.0, peft 0.21.2`."""
    found = []
    for name in _SHOWN[backend]:
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return f"{backend}: {', '.join(found)}"
