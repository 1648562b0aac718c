"""TRL's DPOTrainer with the engine's measurements, and with Cockpit's own rows and reference.

TRL tokenizes texts itself, renders prompts apart from answers, and copies an adapter by the names of its parameters.
None of that is used: the pairs are labelled and proven before, and the reference is that of
`engines.preference.reference`. What remains of TRL is the loss of a batch and what it measures.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from engines.forward.arrangement import Arrangement
from engines.forward.label_loss import FILLER
from engines.preference.flat import FlatModel, ScoredTokens, rows_of_batch
from engines.preference.reference import Reference
from engines.preference.rows import HeldOut, Pair, PairDataset
from engines.ranks.ran_out import RanOut
from engines.training.fitting import Fitting
from engines.training.steps.mixin import EngineMixin
from engines.training.task import Scored
from recipes.stages.dpo import PreferenceFields

_BY_TOKENS = {"entropy": (0, 1), "logits/chosen": (0,), "logits/rejected": (1,), "mean_token_accuracy": (0,)}
"""What TRL measures per token, and of which answers: chosen (0), rejected (1). The rest it measures per pair."""

for _name in ("_prepare_dataset", "_compute_loss", "compute_ref_log_probs", "_send_telemetry"):
    assert hasattr(DPOTrainer, _name), f"trl.DPOTrainer has no {_name}: this version of TRL is unsupported"


class PreferenceTrainer(EngineMixin, DPOTrainer):
    """The loss of a window is the mean over its pairs, however they are divided into micro-batches.

    Args:
        model: the adapted model, or one that is trained as a whole.
        arguments: with the fields of the stage.
        pairs: the training data.
        collate: makes a batch of pairs.
        tokenizer: of the model; TRL asks for one, and sets its padding.
        reference: called instead of a reference model; or such a model, which is moved to the device and computes in
            the number formats of the other.
        arrangement: how the rows of a batch go through the model; it does not change the loss.
    """

    def __init__(
        self,
        model: Any,
        arguments: DPOConfig,
        pairs: PairDataset,
        collate: Any,
        tokenizer: Any,
        reference: Reference,
        arrangement: Arrangement,
    ) -> None:
        self._pairs_given = pairs
        self.held_out: HeldOut | None = None
        self._pairs_in_window = 0
        self._micro_batches = 1
        kept = [(parameter, parameter.data) for parameter in model.parameters() if parameter.requires_grad]
        super().__init__(
            model=model,
            ref_model=reference if isinstance(reference, torch.nn.Module) else _Placeholder(model.config),
            args=arguments,
            data_collator=collate,
            train_dataset=Dataset.from_list([{"prompt": "", "chosen": "", "rejected": ""}]),
            processing_class=copy.deepcopy(tokenizer),
        )
        for parameter, data in kept:  # TRL makes the adapter of a 4-bit model bfloat16, which loses small updates
            parameter.data = data
        self._arrangement = arrangement
        measured = ("entropy", "mean_logits", "is_top1", *(["log_sum_sq_probs"] if arguments.use_weighting else []))
        self._scored = ScoredTokens(model, measured)
        self.ref_model = self._unpadded(reference, ScoredTokens(model, ()))
        self._separate = reference if isinstance(reference, torch.nn.Module) else None

    def _unpadded(self, model: Any, scored: ScoredTokens) -> Any:
        return model if self._arrangement.way == "padded" else FlatModel(model, self._arrangement, scored)

    def use_references_of_pairs(self) -> None:
        """Compare with what `with_references` has computed, and forget a reference model."""
        self.precompute_ref_logps = True
        self.ref_model = None
        self.accelerator._models = [model for model in self.accelerator._models if model is not self._separate]
        self._separate = None

    def _prepare_dataset(self, *_args: Any, **_kwargs: Any) -> Any:
        return self._pairs_given

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, torch.Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | int | None]:
        """A window, with its pairs and the tokens that its loss counts."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        items = self.of_all_processes(items)
        self._micro_batches = max(1, len(batches))
        own = [batch for batch in batches if FILLER not in batch]
        pairs = sum(_pairs_of(batch) for batch in own)
        tokens = sum(int(batch["completion_mask"][:, 1:].sum()) for batch in own)
        pairs, tokens = (int(number) for number in self.world.reduce_sum([pairs, tokens]))
        self._pairs_in_window = self.window.rows = pairs
        self.window.loss_tokens = tokens
        return batches, items

    def training_step(self, model: Any, inputs: dict[str, torch.Tensor], *more: Any, **named: Any) -> torch.Tensor:
        """Forward and backward of one micro-batch, which keep its rows apart."""
        with rows_of_batch(self._arrangement, inputs["attention_mask"]):
            return super().training_step(model, inputs, *more, **named)

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False) -> Any:
        loss = super()._compute_loss(self._unpadded(model, self._scored), inputs, return_outputs)
        measured = self.take_measured(inputs)
        for name, (value, weight) in measured.items():
            count = torch.tensor(weight, dtype=torch.float64, device=loss.device)
            self.window.measure(name, count * value, count)
        share = _pairs_of(inputs) * self._micro_batches / self._pairs_in_window
        return loss if share == 1.0 else loss * share  # Trainer divides by the number of micro-batches

    def take_measured(self, inputs: dict[str, torch.Tensor]) -> dict[str, tuple[float, float]]:
        """What TRL measured of the last batch, each with the number of pairs or tokens that it is a mean of."""
        lists = self._metrics["train" if self.model.training else "eval"]
        counted = float(FILLER not in inputs)
        tokens = [counted * float(half.sum()) for half in inputs["completion_mask"][:, 1:].chunk(2)]
        weights = {name: sum(tokens[half] for half in halves) for name, halves in _BY_TOKENS.items()}
        pairs = float(_pairs_of(inputs))
        found = {name: (float(values[-1]), weights.get(name, pairs)) for name, values in lists.items()}
        lists.clear()
        return {name: one for name, one in found.items() if name != "num_tokens"}  # TRL's own count of all steps

    @torch.no_grad()
    def score(self, held_out: HeldOut, collate: Any, stage: PreferenceFields, fitting: Fitting) -> Scored:
        """Loss and measurements on held-out pairs, as means over the pairs (over tokens, what TRL measures so)."""
        training = self.model.training
        self.model.eval()
        total, pairs, tokens = 0.0, 0, 0
        sums: dict[str, list[float]] = {}

        def score(part: Sequence[Pair]) -> tuple[float, int, int, dict[str, tuple[float, float]]]:
            inputs = self._prepare_inputs(collate(part))
            self.take_measured(inputs)  # what a part that memory did not hold left
            with rows_of_batch(self._arrangement, inputs["attention_mask"]):
                loss = DPOTrainer._compute_loss(self, self._unpadded(self.model, self._scored), inputs, False)
            scored = int(inputs["completion_mask"][:, 1:].sum())
            return float(loss) * len(part), len(part), scored, self.take_measured(inputs)

        ran_out = RanOut(self.world)
        try:
            with ran_out:
                for batch in self.world.share(held_out.batches):
                    for loss, count, scored, measured in fitting.each(batch, score):
                        total += loss
                        pairs += count
                        tokens += scored
                        for name, (value, weight) in measured.items():
                            both = sums.setdefault(name, [0.0, 0.0])
                            both[0] += value * weight
                            both[1] += weight
        finally:
            self.model.train(training)
        ran_out.share()
        total, pairs, tokens, sums = self._over_all(total, pairs, tokens, sums)
        means: dict[str, float | None] = {name: whole / weight for name, (whole, weight) in sums.items()}
        return Scored(total / pairs, tokens, protocol(stage, held_out.protocol), means)

    def _over_all(
        self, total: float, pairs: int, tokens: int, sums: dict[str, list[float]]
    ) -> tuple[float, int, int, dict[str, list[float]]]:
        """The sums of an evaluation over all processes, of which one may have had no pairs."""
        if self.world.size == 1:
            return total, pairs, tokens, sums
        found = self.world.gather_objects((total, pairs, tokens, sums))
        every: dict[str, list[float]] = {}
        for _, _, _, each in found:
            for name, (whole, weight) in each.items():
                both = every.setdefault(name, [0.0, 0.0])
                both[0] += whole
                both[1] += weight
        return sum(one[0] for one in found), sum(one[1] for one in found), sum(one[2] for one in found), every

    @torch.no_grad()
    def with_references(self, pairs: list[Pair], collate: Any, size: int) -> list[Pair]:
        """The pairs with the log probabilities of the reference, in batches of `size`."""
        found: list[list[Pair]] = []
        for at in self.world.share(range(0, len(pairs), size)):
            part = pairs[at : at + size]
            inputs = self._prepare_inputs(collate(part))
            with rows_of_batch(self._arrangement, inputs["attention_mask"]):
                both = self.compute_ref_log_probs(self.ref_model, inputs)
            known = zip(part, *(half.tolist() for half in both), strict=True)
            found.append([Pair(pair.chosen, pair.rejected, (chosen, rejected)) for pair, chosen, rejected in known])
        # Batch k is process k's modulo their number, so the first of each come first.
        every = zip_longest(*self.world.gather_objects(found), fillvalue=[])
        return [pair for batches in every for batch in batches for pair in batch]


