"""A base model, its LoRA adapter, and a base model in 4 bits."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig
from transformers.pytorch_utils import Conv1D

from engines.artifacts.adapter_folder import OUTPUT_HEADS
from engines.artifacts.generation_config import GENERATION_CONFIG
from engines.artifacts.sharded import is_in_shards
from engines.artifacts.weight_types import refuse_whole_numbers
from engines.data.tokenizer_class import check_tokenizer_class
from engines.exhausted_memory import exhausted_memory
from engines.files import refuse_special_files
from engines.finetune import unsloth_model
from engines.finetune.adapted_linear import join_products
from engines.finetune.added_tokens import ends_of
from engines.finetune.fused_experts import is_taken_apart, refuse_experts, refuse_joined, without_experts
from engines.finetune.loftq import initialize
from engines.json_text import read_object
from engines.machine.returned_memory import copies_returned
from engines.training.inputs import (
    not_loaded,
    refuse_missing_weights,
    refuse_other_shapes,
    tensor_types,
)
from engines.training.precision import Precision
from engines.training.saves.from_shards import load_weights
from recipes.problems import OperatorError, printable
from recipes.stages.adapter.fields import ALL_LINEAR, numbers_of_layers
from recipes.stages.adapter.patterns import is_pattern
from recipes.stages.finetune import FinetuneFields, FinetuneStage

OUTPUT_HEAD = "lm_head"
_COMPUTE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LINEAR = (torch.nn.Linear, Conv1D)  # Conv1D: GPT-2's linear layer, whose weight is stored transposed


def stored_in_bfloat16(path: Path) -> bool:
    """Whether a model folder says that its weights are bfloat16."""
    if not (path / "config.json").is_file():
        return False
    config = read_object(path / "config.json")
    return "bfloat16" in (config.get("dtype"), config.get("torch_dtype"))


def load_base(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    warn: Callable[[str], None] = lambda _text: None,
    quantization: BitsAndBytesConfig | None = None,
    weights: Path | None = None,
    load: Callable[[Path], Any] | None = None,
) -> tuple[Any, Any]:
    """The model and its tokenizer from a folder, without the hub and without code from the folder.

    Args:
        path: the folder.
        dtype: type of the weights, whatever the files have.
        warn: takes what the operator should know.
        quantization: the linear layers are in 4 bits; the other weights are as `dtype` says.
        weights: model and settings are those of this folder, a checkpoint of a training of this model.
        load: loads a model folder in place of transformers, as `dtype` and `quantization` say.

    Raises:
        OperatorError: transformers cannot load a model from the folder, or gives text other ids than
            its tokenizer.json; or bitsandbytes cannot quantize here.
    """
    refuse_special_files(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        for warning in check_tokenizer_class(path, tokenizer):
            warn(warning)
        model = (load or partial(_load, dtype=dtype, quantization=quantization))(weights or path)
    except (OSError, ValueError, KeyError) as error:
        raise OperatorError(
            f"cannot load a model from {path}: {_first_line(error)}",
            "a model folder has config.json, model.safetensors and the tokenizer's files",
        ) from error
    except (ImportError, RuntimeError, NotImplementedError, SafetensorError) as error:
        if exhausted_memory(error):
            raise
        if isinstance(error, SafetensorError) or (quantization is None and load is None):
            raise OperatorError(
                f"cannot load a model from {path}: {_first_line(error)}", "copy the whole model folder again"
            ) from error
        if quantization is None:
            raise OperatorError(
                f"backend — Unsloth cannot load {path}: {_first_line(error)}", 'set backend = "hf"'
            ) from error
        raise OperatorError(
            f"load_in_4bit — bitsandbytes cannot quantize {path} here: {_first_line(error)}",
            "install a bitsandbytes that supports this machine (pip install bitsandbytes), or set load_in_4bit = false",
        ) from error
    except Exception as error:  # libraries raise anything for a damaged model
        if isinstance(error, OperatorError) or exhausted_memory(error):
            raise
        raise not_loaded(path, "a model", error) from error
    if quantization is not None:
        _keep_layout(model)
    return model, tokenizer


def _load(folder: Path, *, dtype: torch.dtype, quantization: BitsAndBytesConfig | None) -> Any:
    if is_in_shards(folder):
        return _of_shards(folder, dtype)
    refuse_whole_numbers(folder, tensor_types(folder))
    with copies_returned(quantizes=quantization is not None):
        model, found = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by name
            **({} if quantization is None else {"quantization_config": quantization}),
        )
    refuse_other_shapes(folder, found["mismatched_keys"])
    refuse_missing_weights(folder, found["missing_keys"])
    return model


def _of_shards(checkpoint: Path, dtype: torch.dtype) -> Any:
    """The model of a sharded checkpoint, with its weights."""
    config = AutoConfig.from_pretrained(str(checkpoint), local_files_only=True)
    with torch.random.fork_rng(devices=[]):  # what it begins with is replaced
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if (checkpoint / GENERATION_CONFIG).is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(checkpoint), local_files_only=True)
    load_weights(model, checkpoint)
    return model


def _keep_layout(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at the first evaluation on a CPU with AVX512-BF16.

    The packed layout rounds the scales to bfloat16, and its kernel has no gradient: the steps after an evaluation would
    train with other weights and miss the gradient through the base.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _first_line(error: Exception) -> str:
    return printable(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__, 300)


def require_four_bits(model: Any, folder: Path) -> None:
    """Refuse a model that should be in 4 bits and is not: Unsloth loads 16 bits where bitsandbytes fails.

    Raises:
        OperatorError: no layer is in 4 bits.
    """
    if not any(type(module).__name__ == "Linear4bit" for module in model.modules()):
        raise OperatorError(
            f"load_in_4bit — bitsandbytes cannot quantize {folder} here",
            "install a bitsandbytes that supports this machine (pip install bitsandbytes), or set load_in_4bit = false",
        )


def quantization_of(stage: FinetuneFields, precision: Precision) -> BitsAndBytesConfig | None:
    """How bitsandbytes quantizes the base model of a stage; None for a stage that does not ask for it."""
    if not isinstance(stage, FinetuneStage) or not stage.load_in_4bit:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=stage.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=stage.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=_COMPUTE[compute_dtype(stage, precision)],
        llm_int8_skip_modules=list(dict.fromkeys([*stage.llm_int8_skip_modules, *OUTPUT_HEADS])),
    )


def compute_dtype(stage: FinetuneStage, precision: Precision) -> str:
    """The type in which the 4-bit layers of a stage compute."""
    automatic = "bfloat16" if precision.bf16 else "float16" if precision.fp16 else "float32"
    return automatic if stage.bnb_4bit_compute_dtype == "auto" else stage.bnb_4bit_compute_dtype


def add_adapter(
    model: Any,
    stage: FinetuneStage,
    base: Path,
    added_tokens: Sequence[int] = (),
    warn: Callable[[str], None] = lambda _text: None,
) -> Any:
    """Freeze the model and add a float32 adapter, initialized from the global random state.

    Args:
        model: the base model.
        stage: the fields of the adapter.
        base: the base model's folder.
        added_tokens: tokens whose rows of the embedding and of the head are trained too.
        warn: takes what the operator should know.

    Raises:
        OperatorError: the model has no layer of a name in `target_modules`, `modules_to_save` or
            `llm_int8_skip_modules`, nothing that `rank_pattern`, `alpha_pattern` or `layers_to_transform` name, or an
            initialization needs a smaller rank.
    """
    _check_names(model, stage)
    loftq = stage.init_lora_weights == "loftq"
    settings: dict[str, Any] = {
        "r": stage.r,
        "lora_alpha": _whole(stage.lora_alpha),
        "lora_dropout": stage.lora_dropout,
        "use_rslora": stage.use_rslora,
        "use_dora": stage.use_dora,
        "init_lora_weights": True if loftq or stage.init_lora_weights == "true" else stage.init_lora_weights,
        "target_modules": _targets(model, stage, warn),
        "modules_to_save": list(stage.modules_to_save) or None,
        "bias": stage.bias,
        "trainable_token_indices": _token_indices(model, added_tokens),
    }
    if stage.layers_to_transform:
        settings["layers_to_transform"] = list(stage.layers_to_transform)
    if stage.rank_pattern or stage.alpha_pattern:
        settings["rank_pattern"] = dict(stage.rank_pattern)
        settings["alpha_pattern"] = {name: _whole(alpha) for name, alpha in stage.alpha_pattern.items()}
    if stage.takes_from_base:
        _check_rank(model, stage)
    unsloth = stage.backend == "unsloth"
    adapted = unsloth_model.adapt(model, stage, settings) if unsloth else _adapted(model, settings)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if loftq:
        initialize(adapted, base)
    if stage.backend == "hf" and not stage.torch_compile and next(adapted.parameters()).is_cuda:
        join_products(adapted)  # compiled code joins what can be joined itself
    if stage.gradient_checkpointing and stage.backend == "hf":
        adapted.enable_input_require_grads()  # the base is frozen: without it no gradient reaches the adapters
    return adapted


def _whole(number: float) -> float:
    """A number as PEFT's own recipes have it: 32, not 32.0."""
    return int(number) if float(number).is_integer() else number


