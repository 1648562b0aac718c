"""Fine-tuning written by hand: transformers, PEFT and torch alone, and nothing of the engine.

Rows, labels, order, schedule, weight decay, clipping and accumulation are written out here, so a step of the engine is
compared with what the recipe says, not with the engine's own parts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch.nn.functional import cross_entropy

SEED = 42
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class ByHand:
    """What one step measured: mean loss of its labels in nats, norm before clipping, rate that it used."""

    loss: float
    grad_norm: float
    learning_rate: float


@dataclass(frozen=True)
class Row:
    """Ids, and the same with -100 where the loss does not count."""

    ids: list[int]
    labels: list[int]

    @property
    def scored(self) -> int:
        """Labels that a token before them predicts."""
        return sum(label != -100 for label in self.labels[1:])


def chatml_rows(model_folder: Path, data: Path) -> list[Row]:
    """The rows of a train split in ChatML; an answer and its end are labels."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model_folder))

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    rows = []
    for line in (data / "train.jsonl").read_text().splitlines():
        asked, answer = (turn["content"] for turn in json.loads(line)["messages"])
        prompt = ids(f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n")
        scored, rest = ids(f"{answer}<|im_end|>"), ids("\n")
        rows.append(Row(prompt + scored + rest, [-100] * len(prompt) + scored + [-100] * len(rest)))
    return rows


def windows(number: int, size: int, accumulation: int) -> Iterator[list[list[int]]]:
    """Windows of micro-batches of row numbers, without end; the last window and micro-batch of an epoch may be short.

    The random state moves at the start of an epoch, as torch's data loader moves it.
    """
    epoch = 0
    while True:
        torch.empty((), dtype=torch.int64).random_()
        order = torch.randperm(number, generator=torch.Generator().manual_seed(SEED + epoch)).tolist()
        batches = [order[at : at + size] for at in range(0, number, size)]
        yield from (batches[at : at + accumulation] for at in range(0, len(batches), accumulation))
        epoch += 1


def joined(window: list[list[int]], rows: Sequence[Row], size: int) -> list[list[int]]:
    """The micro-batches of a window that are computed at once, as long as they have no more tokens than the longest
    micro-batch could have."""
    most = sum(sorted((len(row.ids) for row in rows), reverse=True)[:size])
    found: list[list[int]] = []
    for batch in window:
        if found and sum(len(rows[number].ids) for number in [*found[-1], *batch]) <= most:
            found[-1] = [*found[-1], *batch]
        else:
            found.append(batch)
    return found


def rate_of(stage: Mapping[str, Any], done: int) -> float:
    """The learning rate after so many steps: by default linear warm-up, then half a cosine to zero at the last step."""
    peak, warm, total = stage["learning_rate"], int(stage.get("warmup_steps", 0)), stage["max_steps"]
    if "lr_scheduler_type" in stage:
        return float(peak * _multiplier(stage, warm, total)(done))
    if done < warm:
        return float(peak * done / warm)
    return float(peak * 0.5 * (1.0 + math.cos(math.pi * (done - warm) / (total - warm))))


def _multiplier(stage: Mapping[str, Any], warm: int, total: int) -> Any:
    """What transformers multiplies the rate with, by the number of steps done, for the shape that the stage names."""
    from transformers import get_scheduler

    name = stage["lr_scheduler_type"]
    more = {key: stage[key] for key in ("num_cycles", "power", "lr_end", "min_lr_rate") if key in stage}
    if name == "warmup_stable_decay":
        more = {"num_decay_steps": stage["num_decay_steps"], "decay_type": stage["decay_type"]}
        more["min_lr_ratio"] = stage["min_lr_rate"]
    plain = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=stage["learning_rate"])
    return get_scheduler(name, plain, warm, total, scheduler_specific_kwargs=more).lr_lambdas[0]


