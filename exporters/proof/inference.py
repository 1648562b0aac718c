"""Measures inference with a file: greedy answers to held-out prompts, speed, memory, and whether the answers end.

Speeds depend on the machine and the number of threads, with one sequence at a time; they compare the files of one
export.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from engines.llama.process import LlamaProcess
from exporters.prompts.chat_format import chat_format
from exporters.proof.parity_data import encode

PROMPTS = 3
LIMIT = 48
"""Maximum number of new tokens of an answer."""


@dataclass(frozen=True)
class Inference:
    """Measured inference of one file.

    Attributes:
        prompt_tokens_per_second: reading a prompt, the median of the prompts.
        tokens_per_second: generating, one token at a time, the median of the prompts.
        rss_bytes: maximum resident memory of llama.cpp's process after an answer, mapped weights included.
        prompts: number of prompts.
        ended: number of answers that ended with a stop token within the limit.
        limit: maximum number of tokens of an answer.
        answers: the ids of each answer.
    """

    prompt_tokens_per_second: float
    tokens_per_second: float
    rss_bytes: int
    prompts: int
    ended: int
    limit: int
    answers: list[list[int]]

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def opening_ids(tokenizer: Any) -> list[int]:
    """Ids of the text before an answer in a conversation; empty for a tokenizer without a regular chat template."""
    chat = chat_format(tokenizer)
    return encode(tokenizer, chat.opening, special=True) if chat is not None and chat.opening else []


def prompts_of(windows: Sequence[Sequence[int]], context: int, *, cut_after: Sequence[int]) -> list[list[int]]:
    """Prompts from the windows of the comparison, short enough that an answer fits into the context.

    Args:
        windows: token ids.
        context: tokens of the context.
        cut_after: a prompt ends with these ids if its window has them, else at the window's middle.
    """
    prompts: list[list[int]] = []
    for window in windows:
        ids = list(window)
        size = len(cut_after)
        ends = [at + size for at in range(len(ids) - size + 1) if size and ids[at : at + size] == list(cut_after)]
        prompt = ids[: ends[0] if ends else max(1, len(ids) // 2)]
        if len(prompt) + LIMIT <= context:
            prompts.append(prompt)
        if len(prompts) == PROMPTS:
            break
    return prompts


def measure(llama: LlamaProcess, prompts: Sequence[Sequence[int]], stops: Sequence[int]) -> Inference | None:
    """Answer every prompt greedily; None if there are no prompts."""
    if not prompts:
        return None
    llama.generate(prompts[0], 2, ())  # the first use of a file reads it from the disk
    runs = [llama.generate(prompt, LIMIT, stops) for prompt in prompts]
    reading = [len(p) / run.prompt_s for p, run in zip(prompts, runs, strict=True) if run.prompt_s > 0]
    writing = [(len(run.ids) - 1) / run.generation_s for run in runs if run.generation_s > 0 and len(run.ids) > 1]
    return Inference(
        prompt_tokens_per_second=median(reading) if reading else 0.0,
        tokens_per_second=median(writing) if writing else 0.0,
        rss_bytes=max(run.rss_bytes for run in runs),
        prompts=len(prompts),
        ended=sum(run.ids[-1] in stops for run in runs),
        limit=LIMIT,
        answers=[run.ids for run in runs],
    )
