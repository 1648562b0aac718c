"""The memory that a training needs, by its fields and the shapes of its model: an estimate, before anything is loaded.

Counts of bytes follow from what the engines keep: weights, gradients and optimizer by their types; the tensors that a
decoder layer saves for its backward pass, per token; the logits in pieces. `bench/training_memory.py` measures them in
real trainings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cockpit.planning.models import OUTPUT_HEAD
from recipes.stages.decoder.model_types import MODEL_TYPES
from recipes.stages.decoder.sizes import FEED_FORWARD, Sizes
from recipes.stages.dpo import DpoStage, PreferenceFields
from recipes.stages.finetune import FinetuneFields, FinetuneStage
from recipes.stages.launch.fields import FSDP2
from recipes.stages.pretrain import PretrainStage
from recipes.stages.training import MUON, TrainingFields

OPTIMIZER_BYTES = {
    "adamw_torch": 8.0, "adamw_torch_fused": 8.0, "adamw_8bit": 2.03, "paged_adamw_8bit": 2.03,
    "paged_adamw_32bit": 8.0, "adafactor": 0.0, "lion_32bit": 4.0, "lion_8bit": 1.015, "paged_lion_32bit": 4.0,
    "paged_lion_8bit": 1.015, "muon": 4.0,
}  # fmt: skip
"""Bytes of optimizer state per trained parameter: two moments for Adam, one for Lion, one of matrices for Muon; those
of 8 bits with the scales of their blocks. Adafactor has a number for each row and column of a matrix: next to
nothing."""
LIBRARIES_BYTES = 460 << 20
"""The process of an engine before it loads a model, measured: the interpreter, torch, transformers and PEFT."""
FLOAT32, BFLOAT16 = 4, 2
FOUR_BITS, FOUR_BITS_DOUBLE = 0.5 + 4 / 64, 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a 4-bit weight with the scales of its block of 64, and with quantized scales (bitsandbytes)."""
KERNELS_BYTES = 180 << 20
"""Products in bfloat16 that a CPU's libraries compile for each length of a row and keep, at most 128 in each of two
places (`cockpit.supervision.freed_memory`), with the gaps that they leave; measured: 150 to 250 MiB."""
MOST_LOGITS = 1 << 26
"""Logits that an engine computes at once (`engines.forward.label_loss`); on a GPU of more than 32 GiB more of them, at
most a 32nd of its memory."""
LOGIT_BYTES = 16
"""A logit as the head gives it, in float32, its log-softmax and its gradient: where torch's own loss is used."""
CPU_LOGIT_BYTES = 8
"""A logit's log-softmax and its gradient in float32: a CPU's loss writes where it reads, and gives back what the head
gave before the gradient comes (`engines.forward.label_loss`)."""
CPU_BF16_LOGIT_BYTES = 10
"""The same, and the gradient in bfloat16 for the head."""
PAIR_LOGIT_BYTES = 12
"""A logit of an answer as the head gives it, its log-softmax and its gradient: on a CPU, where it is computed once."""
ATTENTION_BLOCK, MOST_KEPT_TOKENS = 192, 1024
"""Queries of a block of attention, and the longest row whose probabilities are kept: a CPU without AMX computes it so
in bfloat16 (`engines.forward.block_attention`). For other processors the estimate has too much."""
ACCURACY = 0.35
"""Bound of the deviations from all measured peaks in `bench/training_memory.py`, on a CPU: 25% for those to which the
constants were fitted, and more for those that were held out, and for the growth over many steps."""
GAPS = 1.4
"""What the allocator takes for tensors that come and go, as a factor; measured."""
RECOMPUTED_LAYERS = 4
"""What exists at once with gradient checkpointing beside the inputs of all layers, in layers; measured."""
PAIRS = 1.35
"""Factor on what a row of a pair keeps: TRL measures more of it; measured."""
SHAPE_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""What a config.json must say; the other sizes have defaults."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a training needs at its peak, beside the libraries and the process.

    Attributes:
        weights: of the model, frozen or trained, and of the adapter.
        gradients: of the trained weights.
        optimizer: its state.
        activations: what a micro-batch keeps for its backward pass, and the gradients within one layer.
        logits: of the pieces in which the loss is computed.
        kernels: compiled for the lengths of rows.
        accumulates: gradients stay from one micro-batch to the next; else they come as the activations go.
        copies: of the trained weights and the optimizer's state in host memory, for `async_save`. They are not part of
            the peak: where memory has no room for them, the engine makes none, and the training waits for its saves.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    accumulates: bool
    kernels: int = 0
    copies: int = 0

    @property
    def certain(self) -> int:
        """The part that no micro-batch is too small for."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """At the peak."""
        of_rows = self.activations + self.logits
        if self.accumulates:  # the gradients of the micro-batches before are there
            return self.kernels + self.certain + of_rows
        return self.kernels + self.weights + self.optimizer + max(self.gradients + self.activations // 2, of_rows)


def shape_of_config(config: Mapping[str, Any]) -> Sizes | None:
    """The shape that a model's settings say; None for other kinds of layers, or where a size is missing."""
    if any(config.get(name) for name in _EXPERTS):
        return None
    try:
        heads = int(config["num_attention_heads"])
        found = Sizes(
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_hidden_layers=int(config["num_hidden_layers"]),
            num_attention_heads=heads,
            num_key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
            vocab_size=int(config["vocab_size"]),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            model_type=next((name for name in MODEL_TYPES if name == config.get("model_type")), "llama"),
        )
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        return None
    sizes = [value for value in vars(found).values() if isinstance(value, int) and not isinstance(value, bool)]
    return found if all(0 < size < 1 << 40 for size in sizes) else None