def _targets(model: Any, stage: FinetuneStage, warn: Callable[[str], None]) -> str | list[str]:
    """The names for PEFT, where it would select other layers than the stage's fields do.

    Raises:
        OperatorError: PEFT takes a name for the model's experts.
    """
    if stage.pattern:
        if not is_taken_apart(model, stage.pattern):
            return stage.pattern
        selected = [name for name in _linear_layers(model) if stage.adapts(name, OUTPUT_HEAD)]
        refuse_experts(model, selected)
        return selected
    if stage.target_modules != [ALL_LINEAR]:
        refuse_experts(model, stage.target_modules)
        return list(stage.target_modules)
    names = sorted(_last_parts(model) - {OUTPUT_HEAD})
    if stage.layers_to_transform or is_taken_apart(model, ALL_LINEAR):  # PEFT has no layers_to_transform for all
        return without_experts(model, names, warn)
    return ALL_LINEAR


def _check_patterns(model: Any, stage: FinetuneStage) -> None:
    """Every part of the fields that select layers must select one.

    Raises:
        OperatorError: one does not.
    """
    layers = [name for name in _linear_layers(model) if stage.adapts(name, OUTPUT_HEAD)]
    listed = f"its linear layers are {printable(', '.join(sorted(_last_parts(model))), 400)}"
    if not layers:
        numbers = f", layers_to_transform {stage.layers_to_transform}" if stage.layers_to_transform else ""
        what = printable(stage.pattern or ", ".join(stage.target_modules), 200)
        raise OperatorError(f"target_modules — no linear layer of the model is selected by {what}{numbers}", listed)
    absent = stage.absent_layers(_linear_layers(model))
    if absent:
        wanted = printable(", ".join(map(str, absent)), 200)
        raise OperatorError(
            f"layers_to_transform — no decoder layer of the model has the number {wanted}",
            "layers are counted from 0: " + numbers_of_layers(_linear_layers(model)),
        )
    for field, patterns in (("rank_pattern", stage.rank_pattern), ("alpha_pattern", stage.alpha_pattern)):
        for key in patterns:
            if not any(re.match(rf"(.*\.)?({key})$", layer) for layer in layers):
                raise OperatorError(f"{field} — no layer with an adapter is named {printable(key, 200)}", listed)


