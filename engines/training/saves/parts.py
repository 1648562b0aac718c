"""The parts of a training that a checkpoint keeps, and their files, which have Trainer's names.

This is the one place that says what is saved of a training. Trainer restores it from the files.
"""

from __future__ import annotations

import copy
import dataclasses
import errno
import hashlib
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import Trainer
from transformers.training_args import ParallelMode

from engines.json_text import read_object
from engines.ranks.placement import is_sharded, part_of, whole
from engines.ranks.states import random_states_file
from engines.world import world

MODEL, OPTIMIZER, SCHEDULER, SCALER, RANDOM, STATE = (
    "model", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "trainer_state.json",
)  # fmt: skip


class Copies(Protocol):
    """Makes copies of tensors in host memory."""

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The copy of a tensor."""
        ...

    def within(self, value: Any) -> Any:
        """The same tables and lists with copies of their tensors."""
        ...


@dataclass(frozen=True)
class Parts:
    """A training at one step.

    Attributes:
        model: its state dict; frozen weights are in it too.
        trained: the names in it that training changes.
        optimizer: its state dict.
        scheduler: its state dict.
        random_states: by generator, as Trainer names them.
        others: those of the other processes, by rank from 1.
        state: Trainer's own counters.
        scaler: the state of the loss's scale in float16; None in other formats.
    """

    model: Mapping[str, Any]
    trained: frozenset[str]
    optimizer: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    random_states: Mapping[str, Any]
    state: Any
    others: tuple[Mapping[str, Any], ...] = ()
    scaler: Mapping[str, Any] | None = None

    def changing(self) -> Iterator[torch.Tensor]:
        """Every tensor that the next step may change."""
        yield from (self.model[name] for name in sorted(self.trained))
        yield from _tensors(self.optimizer)

    def copied(self, copies: Copies) -> Parts:
        """The same with copies of everything that the next step may change."""
        model = {name: copies.of(value) if name in self.trained else value for name, value in self.model.items()}
        return dataclasses.replace(self, model=model, optimizer=copies.within(self.optimizer))

    def all_finite(self) -> bool:
        """Whether every trained weight and every floating tensor of the optimizer's state is finite."""
        return finite(self.changing())


def parts_of(trainer: Trainer, others: Sequence[Mapping[str, Any]] = ()) -> Parts:
    """The parts as they are now: the tensors are the training's own, everything else is a copy.

    Weights and states that are divided over processes come together, which is an exchange: meanwhile the other
    processes call `take_part`.
    """
    model = trainer.model
    state = whole_weights(model) or model.state_dict()
    own = [] if is_sharded(model) else list(model.parameters())
    frozen = {_storage(weight) for weight in own if not weight.requires_grad}
    frozen -= {_storage(weight) for weight in own if weight.requires_grad}
    trained = {name for name, value in state.items() if torch.is_tensor(value) and _storage(value) not in frozen}
    return Parts(
        model=dict(state),
        trained=frozenset(trained),
        optimizer=trainer.optimizer.state_dict(),
        scheduler=copy.deepcopy(trainer.lr_scheduler.state_dict()),
        random_states=random_states(trainer),
        state=copy.deepcopy(trainer.state),
        others=tuple(others),
        scaler=None if trainer.accelerator.scaler is None else trainer.accelerator.scaler.state_dict(),
    )


def take_part(trainer: Trainer) -> None:
    """Give the parts that this process has to the first one: the same exchanges in the same order as `parts_of`."""
    whole_weights(trainer.model, keep=False)
    trainer.optimizer.state_dict()


def whole_weights(model: Any, *, keep: bool = True) -> dict[str, Any] | None:
    """The state dict of a model whose weights are divided over the processes, whole; None where they are not divided.

    Every process must call it. `keep`: whether this one needs the result.
    """
    if not is_sharded(model):
        return None
    same: dict[int, str] = {}  # tied weights are one tensor, as in a model that is not divided
    first = {name: same.setdefault(id(one), name) for name, one in model.named_parameters(remove_duplicate=False)}
    state = dict(model.state_dict())
    found = {name: whole(value, keep=keep) for name, value in state.items() if first.get(name, name) == name}
    return {name: found[first.get(name, name)] for name in state}


