"""A described machine: what the stages of a recipe could not do on a machine that is not this one.

A description is a TOML file with the machine's memory, its GPUs, and what is on it. `cockpit check --machine` finds
what a stage could not do there, before anything is downloaded or copied. Paths and models of the recipe are not looked
at: they are the other machine's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from cockpit.planning.compute_check import MORE_GPUS, OWN_BYTES, TOO_FEW_GPUS, TOO_MANY_PROCESSES, fewer_processes
from cockpit.planning.memory import OPTIMIZER_BYTES, SHAPE_KEYS, computes_in_bfloat16, shape_of_config
from cockpit.planning.memory_check import Memory, StageMemory, ways_to_fit
from cockpit.planning.stages import Plan, matrices_of, shape_of
from engines.processor import NO_GPU_FOR_LIGER
from recipes.load import LoadedRecipe
from recipes.problems import OperatorError, Problem, RecipeError, closest, printable, shown
from recipes.quantities import size
from recipes.source import Source
from recipes.stages.dpo import DpoModelStage
from recipes.stages.evaluate import EvaluateStage
from recipes.stages.fields import ComputeFields, DeviceFields, StageFields, Strict
from recipes.stages.finetune import FinetuneFields, FinetuneModelStage, FinetuneStage
from recipes.stages.kind import TESTED, backend_of
from recipes.stages.launch.fields import FSDP2, launch_of
from recipes.stages.registry import row_of
from recipes.stages.training import QUANTIZED_OPTIMIZERS, TrainingFields
from recipes.toml_read import parse, read_text

GIB = 1 << 30
NATIVE_BF16 = (8, 0)
"""The first compute capability with bfloat16 in hardware (Ampere), as in NVIDIA's CUDA C++ Programming Guide."""
NATIVE_FP16 = (7, 0)
"""The first one whose tensor cores compute in float16 (Volta)."""
UNSLOTH_CAPABILITY = (7, 0)
"""The lowest compute capability that Unsloth's requirements name (Volta)."""
BYTES_16_BIT = 2.0
BYTES_32_BIT = 4.0
BYTES_4_BIT = 0.5
"""Bytes for each weight at least: without the scales of its blocks, and as if every weight were quantized."""


class Gpu(Strict):
    """One GPU of a described machine."""

    name: str = ""
    memory_gib: float = Field(gt=0)
    compute_capability: str = Field(pattern=r"^[0-9]{1,2}\.[0-9]$")


class Machine(Strict):
    """A described machine.

    Attributes:
        name: what the messages call it.
        memory_gib: memory of the CPU, in GiB.
        unified_memory: the GPU uses the CPU's memory.
        gpu: its GPUs; the first is used.
        packages: distributions in the environment of its engines, as `name` or `name==version`; None if unknown.
        environments: the same for other interpreters, by the path in a stage's `python`.
        parameters: models in its hub cache, with their numbers of parameters.
        shapes: sizes of models, as their config.json has them.
    """

    name: str = Field(min_length=1, max_length=100)
    memory_gib: float = Field(gt=0)
    unified_memory: bool = False
    gpu: list[Gpu] = Field(default_factory=list)
    packages: list[str] | None = None
    environments: dict[str, list[str]] = Field(default_factory=dict)
    parameters: dict[str, int] = Field(default_factory=dict)
    shapes: dict[str, dict[str, int | bool]] = Field(default_factory=dict)

    @field_validator("shapes")
    @classmethod
    def _whole_shapes(cls, value: dict[str, dict[str, int | bool]]) -> dict[str, dict[str, int | bool]]:
        wrong = [name for name, sizes in value.items() if shape_of_config(sizes) is None]
        if wrong:
            raise ValueError(f"shapes — {', '.join(wrong)} needs {', '.join(SHAPE_KEYS)}, as its config.json has them")
        return value

    @property
    def computes_in_bfloat16(self) -> bool:
        """Whether its first GPU does so in hardware; unknown, and so False, without a GPU."""
        return bool(self.gpu) and _capability(self.gpu[0]) >= NATIVE_BF16

    @property
    def memory(self) -> Memory:
        """The memory that a training may have."""
        device = int(self.device_gib * GIB)
        return Memory(device, device)

    def packages_of(self, python: str | None) -> dict[str, str] | None:
        """Normalized names of an interpreter's distributions with their versions (empty if unknown); None if none are
        described."""
        found = self.packages if python is None else self.environments.get(python, self.packages)
        if found is None:
            return None
        parts = (item.partition("==") for item in found)
        return {_normal(name.strip()): version.strip() for name, _, version in parts}

    @field_validator("parameters")
    @classmethod
    def _counts(cls, value: dict[str, int]) -> dict[str, int]:
        wrong = [name for name, count in value.items() if count < 1]
        if wrong:
            raise ValueError(f"parameters — a number of parameters above 0 is required for {', '.join(wrong)}")
        return value

    @property
    def device_gib(self) -> float:
        """The memory in which the first GPU, or else the CPU, holds a model, in GiB."""
        return self.gpu[0].memory_gib if self.gpu and not self.unified_memory else self.memory_gib


