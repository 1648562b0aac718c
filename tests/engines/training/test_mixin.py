"""The mixin of measurements and guards fits over TRL's trainers too (D-17)."""

from __future__ import annotations

import inspect

import pytest
import trl
from transformers import Trainer

from engines.training.steps.mixin import EngineMixin

OWN = {"of_all_processes", "_measure_over_processes", "_made_optimizer"}
"""Methods of the mixin alone, that no trainer may have."""
HOOKS = [name for name, value in vars(EngineMixin).items() if inspect.isfunction(value) and name not in OWN]


@pytest.mark.parametrize("base", [Trainer, trl.SFTTrainer, trl.DPOTrainer])
def test_every_method_of_the_mixin_replaces_one_of_the_trainer_and_can_be_called_as_it(base: type[Trainer]) -> None:
    combined = type("Combined", (EngineMixin, base), {})
    assert len(HOOKS) == 12
    assert not [name for name in OWN if hasattr(base, name)]
    for name in HOOKS:
        assert getattr(combined, name) is vars(EngineMixin)[name]
        theirs = inspect.signature(getattr(base, name)).parameters.values()
        given = [None for parameter in theirs if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
        inspect.signature(vars(EngineMixin)[name]).bind(*given)
