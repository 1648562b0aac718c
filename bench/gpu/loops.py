"""Bare loops: what the card gives without Trainer, journal, guards and checkpoints. They share no code with the engine.

LoRA, two ways to lay out the same rows: `padded` to the longest row of a micro-batch, without a mask, because padding
lies behind the causal edge; `flat`, all rows of a step in as few sequences as two of the longest rows need, with flash
attention that keeps rows apart. In both, answers only go through the head. From scratch: the model's own loss, and with
`compiled` decoder layers.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

from bench.gpu import place
from bench.gpu.material import model_folder, read_labelled
from bench.gpu.place import SMOKE
from bench.gpu.shapes import PROJECTIONS, RANK, Pretraining, Tuning, pretraining, tuning

Row = tuple[list[int], list[int]]
IGNORED = -100
ROUND_STEPS, ROUND_WARM = 12, 3
WAYS = tuple(os.environ.get("TRIAL_WAYS", "flat,padded").split(","))


class _Rows:
    """Ends of the rows of the present sequence, on the device, and the longest of them."""

    ends: Any = None
    lengths: Sequence[int] = ()


def apart_attention(
    _module: Any, query: Any, key: Any, value: Any, _mask: Any, scaling: float | None = None, **_: Any
) -> tuple[Any, None]:
    """Causal attention within rows, [1, heads, tokens, width] to [1, tokens, heads, width]."""
    import torch

    groups = query.shape[1] // key.shape[1]
    if not query.is_cuda:
        at = [0, *accumulate(_Rows.lengths)]
        parts = [
            torch.nn.functional.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, start:end],
                value[:, :, start:end],
                is_causal=True,
                scale=scaling,
                enable_gqa=True,
            )
            for start, end in pairwise(at)
        ]
        return torch.cat(parts, dim=2).transpose(1, 2), None
    from torch.nn.attention import varlen

    varlen_attn: Any = varlen.varlen_attn  # its arguments are others in each version of torch
    known = inspect.signature(varlen_attn).parameters
    more: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "enable_gqa" in known:
        more["enable_gqa"] = True
    else:
        key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    flat = [one[0].transpose(0, 1) for one in (query, key, value)]
    longest = max(_Rows.lengths)
    found = varlen_attn(*flat, _Rows.ends, _Rows.ends, longest, longest, **more)
    return found[None], None


def ordered(rows: list[Row], window: int) -> list[Row]:
    """Rows in the order in which the engine takes them, so that both train on the same ones."""
    from engines.forward.order import grouped_by_length

    return [rows[at] for at in grouped_by_length([len(ids) for ids, _ in rows], window, 42, 0)]


def tune(name: str) -> dict[str, Any]:
    """LoRA in bfloat16 with float32 adapters, the layouts in one process, one after the other, twice."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

    job, device = tuning(name, smoke=SMOKE), _device()
    AttentionInterface.register("trial_apart", apart_attention)
    AttentionMaskInterface.register("trial_apart", lambda *_a, **_k: None)
    model = AutoModelForCausalLM.from_pretrained(str(model_folder(name)), dtype=torch.bfloat16, device_map={"": device})
    torch.manual_seed(42)
    model = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=32, target_modules=list(PROJECTIONS))
    )
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False
    trained = [one for one in model.parameters() if one.requires_grad]
    for one in trained:
        one.data = one.data.float()
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
    model.train()
    rows = ordered(read_labelled(name), job.window)
    place.wait_for_turn(f"tune-loops-{name}")
    steps = min(ROUND_STEPS, job.steps)
    found: dict[str, Any] = {}
    for turn in (1, 2):
        for way in WAYS:
            core = model.get_base_model()
            core.set_attn_implementation("trial_apart" if way == "flat" else "sdpa")
            layout = _flat if way == "flat" else _padded
            key = way if turn == 1 else f"{way} again"
            found[key] = _rounds(model, optimizer, trained, rows, job, layout, steps, device)
    return found