@dataclass(frozen=True)
class Finding:
    """A problem of one field on the described machine."""

    field: str
    message: str
    hint: str = ""


def read_machine(path: Path) -> Machine:
    """Read the description of a machine.

    Raises:
        OperatorError: the file cannot be read.
        RecipeError: every problem of its values, each with its line.
    """
    if not path.is_file():
        raise OperatorError(
            f"--machine — no file {printable(str(path), 400)}", "docs/other-machines.md shows a description"
        )
    data, index = parse(read_text(path), path)
    try:
        return Machine.model_validate(data)
    except ValidationError as error:
        source = Source(path, index, data)
        raise RecipeError([_mistake(source, one) for one in error.errors(include_url=False)]) from None


def _mistake(source: Source, error: ErrorDetails) -> Problem:
    """One mistake of a description, at its line."""
    place = tuple(error["loc"])
    if error["type"] == "missing":
        return source.problem(place, "required")
    if error["type"] == "extra_forbidden":
        keys = Gpu.model_fields if place[0] == "gpu" else Machine.model_fields
        return source.problem(
            place, "a description has no such key", "", ", ".join(keys), closest(str(place[-1]), keys)
        )
    return source.problem(place, error["msg"].removeprefix("Value error, "), shown(error["input"]))


def machine_problems(loaded: LoadedRecipe, machine: Machine) -> list[Problem]:
    """What the stages of a recipe could not do on the machine, each at the line of its field."""
    return [
        Problem(
            loaded.path,
            loaded.line_of(stage.name, found.field),
            f"{stage.name}.{found.field}",
            found.message,
            hint=found.hint,
        )
        for stage in loaded.recipe.stage
        for found in _of_stage(loaded, stage, machine)
    ]


def planned_there(made: Plan, loaded: LoadedRecipe, machine: Machine) -> Plan:
    """A plan with the number formats in which the machine trains its stages, and the memory that they need there."""
    words = {stage.name: computes_in(stage, machine) for stage in loaded.recipe.stage}
    needs = {name: one.whole() for name, one in machine_memory(loaded, machine).items()}
    return replace(
        made,
        stages=[replace(one, precision=words[one.name], memory_bytes=needs.get(one.name)) for one in made.stages],
    )


def not_looked_at(loaded: LoadedRecipe) -> list[str]:
    """The models, files and folders that a recipe names, each once: they must be on the machine."""
    named = {
        reference.name: None
        for inputs in loaded.graph.inputs.values()
        for reference in inputs.values()
        if reference.origin != "stage"
    }
    return list(named)


def _of_stage(loaded: LoadedRecipe, stage: StageFields, machine: Machine) -> Iterator[Finding]:
    yield from _packages(stage, machine)
    if isinstance(stage, FinetuneFields) and stage.backend == "unsloth":
        yield from _unsloth(stage, machine)
    if isinstance(stage, DeviceFields):
        yield from _devices(stage, machine)
        yield from _precision(stage, machine)
        yield from _kernels(stage, machine)
        known = list(_training(loaded, stage, machine))
        yield from known or _weights(loaded, stage, machine)


def _packages(stage: StageFields, machine: Machine) -> Iterator[Finding]:
    have = machine.packages_of(stage.python)
    if have is None:
        return
    missing = [name for name in row_of(stage).needs(stage) if _normal(name) not in have]
    if missing:
        them = "it" if len(missing) == 1 else "them"
        yield Finding("kind", f"{machine.name} lacks {', '.join(missing)}", f"install {them} there")
    backend = backend_of(stage)
    for name in row_of(stage).needs(stage):
        version, tested = have.get(_normal(name), ""), TESTED[backend].get(name, "")
        if version and tested and not version.startswith(tested + "."):
            yield Finding(
                "backend" if backend != "hf" else "kind",
                f"{machine.name} has {name} {version}; backend = {backend} is tested with {tested}.*",
                "describe the environment of the stage's python in [environments], or install this version there",
            )