class Both:
    """Muon for the projections (Jordan and others 2024; Liu and others 2025), and AdamW for the rest."""

    def __init__(self, matrices: list[Any], rest: Any, decay: float) -> None:
        self._matrices = {weight: torch.zeros_like(weight) for weight in matrices}
        self._rest, self._decay = rest, decay
        self.param_groups = [{"lr": 0.0}, *rest.param_groups]

    @torch.no_grad()
    def step(self) -> None:
        rate = self.param_groups[0]["lr"]
        for weight, momentum in self._matrices.items():
            momentum.mul_(0.95).add_(weight.grad, alpha=0.05)
            update = orthogonal(0.05 * weight.grad + 0.95 * momentum)
            weight.mul_(1 - rate * self._decay)
            weight.sub_(update * (rate * 0.2 * math.sqrt(max(weight.shape))))
        self._rest.step()

    def zero_grad(self) -> None:
        self._rest.zero_grad()
        for weight in self._matrices:
            weight.grad = None


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Five steps of Newton and Schulz in bfloat16, with the coefficients of Muon's author."""
    wide = matrix.shape[0] <= matrix.shape[1]
    found = (matrix if wide else matrix.T).bfloat16()
    found = found / found.norm()
    for _ in range(5):
        square = found @ found.T
        found = 3.4445 * found + (-4.7750 * square + 2.0315 * square @ square) @ found
    return (found if wide else found.T).to(matrix.dtype)


def optimizer_of(model: Any, stage: Mapping[str, Any]) -> Any:
    """AdamW; the weights of norms do not decay. Or Muon for the projections, and AdamW for the rest."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    if stage.get("optim") == "muon":
        matrices = [weight for name, weight in named if name.endswith("_proj.weight")]
        rest = torch.nn.ParameterDict({n.replace(".", "/"): w for n, w in named if not n.endswith("_proj.weight")})
        return Both(matrices, optimizer_of(rest, {**stage, "optim": "adamw_torch"}), stage.get("weight_decay", 0.0))
    decays = [weight for name, weight in named if "norm" not in name]
    others = [weight for name, weight in named if "norm" in name]
    decay = {"params": decays, "weight_decay": stage.get("weight_decay", 0.0)}
    groups = [decay, {"params": others, "weight_decay": 0.0}] if others else [decay]
    return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-8, foreach=False)


def apply_step(model: Any, optimizer: Any, stage: Mapping[str, Any], done: int) -> tuple[float, float]:
    """Clip, step, and forget the gradients; the norm before clipping, and the rate."""
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), stage.get("max_grad_norm", 1.0)))
    rate = rate_of(stage, done)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return norm, rate


def adapter_over(model: Any, stage: Mapping[str, Any]) -> Any:
    """The model with PEFT's adapter of the stage."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=stage["r"],
        lora_alpha=int(stage["lora_alpha"]),
        lora_dropout=stage.get("lora_dropout", 0.0),
        use_dora=stage.get("use_dora", False),
        target_modules=PROJECTIONS,
    )
    return get_peft_model(model, config)


def steps(model_folder: Path, rows: Sequence[Row], stage: Mapping[str, Any], dtype: Any = None) -> Iterator[ByHand]:
    """The steps of a training, one by one.

    Args:
        model_folder: the base model.
        rows: the train split.
        stage: its fields.
        dtype: the weights' type, float32 by default; float64 shows what rounding in float32 does.
    """
    from transformers import AutoModelForCausalLM, set_seed

    dtype = dtype or torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(str(model_folder), dtype=torch.float32)
    if stage.get("load_in_4bit"):
        round_to_nf4(model, double=bool(stage.get("bnb_4bit_use_double_quant", True)))
    set_seed(SEED)
    if "r" in stage:
        model = adapter_over(model, stage)
    model = model.to(dtype).train()
    set_seed(SEED)
    optimizer = optimizer_of(model, stage)
    if "neftune_noise_alpha" in stage:
        add_noise(model, stage["neftune_noise_alpha"])
    dropout = bool(stage.get("lora_dropout", 0.0) or stage.get("neftune_noise_alpha", 0.0))
    smoothing = float(stage.get("label_smoothing_factor", 0.0))
    size, accumulation = stage["per_device_train_batch_size"], stage["gradient_accumulation_steps"]
    for done, window in zip(range(stage["max_steps"]), windows(len(rows), size, accumulation), strict=False):
        count = sum(rows[number].scored for batch in window for number in batch)
        total = 0.0
        for batch in joined(window, rows, size) if dropout and stage.get("padding_free", True) else window:
            # Dropout and noise draw for what is computed at once; without them, each row has a forward pass of its own.
            for part in [batch] if dropout else [[number] for number in batch]:
                loss = loss_of([rows[number] for number in part], model, smoothing) / count
                loss.backward()
                total += float(loss.detach())
        norm, rate = apply_step(model, optimizer, stage, done)
        yield ByHand(total, norm, rate)


