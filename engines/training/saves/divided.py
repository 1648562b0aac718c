"""What one process has of a training's tensors, by torch's own placement, and tensors filled from a sharded checkpoint.

Weights that FSDP2 divides are DTensors: each process has a box of them. What every process has whole (scalars, buffers)
is written by one of them, so that the bytes are spread evenly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers.core_model_loading import revert_weight_conversion

from engines.artifacts.sharded import MODEL_PREFIX, OPTIMIZER_PREFIX, SHARDS, TRAINING, Box, ShardsError
from engines.files import read_regular_bytes
from engines.json_text import parse_json
from engines.ranks.placement import part_of
from engines.training.saves.shards import Piece, Shards

MAX_TRAINING_BYTES = 64 * 1024 * 1024
_PAIRS = ("betas",)
"""Settings that are pairs, which JSON has as lists."""


def box_of(tensor: torch.Tensor) -> Box:
    """Offset and shape of what this process has of a tensor."""
    if not isinstance(tensor, DTensor):
        return (0,) * tensor.dim(), tuple(tensor.shape)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(offset), tuple(shape)


def training_tensors(model: Any, optimizer: Any) -> dict[str, torch.Tensor]:
    """The weights of a model, each once, and the state of its optimizer, by their names in a sharded checkpoint.

    Every process has the same names in the same order, and of each tensor its part or the whole.
    """
    same = _first_names(model)
    found = {
        f"{MODEL_PREFIX}{name}": value for name, value in model.state_dict().items() if same.get(name, name) == name
    }
    for number, weight in enumerate(_weights(optimizer)):
        for key, value in optimizer.state.get(weight, {}).items():
            assert torch.is_tensor(value), f"the optimizer's {key} is no tensor"
            found[f"{OPTIMIZER_PREFIX}{number}/{key}"] = value
    return found


def has_own_names(model: Any) -> bool:
    """Whether transformers stores each weight under its name in the model, unchanged: a part can be stored then."""
    state = {name: torch.empty(one.shape, dtype=one.dtype, device="meta") for name, one in model.named_parameters()}
    if getattr(model, "_keys_to_ignore_on_save", None):
        return False
    stored = revert_weight_conversion(model, dict(state))
    return {name: one.shape for name, one in stored.items()} == {name: one.shape for name, one in state.items()}


def pieces_of(tensors: Mapping[str, torch.Tensor], rank: int, size: int) -> dict[str, Piece]:
    """What this process writes of tensors that all processes have, in the same order.

    Args:
        tensors: by name.
        rank: of this process.
        size: number of processes.
    """
    found: dict[str, Piece] = {}
    load = [0] * size
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor) and any(placement.is_shard() for placement in tensor.placements):
            found[name] = Piece(part_of(tensor.detach()), box_of(tensor)[0], tuple(tensor.shape))
            continue
        local = part_of(tensor.detach())
        owner = load.index(min(load))
        load[owner] += tensor.numel() * tensor.element_size()
        if owner == rank:
            found[name] = Piece(local, (0,) * tensor.dim(), tuple(tensor.shape))
    return found


def group_settings(optimizer: Any) -> list[dict[str, Any]]:
    """The settings of the optimizer's groups of weights, which are numbered as in its state dict."""
    groups, first = [], 0
    for group in optimizer.param_groups:
        numbers = list(range(first, first + len(group["params"])))
        groups.append({**{key: value for key, value in group.items() if key != "params"}, "params": numbers})
        first += len(numbers)
    return groups


def fill_model(model: Any, checkpoint: Path) -> None:
    """Fill a model's weights, or this process's parts of them, from a sharded checkpoint.

    Raises:
        ShardsError: a shard is damaged, or the weights are those of another model.
    """
    shards, same = Shards(checkpoint), _first_names(model)
    there = {name.removeprefix(MODEL_PREFIX) for name in shards.names if name.startswith(MODEL_PREFIX)}
    here: dict[str, torch.Tensor] = model.state_dict()
    known = {same.get(name, name): name for name in there & here.keys()}
    missing = sorted(name for name in here if same.get(name, name) not in known)
    strange = sorted(there - here.keys())
    if missing or strange:
        raise ShardsError(f"the weights are those of another model, such as {(missing or strange)[0][:200]}")
    with torch.no_grad():
        for name in known.values():
            part_of(here[name]).copy_(_read(shards, f"{MODEL_PREFIX}{name}", here[name]))


def load_training(optimizer: Any, scheduler: Any, checkpoint: Path) -> None:
    """Load an optimizer's state, or this process's parts of it, the settings of its groups, and the schedule.

    Raises:
        ShardsError: a shard is damaged, or the state is that of other weights.
    """
    shards, weights = Shards(checkpoint), _weights(optimizer)
    state: dict[int, dict[str, Any]] = {}
    for name in shards.names:
        if not name.startswith(OPTIMIZER_PREFIX):
            continue
        number, _, key = name.removeprefix(OPTIMIZER_PREFIX).partition("/")
        if not number.isdecimal() or int(number) >= len(weights):
            raise ShardsError(f"{name[:80]!r} is the state of no weight of this training")
        state.setdefault(int(number), {})[key] = _state(shards, name, weights[int(number)])
    if sorted(state) != list(range(len(weights))):
        raise ShardsError("the optimizer's state is that of other weights")
    try:
        found = parse_json(read_regular_bytes(checkpoint / SHARDS / TRAINING, MAX_TRAINING_BYTES, follow=False))
        groups = [{**one, **{key: tuple(one[key]) for key in _PAIRS if key in one}} for one in found["groups"]]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        scheduler.load_state_dict(found["schedule"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ShardsError(f"{TRAINING} does not fit this training: {error}") from error


def training_bytes(groups: list[dict[str, Any]], schedule: Mapping[str, Any]) -> bytes:
    """The settings of the optimizer's groups and the state of the schedule, as a file."""
    return json.dumps({"groups": groups, "schedule": dict(schedule)}, indent=1).encode() + b"\n"


def _weights(optimizer: Any) -> list[torch.Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _first_names(model: Any) -> dict[str, str]:
    """The first name of each weight, by all its names: tied weights are one."""
    known: dict[int, str] = {}
    return {name: known.setdefault(id(one), name) for name, one in model.named_parameters(remove_duplicate=False)}


def _read(shards: Shards, name: str, like: torch.Tensor) -> torch.Tensor:
    """What this process needs of a stored tensor in the place of another one."""
    if shards.shape(name) != tuple(like.shape):
        raise ShardsError(f"{name} has the shape {list(shards.shape(name))}, not {list(like.shape)}")
    return shards.read(name, box_of(like))


def _state(shards: Shards, name: str, weight: torch.Tensor) -> torch.Tensor:
    """A state of a weight, divided as the weight is if it has a value for each of the weight's."""
    if not isinstance(weight, DTensor) or shards.shape(name) != tuple(weight.shape):
        return shards.read(name)
    local = _read(shards, name, weight).to(weight.device)
    return DTensor.from_local(
        local, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride()
    )
