"""What a stage gives to a training session: model, data, and a method with a Trainer and a loss of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engines.forward.arrangement import PADDED, Arrangement
from engines.training.fitting import Fitting
from engines.training.loss import Batches
from recipes import quantities
from recipes.stages.decoder.operations import CONVENTION


@dataclass(frozen=True)
class Scored:
    """What an evaluation measured: loss, scored tokens, how, and what else the method measures."""

    loss: float
    tokens: int
    protocol: str
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class Method:
    """A training with a Trainer and a loss of its own.

    Attributes:
        trainer: makes the Trainer, which has the mixin, from the arguments.
        arguments: the class of the arguments.
        more: arguments of the method.
        evaluate: measures on the val split, with parts of batches that fit into memory; None without one.
    """

    trainer: Callable[[Any], Any]
    arguments: type[Any]
    more: Mapping[str, Any]
    evaluate: Callable[[Any, Fitting], Scored] | None = None


@dataclass(frozen=True)
class Utilization:
    """What a trained token computes, and the operations per second of the device; None where they are not known."""

    operations: int
    peak: float | None

    def of(self, tokens_per_second: float | None) -> float | None:
        """Model FLOPs utilization (MFU): the share of the peak that the model's own operations have."""
        if self.peak is None or tokens_per_second is None:
            return None
        return self.operations * tokens_per_second / self.peak

    def words(self) -> str:
        """The convention and the peak, for the operator."""
        if self.peak is None:
            return "mfu not known without peak_tflops"
        return f"mfu of {quantities.count(self.peak / 1e12)} TFLOP/s by {CONVENTION}"


@dataclass(frozen=True)
class Task:
    """The parts in which pretraining and fine-tuning differ.

    Attributes:
        model: the model, on any device; Trainer moves it.
        dataset: map-style; the stage's seed determines its order.
        collate: converts examples to a batch of `input_ids`, `labels` and, when padded, `attention_mask`. Draws no
            random numbers.
        examples: length of the dataset.
        save_tokenizer: writes the tokenizer's files into a folder.
        val: batches of the val split; None without a val split.
        sample: generates text at a step, from a prompt or, if that is empty, from the recipe's prompts; False
            without a prompt. None where the stage cannot sample.
        sample_steps: steps between two automatic samples; None for samples on request only.
        bf16: matrix products are computed in bfloat16.
        fp16: they are computed in float16, with a scaled loss.
        order: the indices of an epoch's examples, from the number of the epoch; None for a random order by the seed.
        arrangement: how the rows of a batch go through the model; `collate` gives batches of that form.
        full: every row of a batch is full, so there is no padding to speak of.
        method: a Trainer and a loss other than those of the next token; None for those.
        most_tokens: tokens of a sequence into which micro-batches may be joined; None joins none.
        own_loss: the model computes the loss of a training step itself.
        utilization: what its steps compute; None where that is not counted.
    """

    model: torch.nn.Module
    dataset: Any
    collate: Callable[[list[Any]], dict[str, torch.Tensor]]
    examples: int
    save_tokenizer: Callable[[Path], None]
    val: Batches | None = None
    sample: Callable[[int, str], bool] | None = None
    sample_steps: int | None = None
    bf16: bool = False
    fp16: bool = False
    order: Callable[[int], list[int]] | None = None
    arrangement: Arrangement = PADDED
    full: bool = False
    method: Method | None = None
    most_tokens: int | None = None
    own_loss: bool = False
    utilization: Utilization | None = None

    @property
    def evaluates(self) -> bool:
        """Whether there is a val split to evaluate on."""
        return self.val is not None or (self.method is not None and self.method.evaluate is not None)