def write_parts(folder: Path, model: Any, parts: Parts) -> None:
    """Write model or adapter, optimizer, scheduler, random states and Trainer's state, with Trainer's file names.

    Args:
        folder: a new folder.
        model: the model that the parts are of; its weights are not read.
        parts: what to write.

    Raises:
        OSError: the disk is full or fails, or the folder is missing.
    """
    if not folder.is_dir():  # the run was moved since, and libraries would make its folders again
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    write_model(model, folder, dict(parts.model))
    torch.save(parts.optimizer, folder / OPTIMIZER)
    torch.save(parts.scheduler, folder / SCHEDULER)
    if parts.scaler is not None:
        torch.save(dict(parts.scaler), folder / SCALER)
    write_states(folder, parts.random_states, parts.others, parts.state)


def write_states(folder: Path, random_states: Any, others: Sequence[Mapping[str, Any]], state: Any) -> None:
    """Write the random states of all processes, and Trainer's counters."""
    torch.save(random_states, folder / RANDOM)
    for rank, states in enumerate(others, 1):
        torch.save(dict(states), folder / random_states_file(rank))
    state.save_to_json(str(folder / STATE))


def write_settings(model: Any, folder: Path) -> None:
    """Write what a model's folder has beside its weights: config.json, generation_config.json."""
    model.save_pretrained(str(folder), state_dict={})
    for file in folder.glob("*.safetensors"):
        file.unlink()


def save_model(model: Any, folder: Path) -> None:
    """Write a trained model in the first process; the others give it their parts."""
    first = world().is_first
    weights = whole_weights(model, keep=first)
    if first:
        write_model(model, folder, weights)


def write_model(model: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """Save a model as a Hugging Face folder, or a PEFT model's adapter as an adapter folder; always safetensors.

    Args:
        model: the model.
        folder: where to.
        weights: its state dict; None for its present one.
    """
    if hasattr(model, "peft_config"):
        model.save_pretrained(str(folder), save_embedding_layers=_is_resized(model), state_dict=weights)
        with suppress(FileNotFoundError):
            (folder / "README.md").unlink()  # an empty template for a model hub
    else:
        model.save_pretrained(str(folder), state_dict=weights)


def finite(tensors: Iterator[torch.Tensor]) -> bool:
    """Whether tensors of any shape and type contain only finite values."""
    # A finite sum proves all parts finite in one pass without a mask; only a non-finite sum needs the slower check.
    for tensor in tensors:
        detached = part_of(tensor.detach())
        if not detached.is_floating_point() or bool(torch.isfinite(detached.sum(dtype=torch.float32))):
            continue
        if not bool(torch.isfinite(detached).all()):
            return False
    return True


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested tables and lists, in their order."""
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def random_states(trainer: Trainer) -> dict[str, Any]:
    """Those of this process."""
    states: dict[str, Any] = {
        "python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.random.get_rng_state()
    }  # fmt: skip
    if torch.cuda.is_available():
        many = trainer.args.parallel_mode == ParallelMode.DISTRIBUTED
        states["cuda"] = torch.cuda.random.get_rng_state_all() if many else torch.cuda.random.get_rng_state()
    return states


def _is_resized(adapted: Any) -> bool:
    """Whether a PEFT model has another number of embedding rows than its base model's folder."""
    base = Path(next(iter(adapted.peft_config.values())).base_model_name_or_path or "")
    rows = adapted.get_input_embeddings().weight.shape[0]
    return (base / "config.json").is_file() and read_object(base / "config.json").get("vocab_size", rows) < rows


def random_states_sha256() -> str:
    """The SHA-256 of the random states that decide what comes next: Python's, numpy's, torch's of the CPU and of each
    device. Equal for equal states, in any process."""
    digest = hashlib.sha256()
    digest.update(repr(random.getstate()).encode())
    digest.update(repr([np.asarray(part).tolist() for part in np.random.get_state()]).encode())
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
    for state in states:
        digest.update(state.numpy().tobytes())
    return digest.hexdigest()
