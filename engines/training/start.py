"""Process-wide settings of an engine, made before it loads a model, and the line that says what it computes with."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import metadata

import torch
from transformers.utils import logging

from engines.forward.arrangement import causal_model
from engines.forward.compiling import require_compiler
from engines.forward.rows_attention import NAME, OWN
from engines.processor import NO_GPU_FOR_LIGER, engine_affinities, node_for, nodes
from engines.training.precision import matmul_precision, require_bf16
from engines.world import world
from recipes.problems import OperatorError
from recipes.stages.fields import StageFields
from recipes.stages.training import TrainingFields

NOT_DETERMINISTIC = "does not have a deterministic implementation"
"""Torch's words for a kernel that `deterministic` forbids."""
_SHOWN = {"hf": ("transformers", "peft"), "unsloth": ("unsloth", "unsloth_zoo", "transformers", "peft")}
"""The distributions that the line of a backend names, with their versions."""


def set_up_process(stage: TrainingFields) -> None:
    """Set how torch computes in this process by the stage's fields, and keep progress bars out of the log.

    Raises:
        OperatorError: this machine cannot compute as the fields say.
    """
    world().connect()
    require_bf16(stage.bf16)
    if stage.use_liger_kernel and not torch.cuda.is_available():
        raise OperatorError(f"use_liger_kernel — {NO_GPU_FOR_LIGER[0]}", NO_GPU_FOR_LIGER[1])
    if stage.torch_compile:
        require_compiler()
    set_up_threads(stage)
    torch.set_float32_matmul_precision(matmul_precision(stage.float32_matmul_precision))
    if stage.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(stage.deterministic)
    torch.backends.cudnn.benchmark = False
    logging.disable_progress_bar()


def set_up_threads(stage: StageFields) -> None:
    """Set torch's number of threads from the stage, if it has one, and keep a training on the CPU on one memory node
    whose cores are enough for them: memory of another node is slower to read."""
    if stage.threads is not None:
        torch.set_num_threads(stage.threads)
    if torch.cuda.is_available():
        return
    node = node_for(torch.get_num_threads(), bound=engine_affinities())
    if node is not None:
        with suppress(OSError):  # a container may forbid it
            os.sched_setaffinity(0, nodes()[node])
            _Present.node = node


class _Present:
    """The memory node that this process is bound to."""

    node: int | None = None


def _format_of(weight: torch.nn.Parameter) -> str:
    """The name of its type; bitsandbytes keeps two 4-bit weights in a byte."""
    name = str(weight.dtype).removeprefix("torch.")
    return "4 bits" if type(weight).__name__ == "Params4bit" else name


def setup_text(
    model: torch.nn.Module,
    device: torch.device,
    stage: TrainingFields,
    *,
    bf16: bool,
    fp16: bool,
    arrangement: str,
    backend: str = "hf",
) -> str:
    """What a training computes with: libraries, device, number formats, attention, arrangement of its rows, kernels,
    and threads on the CPU.

    Args:
        model: the model as it is trained.
        device: the device of its first step.
        stage: its fields.
        bf16: matrix products are computed in bfloat16.
        fp16: they are computed in float16, with a scaled loss.
        arrangement: how the rows of a batch are computed, as text; empty where every row is full.
        backend: the libraries that loaded and adapted the model.
    """
    frozen = {_format_of(weight) for weight in model.parameters() if not weight.requires_grad}
    products = "bfloat16" if bf16 else "float16 with a scaled loss" if fp16 else _float32_words(device)
    parts = [libraries(backend), f"on {device_words(device)}", f"products in {products}"]
    if frozen:
        parts.append(f"frozen weights in {' and '.join(sorted(frozen))}")
    attention = getattr(causal_model(model).config, "_attn_implementation", None)
    if attention:
        parts.append(f"attention {OWN if attention == NAME else attention}")
    if arrangement:
        parts.append(arrangement)
    chosen = {
        "compiled layers": stage.torch_compile,
        "Liger's kernels": stage.use_liger_kernel,
        "deterministic kernels": stage.deterministic,
    }
    parts += [words for words, is_set in chosen.items() if is_set]
    if device.type == "cpu":
        count = torch.get_num_threads()
        where = "" if _Present.node is None else f" on memory node {_Present.node}"
        parts.append(f"{count} thread{'' if count == 1 else 's'}{where}")
    return ", ".join(parts)


def libraries(backend: str) -> str:
    """A backend's libraries with their versions, such as `hf: transformers 5.23.0, peft 0.21.2`."""
    found = []
    for name in _SHOWN[backend]:
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return f"{backend}: {', '.join(found)}"


def device_words(device: torch.device) -> str:
    """A device as text: `cpu`, or `cuda` with the card's name and compute capability."""
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    return f"{device.type} ({properties.name}, compute capability {properties.major}.{properties.minor})"


def _float32_words(device: torch.device) -> str:
    """What a product of float32 matrices is computed in."""
    precision = torch.get_float32_matmul_precision()
    if precision == "highest":
        return "float32"
    return "TF32" if device.type == "cuda" else f"float32 (matmul precision {precision})"
