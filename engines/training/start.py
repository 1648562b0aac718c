"""What is set in an engine's process before it loads anything."""

from __future__ import annotations

import torch
from transformers.utils import logging

from recipes.stages.training import TrainingFields


def set_up_process(stage: TrainingFields) -> None:
    """Give torch the stage's number of threads (without one, the environment's stands), and keep bars off the log."""
    if stage.threads is not None:
        torch.set_num_threads(stage.threads)
    logging.disable_progress_bar()
