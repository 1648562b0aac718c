"""Process-wide settings of an engine, made before it loads a model, and the line that says what it computes with."""

from __future__ import annotations

import torch
from transformers.utils import logging

from recipes.stages.training import TrainingFields


def set_up_process(stage: TrainingFields) -> None:
    """Set torch's number of threads from the stage, if it has one, and keep progress bars out of the log."""
    if stage.threads is not None:
        torch.set_num_threads(stage.threads)
    logging.disable_progress_bar()


def setup_text(model: torch.nn.Module, device: torch.device, *, bf16: bool, arrangement: str) -> str:
    """What a training computes with: device, number formats, arrangement of its rows, and threads on the CPU.

    Args:
        model: the model as it is trained.
        device: the device of its first step.
        bf16: matrix products are computed in bfloat16.
        arrangement: how the rows of a batch are computed, as text; empty where every row is full.
    """
    frozen = {str(weight.dtype).removeprefix("torch.") for weight in model.parameters() if not weight.requires_grad}
    parts = [f"on {device.type}", f"products in {'bfloat16' if bf16 else 'float32'}"]
    if frozen:
        parts.append(f"frozen weights in {' and '.join(sorted(frozen))}")
    if arrangement:
        parts.append(arrangement)
    if device.type == "cpu":
        count = torch.get_num_threads()
        parts.append(f"{count} thread{'' if count == 1 else 's'}")
    return ", ".join(parts)
