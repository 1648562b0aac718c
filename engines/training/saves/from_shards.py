"""Continue from a sharded checkpoint, in any number of processes and with any strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from engines.artifacts.sharded import ShardsError
from engines.training.saves.divided import fill_model, load_optimizer
from engines.training.saves.parts import SCHEDULER
from recipes.problems import OperatorError, printable

_OTHER = "resume from another checkpoint"


def load_weights(model: Any, checkpoint: Path) -> None:
    """Fill a model, divided or not, with the weights of a checkpoint.

    Raises:
        OperatorError: the checkpoint is damaged, or is one of another model.
    """
    try:
        fill_model(model, checkpoint)
    except ShardsError as error:
        raise OperatorError(f"checkpoint {checkpoint}: {printable(str(error), 400)}", _OTHER) from error


def load_training(optimizer: Any, scheduler: Any, checkpoint: Path) -> None:
    """Load the optimizer's state and the schedule.

    Raises:
        OperatorError: the checkpoint is damaged, or is one of another model.
    """
    try:
        load_optimizer(optimizer, checkpoint)
        scheduler.load_state_dict(torch.load(checkpoint / SCHEDULER, map_location="cpu", weights_only=True))
    except (ShardsError, OSError) as error:
        raise OperatorError(f"checkpoint {checkpoint}: {printable(str(error), 400)}", _OTHER) from error