def _adapted(model: Any, settings: dict[str, Any]) -> Any:
    layers = sorted(_last_parts(model))  # before PEFT changes some of them
    try:
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise OperatorError(
            f"target_modules — PEFT cannot adapt these layers: {_first_line(error)}",
            f"the model's linear layers are {printable(', '.join(layers), 400)}",
        ) from error


def _check_names(model: Any, stage: FinetuneStage) -> None:
    _check_patterns(model, stage)
    missing = missing_modules(model, stage.target_modules)
    if missing:
        raise OperatorError(
            f"target_modules — the model has no linear layer named {printable(', '.join(missing), 200)}",
            f"its linear layers are {printable(', '.join(sorted(_last_parts(model))), 400)}",
        )
    unused = missing_modules(model, stage.llm_int8_skip_modules) if stage.load_in_4bit else []
    if unused:
        raise OperatorError(
            f"llm_int8_skip_modules — the model has no linear layer named {printable(', '.join(unused), 200)}",
            f"its linear layers are {printable(', '.join(sorted(_last_parts(model))), 400)}",
        )
    names = [name for name, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None]
    refuse_joined(model, stage.modules_to_save)
    unknown = [name for name in stage.modules_to_save if not _is_end_of(name, names)]
    if unknown:
        raise OperatorError(
            f"modules_to_save — no layer with weights of its own is named {printable(', '.join(unknown), 200)}",
            f"its layers are {printable(', '.join(sorted({name.rpartition('.')[2] for name in names})), 400)}",
        )


def _check_rank(model: Any, stage: FinetuneStage) -> None:
    """A part of a matrix has at most the rank of the matrix.

    Raises:
        OperatorError: r is larger than a side of an adapted layer.
    """
    for name, module in model.named_modules():
        chosen = isinstance(module, _LINEAR) and stage.adapts(name, OUTPUT_HEAD)
        if chosen and min(module.weight.shape) < (rank := stage.rank_of(name)):
            raise OperatorError(
                f"r — {stage.init_lora_weights} takes r directions out of each layer, and {printable(name, 200)} has"
                f" {min(module.weight.shape)}; got {rank}",
                f"set r to at most {min(module.weight.shape)}, or init_lora_weights to true",
            )


def _token_indices(model: Any, tokens: Sequence[int]) -> list[int] | dict[str, list[int]] | None:
    """PEFT's setting for rows of single tokens: a list means the embedding, and a head that shares its matrix."""
    if not tokens:
        return None
    ends = ends_of(model)
    return list(tokens) if len(ends) == 1 else {name: list(tokens) for name in ends}


def missing_modules(model: Any, wanted: list[str]) -> list[str]:
    """The requested names that no linear layer of the model has; as in PEFT, a name is the end of a dotted name."""
    have = _linear_layers(model)
    return [name for name in wanted if name != ALL_LINEAR and not is_pattern(name) and not _is_end_of(name, have)]


def _is_end_of(name: str, layers: Sequence[str]) -> bool:
    """Whether a name is the end of a dotted name of one of the layers."""
    return any(f".{layer}".endswith(f".{name}") for layer in layers)


def _linear_layers(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, _LINEAR)]


def _last_parts(model: Any) -> set[str]:
    return {name.rpartition(".")[2] for name in _linear_layers(model)}
