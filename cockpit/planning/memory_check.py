"""Whether the trainings of a recipe fit into memory, and what would make them fit, at which cost."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cockpit.planning.memory import (
    ACCURACY,
    LIBRARIES_BYTES,
    OPTIMIZER_BYTES,
    MemoryNeed,
    computes_in_bfloat16,
    fills_sequences,
    memory_need,
)
from cockpit.planning.stages import longest_row, matrices_of, shape_of
from engines.look.answer import StageLook
from engines.machine.device_identity import nvidia_gpus
from engines.processor import available_memory_bytes, memory_limit_bytes, native_bfloat16
from recipes.load import LoadedRecipe
from recipes.problems import Problem
from recipes.quantities import percent, size
from recipes.stages.decoder.sizes import Sizes
from recipes.stages.finetune import FinetuneStage
from recipes.stages.steps import smaller_batch
from recipes.stages.training import TrainingFields

_GPU = Path("/dev/nvidia0")
_MOST_HALVINGS = 12


@dataclass(frozen=True)
class Memory:
    """The memory of a machine: all that a process may have, and what is free now; in bytes."""

    total: int
    free: int

    @staticmethod
    def here() -> Memory | None:
        """This machine's, within the limits of this process; None with a GPU, whose memory the engine uses."""
        if _GPU.exists():
            return None
        found = psutil.virtual_memory()
        of_groups = memory_limit_bytes()
        limits = [found.total + psutil.swap_memory().total, *filter(None, [of_groups]), *_process_limits()]
        return Memory(min(limits), min(available_memory_bytes() or found.available, *limits))


def _process_limits() -> Iterator[int]:
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield soft


@dataclass(frozen=True)
class StageMemory:
    """What one training needs, and how to compute it again with other fields."""

    stage: TrainingFields
    shape: Sizes
    bf16: bool
    longest: int | None
    on_gpu: bool = False
    processes: int = 1
    """processes that share the memory: each has what one needs"""
    matrices: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """inputs and outputs of the model's linear layers by name, where its folder has them"""

    @property
    def need(self) -> MemoryNeed:
        """With the stage's own fields."""
        return self.need_with()

    def need_with(self, **fields: object) -> MemoryNeed:
        """With other values of these fields."""
        stage = self.stage.model_copy(update=fields) if fields else self.stage
        return memory_need(
            stage, self.shape, bf16=self.bf16, longest=self.longest, on_gpu=self.on_gpu, matrices=self.matrices
        )

    def whole(self, **fields: object) -> int:
        """The estimate in bytes, with the libraries of each process."""
        return self.processes * (LIBRARIES_BYTES + self.need_with(**fields).total)


def recipe_memory(
    loaded: LoadedRecipe, looks: Mapping[str, StageLook], *, bf16: bool | None = None
) -> dict[str, StageMemory]:
    """The trainings of a recipe whose shapes are known, by name.

    Args:
        loaded: the recipe.
        looks: what a look at the data found.
        bf16: the machine computes in bfloat16; None: as this one does.
    """
    by_name = {stage.name: stage for stage in loaded.recipe.stage}
    native = bool(native_bfloat16()) if bf16 is None else bf16
    found = {}
    for stage in loaded.recipe.stage:
        shape = shape_of(stage, by_name, loaded.graph) if isinstance(stage, TrainingFields) else None
        if shape is not None and isinstance(stage, TrainingFields):
            computes = computes_in_bfloat16(stage, natively=native)
            longest = longest_row(looks.get(stage.name))
            found[stage.name] = StageMemory(
                stage,
                shape,
                computes,
                longest,
                on_gpu=bool(nvidia_gpus()),
                processes=stage.launch.processes,
                matrices=matrices_of(stage, by_name, loaded.graph),
            )
    return found


