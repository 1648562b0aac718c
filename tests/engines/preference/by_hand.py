"""Training on preferences written by hand: transformers, PEFT and torch alone, and the formulas of the papers."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from tests.engines.training.by_hand import SEED, Row, adapter_over, apply_step, logits_of, optimizer_of, windows


@dataclass(frozen=True)
class ByHand:
    """What one step measured; rewards are means over its pairs."""

    loss: float
    learning_rate: float
    grad_norm: float
    chosen: float
    rejected: float


Pair = tuple[list[int], list[int], list[int]]
"""Ids of the prompt, of the preferred answer, and of the other."""


def steps(
    model_folder: Path, data: Path, stage: Mapping[str, Any], number: int, dtype: torch.dtype = torch.float32
) -> Iterator[ByHand]:
    """The first steps of a training, one by one; float64 shows what rounding in float32 does."""
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder))
    pairs = [_pair(tokenizer, json.loads(line)) for line in (data / "train.jsonl").read_text().splitlines()]
    base = AutoModelForCausalLM.from_pretrained(str(model_folder), dtype=torch.float32)
    set_seed(SEED)
    adapts = stage.get("output") != "model"
    model = (adapter_over(base, stage) if adapts else base).to(dtype).train()
    first = model if adapts else copy.deepcopy(model)
    reference = Reference(first, model.disable_adapter if adapts else nullcontext)
    set_seed(SEED)
    optimizer = optimizer_of(model, stage)
    stage = {**stage, "max_steps": number}
    batches = windows(len(pairs), stage["per_device_train_batch_size"], stage["gradient_accumulation_steps"])
    for done, window in zip(range(number), batches, strict=False):
        yield _step(model, reference, optimizer, [[pairs[index] for index in batch] for batch in window], stage, done)


def _pair(tokenizer: Any, row: Mapping[str, str]) -> Pair:
    asked = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
    texts = (asked, row["chosen"] + "<|im_end|>", row["rejected"] + "<|im_end|>")
    prompt, chosen, rejected = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    return prompt, chosen, rejected


@dataclass(frozen=True)
class Reference:
    """A model, and what makes it the one before the first step."""

    model: Any
    as_first: Callable[[], AbstractContextManager[Any]]


def _step(
    model: Any,
    reference: Reference,
    optimizer: Any,
    window: list[list[Pair]],
    stage: Mapping[str, Any],
    done: int,
) -> ByHand:
    losses, rewards = [], []
    count = sum(len(batch) for batch in window)
    # Dropout draws for a whole micro-batch, all preferred answers first; without it, each answer is alone.
    dropout = bool(stage.get("lora_dropout", 0.0)) and not stage.get("disable_dropout", True)
    for batch in window if dropout else [[pair] for several in window for pair in several]:
        after = _log_probabilities(model, batch, in_one=dropout)
        reference.model.eval()
        with torch.no_grad(), reference.as_first():
            before = _log_probabilities(reference.model, batch, in_one=False)
        model.train(dropout)  # off where it is disabled
        of_pairs = [_loss(*three, stage) for three in zip(batch, after, before, strict=True)]
        (torch.stack([loss for loss, _ in of_pairs]).sum() / count).backward()
        losses += [float(loss.detach()) for loss, _ in of_pairs]
        rewards += [reward for _, reward in of_pairs]
    norm, rate = apply_step(model, optimizer, stage, done)
    chosen, rejected = (sum(side) / count for side in zip(*rewards, strict=True))
    return ByHand(sum(losses) / count, rate, norm, chosen, rejected)


Both = tuple[torch.Tensor, torch.Tensor]
"""Log probabilities of the preferred and of the other answer, in nats."""


def _log_probabilities(model: Any, pairs: Sequence[Pair], *, in_one: bool) -> list[Both]:
    """Of both answers of each pair; `in_one`: all rows in one sequence, with the line end of the template."""
    if not in_one:
        return [
            (log_probability(model, prompt, chosen), log_probability(model, prompt, rejected))
            for prompt, chosen, rejected in pairs
        ]
    end = pairs[0][0][-1:]  # a prompt ends with a line end too
    answers = [(pair[0], pair[side]) for side in (1, 2) for pair in pairs]
    rows = [Row([*prompt, *answer, *end], []) for prompt, answer in answers]
    logits = logits_of(rows, model).split([len(row.ids) for row in rows])
    found = [
        of_row[len(prompt) - 1 :][: len(answer)].log_softmax(dim=-1).gather(1, torch.tensor(answer)[:, None]).sum()
        for of_row, (prompt, answer) in zip(logits, answers, strict=True)
    ]
    return list(zip(found[: len(pairs)], found[len(pairs) :], strict=True))


def _loss(pair: Pair, after: Both, before: Both, stage: Mapping[str, Any]) -> tuple[torch.Tensor, tuple[float, float]]:
    _, chosen, rejected = pair
    first, second = (now - then for now, then in zip(after, before, strict=True))
    beta = stage.get("beta", 0.1)
    loss = loss_of(stage.get("loss_type", "sigmoid"), first, second, beta, len(chosen), len(rejected), after[0], stage)
    return loss, (beta * float(first.detach()), beta * float(second.detach()))


def log_probability(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Of an answer after a prompt, in nats."""
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(dim=-1).gather(1, torch.tensor(answer)[:, None]).sum()


