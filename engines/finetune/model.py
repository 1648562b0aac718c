"""A base model and its LoRA adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from engines.files import refuse_special_files
from recipes.problems import OperatorError
from recipes.stages.finetune import FinetuneStage


def load_base(path: Path, *, bf16: bool) -> tuple[Any, Any]:
    """The model and its tokenizer from a folder, without the hub and without code from the folder.

    Weights are float32. Those of a bfloat16 file stay bfloat16 when the stage computes in bfloat16: frozen weights gain
    nothing from a wider type.

    Raises:
        OperatorError: transformers cannot load a model from the folder.
    """
    refuse_special_files(path)
    try:
        config = AutoConfig.from_pretrained(str(path), local_files_only=True)
        narrow = bf16 and getattr(config, "dtype", None) in {torch.bfloat16, "bfloat16"}
        model = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=torch.bfloat16 if narrow else torch.float32, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OperatorError(
            f"cannot load a model from {path}: {first_line}",
            "a model folder has config.json, model.safetensors and the tokenizer's files",
        ) from error
    return model, tokenizer


def add_adapter(model: Any, stage: FinetuneStage) -> Any:
    """Freeze the model and add a float32 adapter, initialized from the global random state.

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
        target_modules=list(stage.target_modules),
        bias="none",
    )
    missing = missing_modules(model, stage.target_modules)
    if missing:
        raise OperatorError(
            f"target_modules — the model has no linear layer named {', '.join(missing)}",
            "choose names of this model's linear layers",
        )
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if stage.gradient_checkpointing:
        adapted.enable_input_require_grads()  # the base is frozen: without it no gradient reaches the adapters
    return adapted


def missing_modules(model: Any, wanted: list[Any]) -> list[str]:
    """The requested names that no linear layer of the model has."""
    have = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return [str(name) for name in wanted if name not in have]