def _unsloth(stage: FinetuneFields, machine: Machine) -> Iterator[Finding]:
    if not machine.gpu:
        if stage.optim in QUANTIZED_OPTIMIZERS:
            yield Finding(
                "optim",
                f"Unsloth has no {stage.optim} on a machine without an accelerator, as {machine.name}",
                'set optim = "adamw_torch_fused", or backend = "hf"',
            )
        return
    gpu = machine.gpu[0]
    if _capability(gpu) < UNSLOTH_CAPABILITY:
        yield Finding(
            "backend",
            f"{gpu.name or 'the GPU'} of {machine.name} has compute capability {gpu.compute_capability}, and Unsloth"
            " requires 7.0",
            'set backend = "hf"',
        )


def _capability(gpu: Gpu) -> tuple[int, int]:
    major, minor = (int(part) for part in gpu.compute_capability.split("."))
    return major, minor


def _devices(stage: DeviceFields, machine: Machine) -> Iterator[Finding]:
    beyond = [device for device in stage.devices if device.isdigit() and int(device) >= len(machine.gpu)]
    processes, gpus = launch_of(stage).processes, len(stage.devices) or len(machine.gpu)
    if machine.gpu and processes > max(1, gpus):
        yield Finding("launch.processes", TOO_FEW_GPUS.format(processes=processes, gpus=gpus), MORE_GPUS)
    needed, have = processes * OWN_BYTES, machine.memory.total
    if not machine.gpu and processes > 1 and needed > have:
        words = {"processes": processes, "needed": size(needed), "name": machine.name, "have": size(have)}
        yield Finding("launch.processes", TOO_MANY_PROCESSES.format(**words), fewer_processes(have))
    if beyond:
        yield Finding("devices", f"{machine.name} has {len(machine.gpu)} GPUs; got {', '.join(beyond)}")


def _precision(stage: DeviceFields, machine: Machine) -> Iterator[Finding]:
    if getattr(stage, "bf16", False) is not True or not machine.gpu:
        return
    gpu = machine.gpu[0]
    if _capability(gpu) < NATIVE_BF16:
        what = (
            f"{gpu.name or 'the GPU'} of {machine.name} has compute capability {gpu.compute_capability}, and bfloat16"
        )
        yield Finding("bf16", f"{what} needs 8.0", "set fp16 = true, or bf16 = false")


def _kernels(stage: DeviceFields, machine: Machine) -> Iterator[Finding]:
    if isinstance(stage, ComputeFields) and stage.use_liger_kernel and not machine.gpu:
        yield Finding(
            "use_liger_kernel", f"Liger's kernels run on an NVIDIA GPU; {machine.name} has none", NO_GPU_FOR_LIGER[1]
        )


def computes_in(stage: StageFields, machine: Machine) -> str | None:
    """The number format in which a stage is trained there, and why; None for a stage that does not train.

    A description has no instructions of a processor, so without a GPU it may depend on them.
    """
    if not isinstance(stage, TrainingFields):
        return None
    adapts = isinstance(stage, FinetuneFields)
    gpu = machine.gpu[0] if machine.gpu else None
    has_bf16 = gpu is not None and _capability(gpu) >= NATIVE_BF16
    where = "" if gpu is None else f"{gpu.name or 'the GPU'} (compute capability {gpu.compute_capability})"
    if _computes_in_float16(stage, gpu):
        return f"float16 with a scaled loss, by {'fp16' if stage.fp16 else where}{_of_base(stage)}"
    if stage.bf16 is not None:
        return f"bfloat16, by bf16{_of_base(stage)}" if stage.bf16 else f"{_float32_there(stage, gpu)}, by bf16"
    if adapts and has_bf16:
        return f"bfloat16, by {where}{_of_base(stage)}"
    if adapts and gpu is None:
        return f"bfloat16 if its processor computes in it natively, else float32{_of_base(stage)}"
    reason = f": {where} does not compute in bfloat16" if adapts else ""
    return _float32_there(stage, gpu) + reason


def _computes_in_float16(stage: TrainingFields, gpu: Gpu | None) -> bool:
    """Whether a stage computes in float16 there, as `engines.training.precision.computes_in_float16` decides."""
    if stage.fp16 is not None or gpu is None or not isinstance(stage, FinetuneFields):
        return bool(stage.fp16)
    undecided = stage.bf16 is None and getattr(stage, "base_dtype", "auto") in {"auto", "float16"}
    fits = backend_of(stage) == "hf" and stage.launch.strategy != FSDP2
    return undecided and fits and NATIVE_FP16 <= _capability(gpu) < NATIVE_BF16


def _of_base(stage: TrainingFields) -> str:
    base = getattr(stage, "base_dtype", "auto")
    return "" if base == "auto" else f", over a {base} base"


def _float32_there(stage: TrainingFields, gpu: Gpu | None) -> str:
    wanted = stage.float32_matmul_precision
    has_tf32 = gpu is not None and _capability(gpu) >= NATIVE_BF16  # both came with Ampere
    return "TF32" if has_tf32 and wanted != "highest" else "float32"