def memory_need(
    stage: TrainingFields,
    shape: Sizes,
    *,
    bf16: bool,
    longest: int | None = None,
    labelled: float = 1.0,
    on_gpu: bool = False,
    many_lengths: bool = True,
    matrices: Mapping[str, tuple[int, int]] | None = None,
) -> MemoryNeed:
    """What each process of a training needs at its peak, if every row is as long as the longest.

    With fsdp2, each has its part of weights, gradients and optimizer state.

    Args:
        stage: its fields.
        shape: of its model.
        bf16: it computes in bfloat16; the frozen weights of an adapter are bfloat16 too.
        longest: tokens of the longest row, if it is known; else `max_length`.
        labelled: share of the tokens that the loss counts.
        on_gpu: it is trained on a GPU.
        many_lengths: its rows have more than a few lengths.
        matrices: inputs and outputs of the model's linear layers, by their dotted names; without them, those of a
            Llama with this shape.
    """
    linear = matrices or linear_of(shape)
    changed, weights = _trained(stage, shape, linear), float(FLOAT32 * shape.parameters)
    if isinstance(stage, FinetuneStage):
        weights = _frozen_bytes(stage, shape, bf16=bf16) + FLOAT32 * changed
    elif isinstance(stage, PreferenceFields) and not stage.precompute_ref_log_probs:
        weights += FLOAT32 * shape.parameters  # the reference
    rows = stage.per_device_train_batch_size * (2 if isinstance(stage, PreferenceFields) else 1)
    tokens = rows * (stage.max_length if longest is None or fills_sequences(stage) else min(longest, stage.max_length))
    kept = tokens * _kept_per_token(stage, shape, _adapted(stage, linear), bf16=bf16)
    if bf16 and not on_gpu and not isinstance(stage, PretrainStage):
        kept += rows * _probabilities(tokens // rows, shape) * _layers_at_once(stage, shape)
    if bf16 and not (isinstance(stage, FinetuneStage) and _narrow_base(stage)):
        kept += BFLOAT16 * shape.linear_parameters  # autocast keeps the weights that it has rounded
    if isinstance(stage, PreferenceFields):
        kept *= PAIRS
    transient = tokens * _layer_gradients(shape, bf16=bf16)
    optimizer = int(OPTIMIZER_BYTES[stage.optim] * changed + _of_others(stage, shape))
    parts = stage.launch.world_size if stage.launch.strategy == FSDP2 else 1
    return MemoryNeed(
        weights=int(weights) // parts,
        gradients=FLOAT32 * changed // parts,
        optimizer=optimizer // parts,
        activations=int(GAPS * kept + transient),
        logits=int(_logits(stage, shape, tokens * labelled, _logit_bytes(stage, bf16=bf16, on_gpu=on_gpu))),
        accumulates=stage.gradient_accumulation_steps > 1,
        kernels=KERNELS_BYTES if bf16 and many_lengths and not on_gpu and not fills_sequences(stage) else 0,
        copies=(FLOAT32 * changed + optimizer) // parts if stage.async_save else 0,
    )


def _of_others(stage: TrainingFields, shape: Sizes) -> float:
    """What the optimizer has more for weights that are no matrices of layers: with Muon, they are AdamW's."""
    each = OPTIMIZER_BYTES["adamw_torch"] - OPTIMIZER_BYTES[MUON]
    return each * (shape.parameters - shape.linear_parameters) if stage.optim == MUON else 0.0


def fills_sequences(stage: TrainingFields) -> bool:
    """Whether sequences have `max_length` tokens whatever the rows have."""
    return isinstance(stage, PretrainStage) or (isinstance(stage, FinetuneFields) and stage.packing)


def _narrow_base(stage: FinetuneStage) -> bool:
    """Whether products in 16 bits have a base of 16 bits or less: a part is taken out of float32 weights only."""
    return stage.load_in_4bit or not (stage.takes_from_base or stage.base_dtype == "float32")


def _frozen_bytes(stage: FinetuneStage, shape: Sizes, *, bf16: bool) -> float:
    each = BFLOAT16 if bf16 and stage.base_dtype != "float32" and not stage.takes_from_base else FLOAT32
    if not stage.load_in_4bit:
        return each * shape.parameters
    narrow = FOUR_BITS_DOUBLE if stage.bnb_4bit_use_double_quant else FOUR_BITS
    return each * (shape.parameters - shape.linear_parameters) + narrow * shape.linear_parameters


def linear_of(shape: Sizes) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear layers of a Llama with this shape, by dotted name."""
    return {
        f"model.layers.{layer}.{'mlp' if name in FEED_FORWARD else 'self_attn'}.{name}": widths
        for layer in range(shape.num_hidden_layers)
        for name, widths in shape.linear.items()
    }


def _adapted(stage: TrainingFields, linear: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Those of the linear layers that get an adapter."""
    if not isinstance(stage, FinetuneStage):
        return {}
    return {name: widths for name, widths in linear.items() if stage.adapts(name, OUTPUT_HEAD)}


def _trained(stage: TrainingFields, shape: Sizes, linear: Mapping[str, tuple[int, int]]) -> int:
    """Parameters that the optimizer changes."""
    if not isinstance(stage, FinetuneStage):
        return shape.parameters
    adapted = _adapted(stage, linear)
    low_rank = sum(stage.rank_of(name) * sum(widths) for name, widths in adapted.items())
    norms = sum(outputs for _, outputs in adapted.values()) if stage.use_dora else 0
    ends = sum(shape.vocab_size * shape.hidden_size for name in stage.modules_to_save if name in _ENDS)
    whole = sum(
        math.prod(widths)
        for layer, widths in linear.items()
        if any(f".{layer}".endswith(f".{name}") for name in stage.modules_to_save)
    )
    return low_rank + norms + ends + whole


_ENDS = ("embed_tokens", OUTPUT_HEAD)


def _kept_per_token(
    stage: TrainingFields, shape: Sizes, adapted: Mapping[str, tuple[int, int]], *, bf16: bool
) -> float:
    """Bytes that a token keeps for the backward pass, in all layers."""
    layer = _layer_bytes(stage, shape, adapted, bf16=bf16)
    if not stage.gradient_checkpointing:
        return shape.num_hidden_layers * layer
    width = BFLOAT16 if bf16 and isinstance(stage, FinetuneStage) else FLOAT32
    # The layer that is computed again, and what its backward pass needs at the same time; measured.
    return shape.num_hidden_layers * width * shape.hidden_size + RECOMPUTED_LAYERS * layer


def _layers_at_once(stage: TrainingFields, shape: Sizes) -> int:
    return RECOMPUTED_LAYERS if stage.gradient_checkpointing else shape.num_hidden_layers


def _probabilities(length: int, shape: Sizes) -> int:
    """Bytes of one row in one layer that attention in blocks keeps."""
    if length > MOST_KEPT_TOKENS:
        return 0
    blocks = range(0, length, ATTENTION_BLOCK)
    pairs = sum(min(ATTENTION_BLOCK, length - first) * min(length, first + ATTENTION_BLOCK) for first in blocks)
    return BFLOAT16 * shape.num_attention_heads * pairs


def _layer_bytes(stage: TrainingFields, shape: Sizes, adapted: Mapping[str, tuple[int, int]], *, bf16: bool) -> float:
    """Bytes that a token keeps in one layer, as the mean of all: coefficients of the widths, by what the backward pass
    of each needs."""
    width, queries, keys, inner = shape.hidden_size, shape.queries, shape.keys, shape.intermediate_size
    if not isinstance(stage, FinetuneStage):
        row = (16, 4, 4, 8) if bf16 else (24, 8, 8, 16)
        return row[0] * width + row[1] * queries + row[2] * keys + row[3] * inner + 4 * shape.num_attention_heads
    in_mlp = any(name.rpartition(".")[2] in FEED_FORWARD or ".mlp." in name for name in adapted)
    row = ((18, 6, 4, 8) if in_mlp else (14, 6, 4, 6)) if bf16 else (16, 8, 8, 16) if in_mlp else (12, 8, 8, 12)
    kept = float(row[0] * width + row[1] * queries + row[2] * keys + row[3] * inner + 4 * shape.num_attention_heads)
    layers = shape.num_hidden_layers
    kept += sum(stage.rank_of(name) for name in adapted) / layers * (BFLOAT16 if bf16 else FLOAT32)
    if stage.load_in_4bit:
        kept += BFLOAT16 * sum(inputs for inputs, _ in shape.linear.values())  # each layer's own copy; measured
    if stage.lora_dropout and not (isinstance(stage, DpoStage) and stage.disable_dropout):
        kept += DROPOUT_BYTES * sum(inputs for inputs, _ in adapted.values()) / layers
    return kept


DROPOUT_BYTES = 4
"""Bytes per input of an adapted layer that dropout on it keeps in addition."""


def _layer_gradients(shape: Sizes, *, bf16: bool) -> float:
    """Bytes of a token's gradients within one layer, which exist beside what all layers keep."""
    each = BFLOAT16 if bf16 else FLOAT32
    return each * (3 * shape.intermediate_size + 2 * shape.hidden_size)


def _logits(stage: TrainingFields, shape: Sizes, labelled_tokens: float, each: int) -> float:
    if isinstance(stage, PreferenceFields):  # those of answers, all at once
        return PAIR_LOGIT_BYTES * labelled_tokens * shape.vocab_size
    return each * min(labelled_tokens * shape.vocab_size, MOST_LOGITS)


def _logit_bytes(stage: TrainingFields, *, bf16: bool, on_gpu: bool) -> int:
    if on_gpu or stage.torch_compile or stage.label_smoothing_factor:
        return LOGIT_BYTES
    return CPU_BF16_LOGIT_BYTES if bf16 else CPU_LOGIT_BYTES


def computes_in_bfloat16(stage: TrainingFields, *, natively: bool) -> bool:
    """Whether a stage computes in 16 bits on a machine that computes in bfloat16 natively, or not."""
    if stage.fp16:
        return True  # as wide
    if stage.bf16 is not None:
        return stage.bf16
    return natively and isinstance(stage, FinetuneFields)