def _rounds(
    model: Any,
    optimizer: Any,
    trained: list[Any],
    rows: list[Row],
    job: Tuning,
    layout: Callable[[list[Row], Tuning, str], list[Any]],
    steps: int,
    device: str,
) -> dict[str, Any]:
    import torch

    warm = min(ROUND_WARM, job.warm)
    kept: list[Any] = []
    tokens, work, began = 0, 0.0, 0.0
    _reset_peak()
    for step in range(steps):
        if step == warm:
            _sync()
            began, tokens, work = time.monotonic(), 0, 0.0
        window = rows[step * job.window : (step + 1) * job.window]
        lengths = [len(ids) for ids, _ in window]
        tokens, work = tokens + sum(lengths), work + job.shape.flop(lengths, lora=True)
        scored = sum(label != IGNORED for _, labels in window for label in labels[1:])
        total = torch.zeros((), device=device)
        for ids, positions, at, targets in layout(window, job, device):
            with torch.autocast(device, dtype=torch.bfloat16):
                core = model.get_base_model()
                hidden = core.model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
                logits = core.lm_head(hidden.flatten(0, 1)[at])
                loss = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum") / scored
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        kept.append(total)
    _sync()
    seconds = time.monotonic() - began
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "flop": work,
        "loss": [float(kept[0]), float(kept[-1])],
        **_peak(),
    }


def _padded(window: list[Row], job: Tuning, device: str) -> list[Any]:
    import torch

    batches = []
    for start in range(0, len(window), job.batch):
        some = window[start : start + job.batch]
        longest = max(len(ids) for ids, _ in some)
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in some])
        labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in some])
        following = torch.cat([labels[:, 1:], torch.full((len(some), 1), IGNORED)], dim=1).flatten()
        at = (following != IGNORED).nonzero()[:, 0]
        batches.append([_to(ids, device), None, _to(at, device), _to(following[at], device)])
    return batches


def _flat(window: list[Row], job: Tuning, device: str) -> list[Any]:
    """A generator, because the attention reads the ends of the present sequence."""
    return _sequences(window, job, device)


def _sequences(window: list[Row], job: Tuning, device: str) -> Any:
    import torch

    room = job.batch * job.high
    groups: list[list[Row]] = []
    for row in window:
        if not groups or sum(len(ids) for ids, _ in groups[-1]) + len(row[0]) > room:
            groups.append([])
        groups[-1].append(row)
    for group in groups:
        ids = torch.tensor([token for row, _ in group for token in row])
        positions = torch.cat([torch.arange(len(row)) for row, _ in group])
        following = torch.tensor([label for _, labels in group for label in [*labels[1:], IGNORED]])
        at = (following != IGNORED).nonzero()[:, 0]
        _Rows.lengths = [len(row) for row, _ in group]
        _Rows.ends = _to(torch.tensor([0, *accumulate(_Rows.lengths)], dtype=torch.int32), device)
        yield [_to(ids[None], device), _to(positions[None], device), _to(at, device), _to(following[at], device)]


def pretrain(name: str) -> dict[str, Any]:
    """From scratch in bfloat16 autocast over float32 weights: as it is, then with compiled layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    job, device = pretraining(name, smoke=SMOKE), _device()
    config = LlamaConfig(
        max_position_embeddings=job.length, tie_word_embeddings=True, dtype="float32", **job.shape.fields()
    )
    torch.manual_seed(42)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    place.wait_for_turn(f"pretrain-loops-{name}")
    found: dict[str, Any] = {"parameters": sum(one.numel() for one in model.parameters())}
    found["eager"] = _windows(model, optimizer, job, device)
    if not SMOKE:
        for layer in model.model.layers:
            layer.compile()
        found["compiled"] = _windows(model, optimizer, job, device)
    return found


def _windows(model: Any, optimizer: Any, job: Pretraining, device: str) -> dict[str, Any]:
    import numpy as np
    import torch

    draw = np.random.default_rng(0)
    began, kept = time.monotonic(), []
    first_s = 0.0
    _reset_peak()
    for step in range(job.counted):
        if step == job.warm:
            _sync()
            began = time.monotonic()
        total = torch.zeros((), device=device)
        for _ in range(job.accumulation):
            ids = torch.from_numpy(draw.integers(5, job.shape.vocab_size, (job.batch, job.length)))
            ids = _to(ids, device)
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss / job.accumulation
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        kept.append(total)
        if step == 0:
            _sync()
            first_s = time.monotonic() - began
    _sync()
    seconds, tokens = time.monotonic() - began, (job.counted - job.warm) * job.tokens
    per_row = job.shape.flop([job.length], lora=False)
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "first_step_s": first_s,
        "flop": per_row * tokens / job.length,
        "loss": [float(kept[0]), float(kept[-1])],
        **_peak(),
    }


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _to(tensor: Any, device: str) -> Any:
    return tensor.pin_memory().to(device, non_blocking=True) if device == "cuda" else tensor


def _sync() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak() -> dict[str, float]:
    import torch

    if not torch.cuda.is_available():
        return {}
    return {
        "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
    }