def memory_words(one: StageMemory) -> str:
    """The estimate with its parts."""
    need = one.need
    fills = fills_sequences(one.stage)
    what = "sequences" if fills else "rows"
    tokens = one.stage.max_length if one.longest is None or fills else min(one.longest, one.stage.max_length)
    copies = f"; async_save copies {size(need.copies)} more, where there is room" if need.copies else ""
    kernels = f", kernels {size(need.kernels)}" if need.kernels else ""
    each = f", for {one.processes} processes, each of them" if one.processes > 1 else ""
    return (
        f"about {size(one.whole())} of memory at its peak (within {percent(ACCURACY)} on a CPU) if {what} have {tokens}"
        f" tokens{each}: weights {size(need.weights)}, gradients {size(need.gradients)}, optimizer"
        f" {size(need.optimizer)}, activations {size(need.activations)}, logits {size(need.logits)}, libraries"
        f" {size(LIBRARIES_BYTES)}{kernels}{copies}"
    )


def memory_warning(one: StageMemory, memory: Memory) -> str:
    """What is said of a training that may not fit; empty for one that does."""
    if one.whole() <= memory.free:
        return ""
    what = "free" if one.whole() <= memory.total else "there"
    have = memory.free if what == "free" else memory.total
    return f"needs about {size(one.whole())}, and {size(have)} are {what}; {ways_to_fit(one, have)}"


def ways_to_fit(one: StageMemory, limit: int) -> str:
    """The changes with which a training fits, each with its need and its cost, the cheapest first."""
    found = [words for words, needed in _changes(one, limit) if needed <= limit]
    if found:
        return "; ".join(found)
    return "no smaller micro-batch fits: a smaller model, or a machine with more memory"


def _changes(one: StageMemory, limit: int) -> Iterator[tuple[str, int]]:
    stage = one.stage
    batch: dict[str, object] = {}
    smallest = smaller_batch(stage.per_device_train_batch_size, stage.gradient_accumulation_steps)
    for _ in range(_MOST_HALVINGS):
        if smallest is None or (batch and one.whole(**batch) <= limit):
            break
        batch = {"per_device_train_batch_size": smallest[0], "gradient_accumulation_steps": smallest[1]}
        smallest = smaller_batch(*smallest)
    named = ", ".join(f"{name} = {value}" for name, value in batch.items())
    if batch:
        yield f"{named}: about {size(one.whole(**batch))}, with the same rows in a step", one.whole(**batch)
    if not stage.gradient_checkpointing:
        for more in (dict[str, object](), batch):
            needed = one.whole(gradient_checkpointing=True, **more)
            if needed <= limit or more:
                also = f", {named}" if more else ""
                yield f"gradient_checkpointing = true{also}: about {size(needed)}, about 20% slower", needed
                break
    too = f", {named}" if batch else ""
    if isinstance(stage, FinetuneStage) and not stage.load_in_4bit and not stage.takes_from_base:
        needed = one.whole(load_in_4bit=True, **batch)
        yield f"load_in_4bit = true{too}: about {size(needed)}, the base model is rounded", needed
    if OPTIMIZER_BYTES[stage.optim] == OPTIMIZER_BYTES["adamw_torch"] and not isinstance(stage, FinetuneStage):
        needed = one.whole(optim="adamw_8bit", **batch)
        yield f"optim = adamw_8bit{too}: about {size(needed)}, needs bitsandbytes", needed


def memory_problems(found: Mapping[str, StageMemory], loaded: LoadedRecipe) -> list[Problem]:
    """Trainings whose weights, gradients and optimizer alone exceed this machine's memory."""
    problems = []
    memory = Memory.here()
    for name, one in found.items():
        needed = one.processes * one.need.certain
        if memory is None or needed <= memory.total:
            continue
        field = "model" if "model" in type(one.stage).model_fields else "name"
        message = f"weights, gradients and optimizer need {size(needed)}; this machine has {size(memory.total)}"
        hint = ways_to_fit(one, memory.total)
        problems.append(Problem(loaded.path, loaded.line_of(name, field), f"{name}.{field}", message, hint=hint))
    return problems
