"""Continue from a sharded checkpoint, in any number of processes and with any strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.artifacts.sharded import ShardsError
from engines.training.saves import divided
from recipes.problems import OperatorError, printable

_OTHER = "resume from another checkpoint"


def load_weights(model: Any, checkpoint: Path) -> None:
    """Fill a model, divided or not, with the weights of a checkpoint.

    Raises:
        OperatorError: the checkpoint is damaged, or is one of another model.
    """
    try:
        divided.fill_model(model, checkpoint)
    except ShardsError as error:
        raise OperatorError(f"checkpoint {checkpoint}: {printable(str(error), 400)}", _OTHER) from error


def load_training(optimizer: Any, scheduler: Any, checkpoint: Path) -> None:
    """Load the optimizer's state and the schedule.

    Raises:
        OperatorError: the checkpoint is damaged, or is one of another model.
    """
    try:
        divided.load_training(optimizer, scheduler, checkpoint)
    except ShardsError as error:
        raise OperatorError(f"checkpoint {checkpoint}: {printable(str(error), 400)}", _OTHER) from error