def machine_memory(loaded: LoadedRecipe, machine: Machine) -> dict[str, StageMemory]:
    """The trainings of a recipe whose shapes are known, as they are on the machine."""
    by_name: dict[str, StageFields] = {stage.name: stage for stage in loaded.recipe.stage}
    found = {}
    for stage in loaded.recipe.stage:
        if not isinstance(stage, TrainingFields):
            continue
        sizes = machine.shapes.get(_model_name(loaded, stage.name) or "")
        shape = shape_of(stage, by_name, loaded.graph) if sizes is None else shape_of_config(sizes)
        if shape is not None:
            bf16 = computes_in_bfloat16(stage, natively=machine.computes_in_bfloat16)
            bf16 = bf16 or _computes_in_float16(stage, machine.gpu[0] if machine.gpu else None)  # as wide
            found[stage.name] = StageMemory(
                stage,
                shape,
                bf16,
                None,
                on_gpu=bool(machine.gpu),
                processes=1 if machine.gpu else stage.launch.processes,
                matrices=matrices_of(stage, by_name, loaded.graph) if sizes is None else {},
            )
    return found


def _training(loaded: LoadedRecipe, stage: DeviceFields, machine: Machine) -> Iterator[Finding]:
    """Weights, gradients and optimizer exceed the memory, whatever the rows are."""
    one = machine_memory(loaded, machine).get(stage.name)
    needed = 0 if one is None else one.need.certain
    if one is None or needed <= machine.memory.total:
        return
    have = size(machine.memory.total)
    yield Finding(
        "model" if "model" in type(stage).model_fields else "name",
        f"weights, gradients and optimizer need {size(needed)}; {machine.name} has {have}",
        ways_to_fit(one, machine.memory.total),
    )


def _weights(loaded: LoadedRecipe, stage: DeviceFields, machine: Machine) -> Iterator[Finding]:
    """The weights alone exceed the memory. What else a training needs depends on shapes that only the model has."""
    count = _parameters(loaded, stage.name, machine)
    if count is None:
        return
    bytes_each = _bytes_each(stage)
    needed_gib = count * bytes_each / GIB
    if needed_gib > machine.device_gib:
        yield Finding(
            "model",
            f"{_what(stage)} {size(needed_gib * GIB)}; {machine.name} has {size(machine.device_gib * GIB)}",
            "with load_in_4bit they need a quarter of 16 bits" if _can_be_4_bit(stage) else "",
        )


def _what(stage: DeviceFields) -> str:
    return "weights, gradients and optimizer need" if isinstance(stage, FinetuneModelStage) else "the weights alone are"


def _bytes_each(stage: DeviceFields) -> float:
    """Bytes in memory for each parameter: at most what the fields say, so that a fitting stage is never refused."""
    if isinstance(stage, FinetuneModelStage):
        reference = isinstance(stage, DpoModelStage) and not stage.precompute_ref_log_probs
        return (3 if reference else 2) * BYTES_32_BIT + OPTIMIZER_BYTES[stage.optim]
    if getattr(stage, "load_in_4bit", False):
        return BYTES_4_BIT
    if isinstance(stage, EvaluateStage):  # auto is the type of the model's files, which may have 16 bits
        return BYTES_32_BIT if stage.dtype == "float32" else BYTES_16_BIT
    narrow = isinstance(stage, TrainingFields) and stage.bf16 is not False
    return BYTES_16_BIT if narrow and getattr(stage, "base_dtype", "auto") != "float32" else BYTES_32_BIT


def _can_be_4_bit(stage: DeviceFields) -> bool:
    """An evaluation can only load the base model of an adapter in 4 bits, as its training did."""
    return isinstance(stage, FinetuneStage) and not stage.load_in_4bit and not stage.takes_from_base


def _parameters(loaded: LoadedRecipe, stage: str, machine: Machine) -> int | None:
    """The parameters of a stage's model, if the description says them."""
    return machine.parameters.get(_model_name(loaded, stage) or "")


def _model_name(loaded: LoadedRecipe, stage: str) -> str | None:
    """The model of a stage: the one that it names, or that the stages before it began with."""
    seen: set[str] = set()
    while stage not in seen:
        seen.add(stage)
        named = loaded.graph.inputs[stage].get("model")
        if named is None:
            return None
        if named.origin != "stage":
            return named.name
        stage = named.name
    return None


def _normal(name: str) -> str:
    """A distribution's normalized name, as PyPA's name normalization defines it."""
    return re.sub(r"[-_.]+", "-", name).lower()
