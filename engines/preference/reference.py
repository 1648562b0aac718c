"""The reference of a training on preferences: the model as it was before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.func import functional_call

from engines.context import StageContext
from engines.finetune.added_tokens import add_rows
from engines.finetune.model import load_base
from engines.json_text import read_object
from engines.training.beginning import first_weights, require_fitting_weights, start_folder
from recipes.problems import OperatorError
from recipes.stages.dpo import DpoStage, PreferenceFields

PREFERENCE_JSON = "preference.json"
"""In a checkpoint and an output: what the training compared the model with."""
BASE, START = "model", "start_from"

_OFF = "_disable_adapters"
"""PEFT's attribute of a layer that it adapts: the layer computes without its adapter."""

Reference = Callable[..., Any]
"""Called as the model, gives what the model gave before the first step."""


def reference_of(model: Any, *, is_base: bool) -> Reference:
    """The reference of an adapted model that has its first weights.

    It draws no random numbers: dropout is off in it.

    Args:
        model: the adapted model, before its first step.
        is_base: its adapter changes nothing yet, so the reference is the base model; else it is a copy of every weight
            that is trained.
    """
    first = {} if is_base else {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    modules = list(model.modules())
    adapted = [module for module in modules if _OFF in module.__dict__]
    assert adapted, "PEFT's layers cannot be turned off: this version of PEFT is unsupported"

    def forward(**inputs: Any) -> Any:
        with torch.no_grad(), _set(modules, "training", to=False):
            if first:
                return functional_call(model, first, (), inputs)
            with _set(adapted, _OFF, to=True):
                return model(**inputs)

    return forward


@contextmanager
def _set(modules: Sequence[torch.nn.Module], name: str, *, to: bool) -> Iterator[None]:
    """Within it, an attribute of modules has a value.

    `eval` and PEFT's `disable_adapter` do this with several walks over all modules, and with the search of each
    assignment for parameters: a tenth of a step of a small model.
    """
    changed = [module for module in modules if module.__dict__[name] is not to]
    for module in changed:
        module.__dict__[name] = to
    try:
        yield
    finally:
        for module in changed:
            module.__dict__[name] = not to


def load_reference(ctx: StageContext[PreferenceFields], base: Path, start: str, added_tokens: list[int]) -> Any:
    """The reference of a training of all weights: a model of its own, in float32 as the trained one, never changed.

    Args:
        ctx: the stage.
        base: the model's folder.
        start: the field that the reference is of.
        added_tokens: tokens that a chosen template has added to the model.
    """
    weights = first_weights(ctx) if start == START else None
    model, _ = load_base(base, weights=weights)
    if added_tokens and weights is None:
        add_rows(model, added_tokens)
    return model.eval().requires_grad_(False)


def load_start(ctx: StageContext[PreferenceFields], model: Any) -> str:
    """Check the weights of `start_from`, and load them into an adapter, also at a resume: they are the reference.

    All weights of a model are loaded when the training begins, and into its reference.

    Returns:
        The name of the field that the reference is of.

    Raises:
        OperatorError: the weights do not fit, or `start_from` is a checkpoint of a training with another reference.
    """
    folder = start_folder(ctx)
    if folder is None:
        return BASE
    weights = first_weights(ctx)
    if weights is None:
        _require_base(folder)
        return BASE
    require_fitting_weights(weights, model)
    if isinstance(ctx.stage, DpoStage):
        model.load_adapter(str(weights), "default", is_trainable=True)
    return START


def _require_base(checkpoint: Path) -> None:
    """A checkpoint that is continued must be of a training whose reference is known here: its base model."""
    file = checkpoint / PREFERENCE_JSON
    found = read_object(file).get("reference") if file.is_file() else None
    if found != BASE:
        raise OperatorError(
            f"start_from — {checkpoint} is not a checkpoint of a training on preferences whose reference is its model",
            "start from its weights instead: RUN:STAGE without @STEP",
        )
