"""What a recipe could not compute with on this machine: kernels without a GPU, code without a compiler, programs of
answers without a sandbox."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from cockpit.planning.memory_check import Memory
from engines.judging.sandbox.sandbox import Sandbox
from engines.machine.device_identity import nvidia_gpus
from engines.processor import NO_COMPILER, NO_GPU_FOR_LIGER, cpp_compiler
from recipes.load import LoadedRecipe
from recipes.problems import Problem, printable
from recipes.quantities import size
from recipes.stages.evaluate import EvaluateStage
from recipes.stages.fields import ComputeFields, DeviceFields, StageFields
from recipes.stages.launch.fields import launch_of

TOO_FEW_GPUS = "each process needs a GPU of its own; got {processes} processes for {gpus}"
MORE_GPUS = (
    "set launch.processes to the number of GPUs; a training keeps its rows with more gradient_accumulation_steps"
)


OWN_BYTES = 300 << 20
"""Memory that each process of a stage has for itself once torch and transformers are loaded. It is less than the 330
MiB of private pages that were measured of each of two processes of an evaluation; pages of files are shared."""
TOO_MANY_PROCESSES = "{processes} processes take at least {needed} for themselves; {name} has {have}"


def fewer_processes(memory_bytes: int) -> str:
    """What to do where the processes of a stage exceed the memory."""
    return f"set launch.processes to at most {max(1, memory_bytes // OWN_BYTES)}; processes on a CPU share its cores"


def compute_problems(loaded: LoadedRecipe) -> list[Problem]:
    """The fields of how a stage computes that this machine cannot follow, each at its line."""
    return [
        Problem(loaded.path, loaded.line_of(stage.name, field), f"{stage.name}.{field}", message, hint=way_out)
        for stage in loaded.recipe.stage
        for field, (message, way_out) in _impossible(stage)
    ]


def _impossible(stage: StageFields) -> Iterator[tuple[str, tuple[str, str]]]:
    if isinstance(stage, EvaluateStage) and stage.allow_code_execution and stage.python is None:
        reason = _why_no_sandbox()
        if reason:
            yield "allow_code_execution", (reason, "set it to false, or allow what is missing")
    launcher = launch_of(stage).launcher
    if launcher and shutil.which(launcher[0]) is None:
        yield "launch.launcher", (f"no program {printable(launcher[0], 80)} here", "install it, or give its whole path")
    if not isinstance(stage, DeviceFields):
        return
    processes, gpus = launch_of(stage).processes, len(stage.devices) or nvidia_gpus()
    if processes > 1 and nvidia_gpus() and processes > gpus:
        yield "launch.processes", (TOO_FEW_GPUS.format(processes=processes, gpus=gpus), MORE_GPUS)
    memory, needed = Memory.here(), processes * OWN_BYTES
    if processes > 1 and memory is not None and needed > memory.total:
        words = {"processes": processes, "needed": size(needed), "name": "this machine", "have": size(memory.total)}
        yield "launch.processes", (TOO_MANY_PROCESSES.format(**words), fewer_processes(memory.total))
    if not isinstance(stage, ComputeFields):
        return
    if stage.use_liger_kernel and not nvidia_gpus():
        yield "use_liger_kernel", NO_GPU_FOR_LIGER
    if stage.torch_compile and not cpp_compiler() and not launch_of(stage).container:
        yield "torch_compile", NO_COMPILER


def _why_no_sandbox() -> str:
    sandbox = Sandbox()
    try:
        return sandbox.why_not()
    finally:
        sandbox.close()