def loss_of(
    kind: str,
    w: torch.Tensor,
    l: torch.Tensor,  # noqa: E741 - the papers' own letters: winner and loser
    beta: float,
    words_w: int,
    words_l: int,
    logp_w: torch.Tensor,
    stage: Mapping[str, Any],
) -> torch.Tensor:
    """The loss of a pair from both log ratios, after the papers that name it."""
    eps, delta = stage.get("label_smoothing", 0.0), w - l
    match kind:
        case "sigmoid":  # Rafailov and others 2023, (7)
            return -logsigmoid(beta * delta)
        case "hinge":  # Zhao and others 2023 (SLiC)
            return torch.relu(1 - beta * delta)
        case "ipo":  # Azar and others 2023, (17), per token
            return (w / words_w - l / words_l - 1 / (2 * beta)) ** 2
        case "robust":  # Chowdhury and others 2024
            return (-(1 - eps) * logsigmoid(beta * delta) + eps * logsigmoid(-beta * delta)) / (1 - 2 * eps)
        case "exo_pair":  # Ji and others 2024, (16)
            p, q = torch.sigmoid(beta * delta), torch.sigmoid(-beta * delta)
            return p * (torch.log(p) - math.log(1 - eps)) + q * (torch.log(q) - math.log(eps))
        case "nca_pair":  # Chen and others 2024
            return -logsigmoid(beta * w) - 0.5 * logsigmoid(-beta * w) - 0.5 * logsigmoid(-beta * l)
        case "bco_pair":  # Jung and others 2024, without the shift of rewards
            return -logsigmoid(beta * w) - logsigmoid(-beta * l)
        case "sppo_hard":  # Wu and others 2024
            return (w - 0.5 / beta) ** 2 + (l + 0.5 / beta) ** 2
        case "apo_zero":  # D'Oosterlinck and others 2024, (7)
            return 1 - torch.sigmoid(beta * w) + torch.sigmoid(beta * l)
        case "apo_down":  # the same, (8)
            return torch.sigmoid(beta * w) + 1 - torch.sigmoid(beta * delta)
        case "sft":
            return -logp_w / words_w
        case "sigmoid_norm":
            return -logsigmoid(beta * (w / words_w - l / words_l))
        case "aot" | "aot_unpaired":  # of one pair, where sorting changes nothing
            return -(1 - eps) * logsigmoid(beta * delta) - eps * logsigmoid(-beta * delta)
    raise AssertionError(kind)