def add_noise(model: Any, alpha: float) -> None:
    """NEFTune (Jain and others 2023, algorithm 1): each row's embeddings get uniform noise of at most
    alpha / sqrt(length * width). The noise of rows that are computed at once is drawn at once."""

    def noisy(_module: Any, _given: Any, embedded: torch.Tensor) -> torch.Tensor:
        drawn = torch.empty(embedded.shape).uniform_(-1.0, 1.0)
        limits = [alpha / math.sqrt(length * embedded.shape[-1]) for length in model.lengths for _ in range(length)]
        return embedded + drawn * torch.tensor(limits)[None, :, None]

    model.get_input_embeddings().register_forward_hook(noisy)


def loss_of(rows: Sequence[Row], model: Any, smoothing: float = 0.0) -> torch.Tensor:
    """Sum over the labels of rows, in nats; a share `smoothing` of each label is the mean over the vocabulary."""
    wanted = torch.tensor([label for row in rows for label in [*row.labels[1:], -100]])
    logits = logits_of(rows, model)
    of_labels = cross_entropy(logits, wanted, ignore_index=-100, reduction="sum")
    if not smoothing:
        return of_labels
    of_all = -logits.log_softmax(-1)[wanted != -100].mean(-1).sum()
    return (1.0 - smoothing) * of_labels + smoothing * of_all


def logits_of(rows: Sequence[Row], model: Any) -> torch.Tensor:
    """Logits of rows that follow each other, with a mask that keeps them apart: [tokens, vocabulary]."""
    model.lengths = [len(row.ids) for row in rows]
    owner = torch.cat([torch.full((len(row.ids),), number) for number, row in enumerate(rows)])
    length = len(owner)
    seen = (owner[:, None] == owner[None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(length, length, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    given = {
        "input_ids": torch.tensor([[token for row in rows for token in row.ids]]),
        "position_ids": torch.cat([torch.arange(len(row.ids)) for row in rows])[None],
    }
    logits: torch.Tensor = model(**given, attention_mask=mask[None, None], use_cache=False).logits[0]
    return logits


def nf4_levels() -> list[float]:
    """The sixteen values of NF4: quantiles of the normal distribution, eight above zero (QLoRA, appendix E)."""
    offset, normal = 0.9677083, NormalDist()

    def quantiles(number: int) -> list[float]:
        ends = (offset + (0.5 - offset) * at / number for at in range(number))
        return [normal.inv_cdf(end) for end in ends]

    found = sorted([*quantiles(8), 0.0, *(-value for value in quantiles(7))])
    return [value / max(found) for value in found]


def round_to_nf4(model: Any, *, double: bool) -> None:
    """Replace each projection by the float32 values for which its 4-bit form stands.

    bitsandbytes packs (it is data here: two numbers of a level in a byte, the first in its upper half; a scale for 64
    weights); what they stand for is computed here.
    """
    from bitsandbytes.functional import quantize_4bit

    levels = torch.tensor(nf4_levels(), dtype=torch.float64)
    for name, weight in model.named_parameters():
        if not name.endswith("_proj.weight"):
            continue
        packed, state = quantize_4bit(weight.data, blocksize=64, quant_type="nf4", compress_statistics=double)
        packed = packed.flatten()
        numbers = torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()
        scales = state.absmax.double()
        if double:  # scales are 8 bits themselves: numbers of a table, with a scale for 256 of them, around a mean
            second = state.state2
            table = second.code.double()[state.absmax.long()]
            scales = table * second.absmax.double().repeat_interleave(256)[: len(table)] + float(state.offset)
        values = levels[numbers].view(-1, 64) * scales[:, None]
        weight.data = values.view(weight.shape).float()