class _Placeholder(torch.nn.Module):
    """What TRL patches and prepares in place of a reference model that it would otherwise make itself."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self) -> None:
        """Never called: the trainer's `reference` is."""
        raise AssertionError("the placeholder of the reference was called")


def settings_of(stage: PreferenceFields) -> dict[str, Any]:
    """The arguments of TRL's DPOConfig that the stage's fields are."""
    return {
        "beta": stage.beta,
        "loss_type": list(stage.loss_type),
        "loss_weights": list(stage.loss_weights) or None,
        "label_smoothing": stage.label_smoothing,
        "ld_alpha": stage.ld_alpha,
        "f_divergence_type": stage.f_divergence_type,
        "use_weighting": stage.use_weighting,
        "disable_dropout": stage.disable_dropout,
        "max_length": None,
        "router_aux_loss_coef": None,
    }


def protocol(stage: PreferenceFields, labelled: str) -> str:
    """How preferences are scored: only losses of the same protocol are comparable."""
    losses = "+".join(stage.loss_type)
    weights = f", loss_weights={stage.loss_weights}" if stage.loss_weights else ""
    more = [f"label_smoothing={stage.label_smoothing}"] if stage.label_smoothing else []
    more += [f"ld_alpha={stage.ld_alpha}"] if stage.ld_alpha is not None else []
    more += [f"f_divergence_type={stage.f_divergence_type}"] if stage.f_divergence_type != "reverse_kl" else []
    more += ["use_weighting"] if stage.use_weighting else []
    return f"preferences({', '.join([labelled, f'beta={stage.beta}', f'loss_type={losses}{weights}', *more])})"


def _pairs_of(batch: dict[str, torch.Tensor]) -> int:
    return 0 if FILLER in batch else int(batch["input_ids"].shape[0]) // 2
