"""A base model and its LoRA adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from engines.data.tokenizer_class import check_tokenizer_class
from engines.files import refuse_special_files
from engines.finetune.added_tokens import ends_of
from engines.json_text import read_object
from recipes.problems import OperatorError, printable
from recipes.stages.finetune import ALL_LINEAR, FinetuneStage


def stored_in_bfloat16(path: Path) -> bool:
    """Whether a model folder says that its weights are bfloat16."""
    if not (path / "config.json").is_file():
        return False
    config = read_object(path / "config.json")
    return "bfloat16" in (config.get("dtype"), config.get("torch_dtype"))


def load_base(path: Path, *, narrow: bool = False, warn: Callable[[str], None] = lambda _text: None) -> tuple[Any, Any]:
    """The model and its tokenizer from a folder, without the hub and without code from the folder.

    Args:
        path: the folder.
        narrow: the weights are bfloat16, else float32, whatever the files have.
        warn: takes what the operator should know.

    Raises:
        OperatorError: transformers cannot load a model from the folder, or gives text other ids than
            its tokenizer.json.
    """
    refuse_special_files(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        for warning in check_tokenizer_class(path, tokenizer):
            warn(warning)
        model = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=torch.bfloat16 if narrow else torch.float32, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OperatorError(
            f"cannot load a model from {path}: {first_line}",
            "a model folder has config.json, model.safetensors and the tokenizer's files",
        ) from error
    return model, tokenizer


def add_adapter(model: Any, stage: FinetuneStage, added_tokens: Sequence[int] = ()) -> Any:
    """Freeze the model and add a float32 adapter, initialized from the global random state.

    Args:
        model: the base model.
        stage: the fields of the adapter.
        added_tokens: tokens whose rows of the embedding and of the head are trained too.

    Raises:
        OperatorError: the model has no layer of a name in `target_modules`.
    """
    alpha = int(stage.lora_alpha) if stage.lora_alpha.is_integer() else stage.lora_alpha
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=stage.r,
        lora_alpha=alpha,
        lora_dropout=stage.lora_dropout,
        use_rslora=stage.use_rslora,
        target_modules=ALL_LINEAR if stage.target_modules == [ALL_LINEAR] else list(stage.target_modules),
        bias="none",
        trainable_token_indices=_token_indices(model, added_tokens),
    )
    missing = missing_modules(model, stage.target_modules)
    if missing:
        raise OperatorError(
            f"target_modules — the model has no linear layer named {printable(', '.join(missing), 200)}",
            f"its linear layers are {printable(', '.join(sorted(_last_parts(model))), 400)}",
        )
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if stage.gradient_checkpointing:
        adapted.enable_input_require_grads()  # the base is frozen: without it no gradient reaches the adapters
    return adapted


def _token_indices(model: Any, tokens: Sequence[int]) -> list[int] | dict[str, list[int]] | None:
    """PEFT's setting for rows of single tokens: a list means the embedding, and a head that shares its matrix."""
    if not tokens:
        return None
    ends = ends_of(model)
    return list(tokens) if len(ends) == 1 else {name: list(tokens) for name in ends}


def missing_modules(model: Any, wanted: list[str]) -> list[str]:
    """The requested names that no linear layer of the model has; as in PEFT, a name is the end of a dotted name."""
    have = _linear_layers(model)
    return [
        name for name in wanted if name != ALL_LINEAR and not any(f".{layer}".endswith(f".{name}") for layer in have)
    ]


def _linear_layers(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def _last_parts(model: Any) -> set[str]:
    return {name.rpartition(".")[2] for name in _linear_layers(model)}
