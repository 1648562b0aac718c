"""A model and its adapter from Unsloth: transformers' and PEFT's own classes on the CPU, Unsloth's kernels elsewhere.

Facts of Unsloth 2026.10: a base in 4 bits is always nf4 with double quantization. On an accelerator the model computes
its loss itself, from hidden states, and takes several rows in one sequence by their positions. A `max_seq_length` above
the model's own stretches its positions. Where bitsandbytes does not work, it loads 16 bits instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from engines.json_text import read_object
from recipes.problems import OperatorError
from recipes.stages.finetune import FinetuneFields, FinetuneStage

QUANTIZED_NAME = "-bnb-4bit"
"""The end of a name that Unsloth takes for a quantized model and, where it loads 16 bits, leaves off."""


def load(folder: Path, stage: FinetuneFields, *, dtype: torch.dtype) -> Any:
    """The model of a folder, ready for an adapter or for the training of all weights.

    Args:
        folder: a model folder.
        stage: the stage.
        dtype: type of the weights.

    Raises:
        OperatorError: rows may be longer than the model's positions.
    """
    from unsloth import FastLanguageModel

    config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    _require_positions(config, stage.max_length)
    adapts = isinstance(stage, FinetuneStage)
    model, _ = FastLanguageModel.from_pretrained(
        model_name=f"{folder}/" if folder.name.lower().endswith(QUANTIZED_NAME) else str(folder),
        max_seq_length=stage.max_length,
        dtype=dtype,
        load_in_4bit=isinstance(stage, FinetuneStage) and stage.load_in_4bit,
        full_finetuning=not adapts,
        use_gradient_checkpointing=checkpointing(stage),
        random_state=stage.seed,
        fix_tokenizer=False,
        local_files_only=True,
    )
    model.config.pad_token_id = config.get("pad_token_id")  # Unsloth sets one, and the output's config would have it
    model.name_or_path = model.config.name_or_path = str(folder)  # what PEFT writes into the adapter
    return model


def adapt(model: Any, stage: FinetuneStage, settings: dict[str, Any]) -> Any:
    """The model with an adapter of these settings, which are those of PEFT's LoraConfig.

    Raises:
        OperatorError: rows of single tokens would be trained, which Unsloth's loss on an accelerator does not see.
    """
    from unsloth import FastLanguageModel

    if settings.get("trainable_token_indices") and on_accelerator():
        raise OperatorError(
            f"chat_template — {stage.chat_template} adds tokens to this model, and Unsloth does not train their rows on"
            " an accelerator",
            'choose a template whose tokens the model has, or set backend = "hf"',
        )
    return FastLanguageModel.get_peft_model(
        model, use_gradient_checkpointing=checkpointing(stage), random_state=stage.seed, **settings
    )


def checkpointing(stage: FinetuneFields) -> Any:
    """Unsloth's value for recomputing activations: its own way, which moves them to the CPU's memory meanwhile."""
    return "unsloth" if stage.gradient_checkpointing else False


def on_accelerator() -> bool:
    """Whether Unsloth has changed the model's classes for an accelerator; on the CPU they are transformers' own."""
    import unsloth

    return bool(unsloth.DEVICE_TYPE != "cpu")


def _require_positions(config: dict[str, Any], max_length: int) -> None:
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and 0 < positions < max_length:
        raise OperatorError(
            f"max_length — the model has {positions} positions, and Unsloth would stretch them to {max_length}",
            f'set max_length to at most {positions}, or backend = "hf"',
        )
