"""Training on preferences written by hand: transformers, PEFT and torch alone, and the formulas of the papers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed


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


def steps(model_folder: Path, data: Path, stage: Mapping[str, Any], number: int) -> Iterator[ByHand]:
    """The first steps of a training, one by one."""
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder))
    pairs = [_pair(tokenizer, json.loads(line)) for line in (data / "train.jsonl").read_text().splitlines()]
    base = AutoModelForCausalLM.from_pretrained(str(model_folder), dtype=torch.float32)
    set_seed(42)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(task_type="CAUSAL_LM", r=stage["r"], lora_alpha=stage["lora_alpha"], target_modules=names)
    model = get_peft_model(base, config)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=stage["learning_rate"], weight_decay=0.0)
    size, windows = stage["per_device_train_batch_size"], stage["gradient_accumulation_steps"]
    done = 0
    for epoch in range(1000):
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(42 + epoch)).tolist()
        for at in range(0, len(order), size * windows):
            chosen = [pairs[index] for index in order[at : at + size * windows]]
            rate = stage["learning_rate"] * 0.5 * (1 + math.cos(math.pi * done / number))
            for group in optimizer.param_groups:
                group["lr"] = rate
            yield _step(model, trained, optimizer, chosen, stage, rate)
            done += 1
            if done == number:
                return


def _pair(tokenizer: Any, row: Mapping[str, str]) -> Pair:
    asked = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
    texts = (asked, row["chosen"] + "<|im_end|>", row["rejected"] + "<|im_end|>")
    prompt, chosen, rejected = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    return prompt, chosen, rejected


def _step(
    model: Any, trained: list[Any], optimizer: Any, pairs: list[Pair], stage: Mapping[str, Any], rate: float
) -> ByHand:
    optimizer.zero_grad()
    losses, rewards = [], []
    for pair in pairs:
        loss, reward = _loss(model, pair, stage)
        (loss / len(pairs)).backward()
        losses.append(float(loss.detach()))
        rewards.append(reward)
    norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    chosen, rejected = (sum(side) / len(pairs) for side in zip(*rewards, strict=True))
    return ByHand(sum(losses) / len(pairs), rate, float(norm), chosen, rejected)


def _loss(model: Any, pair: Pair, stage: Mapping[str, Any]) -> tuple[torch.Tensor, tuple[float, float]]:
    prompt, chosen, rejected = pair
    with torch.no_grad(), model.disable_adapter():
        before = [log_probability(model, prompt, answer) for answer in (chosen, rejected)]
    after = [log_probability(model, prompt, answer) for answer in (chosen, rejected)]
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
