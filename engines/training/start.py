"""Process-wide settings of an engine, made before it loads a model."""

from __future__ import annotations

import torch
from transformers.utils import logging

from recipes.stages.training import TrainingFields


def set_up_process(stage: TrainingFields) -> None:
    """Set torch's number of threads from the stage, if it has one, and keep progress bars out of the log."""
    if stage.threads is not None:
        torch.set_num_threads(stage.threads)
    logging.disable_progress_bar()
