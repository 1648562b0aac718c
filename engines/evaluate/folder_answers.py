"""Answers of a model folder, or of an adapter over its base model, with transformers, in batches."""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from engines.evaluate.answers import end_ids
from engines.evaluate.asking import Waiting
from engines.evaluate.four_bits import precision_of
from engines.evaluate.model import LoadedModel
from engines.judging.answers import Kept
from engines.judging.task import Task
from engines.labels.label import prompt_ids
from engines.labels.row import LabelRules
from engines.llama.drawing import GREEDY, Drawer, DrawRules

_WARM_UP_TOKENS = 2
_NO_LIMIT = 1 << 30


class _Clock(StoppingCriteria):
    """Notes when each token of a batch was there, and stops nothing."""

    def __init__(self, waiting: Waiting) -> None:
        self.times: list[float] = []
        self._waiting = waiting

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_more: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        self._waiting()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class _Drawn(LogitsProcessor):
    """Draws each row's token with random numbers of its own, and leaves greedy decoding no other choice: so an answer
    does not depend on the rows beside it, and a GGUF file draws by the same rules."""

    def __init__(self, drawers: Sequence[Drawer]) -> None:
        self._drawers = drawers

    def __call__(self, _input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        rows = scores.float().cpu().numpy()
        tokens = [drawer.draw(row) for drawer, row in zip(self._drawers, rows, strict=True)]
        chosen = torch.full_like(scores, float("-inf"))
        chosen[range(len(tokens)), tokens] = 0
        return chosen


class FolderAnswers:
    """A loaded model that answers tasks.

    Prompts of different lengths are padded on the left, and the padding is masked. A model that carries a state from
    token to token would take padding into it, so such a model answers prompts of equal length together.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        sha256: str,
        size_bytes: int,
        limit: int,
        batch_size: int = 1,
        template: str = "",
        plain: bool = False,
        moment: str = "",
        rules: DrawRules = GREEDY,
    ) -> None:
        """Make a model ready to answer.

        Args:
            loaded: the model.
            sha256: identifies its weights.
            size_bytes: of its weights' files.
            limit: most new tokens of an answer.
            batch_size: prompts that are answered together.
            template: the text of the chat template; empty for the tokenizer's.
            plain: prompts are texts to continue, without a chat template.
            moment: the local time that the template sees, in ISO form.
            rules: how tokens are drawn; greedy by default.
        """
        self.limit, self.batch_size, self.longest = limit, batch_size, _longest(loaded.model)
        self._loaded, self._plain, self._size_bytes, self._rules_of_tokens = loaded, plain, size_bytes, rules
        self._rules = LabelRules(max_length=_NO_LIMIT, template=template, moment=moment)
        model, tokenizer = loaded.model, loaded.tokenizer
        self.ends = end_ids(model, tokenizer)
        pad = tokenizer.pad_token_id
        self._pad = pad if pad is not None else (self.ends or [0])[0]
        # Nothing of the folder's own settings, such as a penalty on repetition, may change greedy decoding.
        model.generation_config = GenerationConfig(eos_token_id=self.ends or None, pad_token_id=self._pad)
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._stateful = bool(getattr(inner, "_is_stateful", False))
        weights = next(model.parameters())
        shown = "plain" if plain else hashlib.sha256((template or loaded.view.template).encode()).hexdigest()
        self.identity: Mapping[str, Any] = {
            "model": sha256,
            "runtime": "transformers",
            "dtype": precision_of(model),
            "device": weights.device.type,
            "template": shown,
            "moment": moment,
            "sampling": rules.stated(),
            "max_new_tokens": limit,
            "batch_size": batch_size,
        }

    def encode(self, task: Task) -> list[int]:
        """Ids of a prompt: those that training has before an answer."""
        if self._plain:
            ids: list[int] = self._loaded.tokenizer(_plain_text(task))["input_ids"]
            return ids
        turns = [dict(message) for message in task.messages]
        return prompt_ids(turns, [dict(tool) for tool in task.tools], self._loaded.view, self._rules)

    def prepare(self, longest_prompt: int) -> None:
        """Generate a few tokens whose time does not count."""
        ids = torch.full((1, min(longest_prompt, 8)), self._pad, device=self._loaded.model.device)
        self._generate(ids, torch.ones_like(ids), _WARM_UP_TOKENS, _Clock(lambda: None))

    def answer(self, tasks: Sequence[tuple[Task, list[int]]], waiting: Waiting) -> list[Kept]:
        """Answers to tasks, together; one after another length by length for a model that carries a state."""
        lengths = sorted({len(ids) for _, ids in tasks}, reverse=True) if self._stateful else [0]
        done: dict[str, Kept] = {}
        for length in lengths:
            together = [(task, ids) for task, ids in tasks if not self._stateful or len(ids) == length]
            done |= {one.key: one for one in self._together(together, waiting)}
        return [done[task.key] for task, _ in tasks]

    @torch.no_grad()
    def _together(self, tasks: Sequence[tuple[Task, list[int]]], waiting: Waiting) -> list[Kept]:
        longest = max(len(ids) for _, ids in tasks)
        device = self._loaded.model.device
        padded = [[self._pad] * (longest - len(ids)) + ids for _, ids in tasks]
        seen = [[0] * (longest - len(ids)) + [1] * len(ids) for _, ids in tasks]
        clock = _Clock(waiting)
        rules = self._rules_of_tokens
        drawn = _Drawn([Drawer(rules.of_task(task.key), ids) for task, ids in tasks]) if rules.temperature > 0 else None
        started_s = time.perf_counter()
        written = self._generate(
            torch.tensor(padded, device=device), torch.tensor(seen, device=device), self.limit, clock, drawn
        )
        new = written[:, longest:].tolist()
        return [
            self._kept(task, len(ids), one, clock.times, started_s, len(tasks))
            for (task, ids), one in zip(tasks, new, strict=True)
        ]

    def _generate(
        self, ids: torch.Tensor, mask: torch.Tensor, limit: int, clock: _Clock, drawn: _Drawn | None = None
    ) -> torch.Tensor:
        written: torch.Tensor = self._loaded.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=limit,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([clock]),
            logits_processor=LogitsProcessorList([] if drawn is None else [drawn]),
        )
        return written

    def _kept(
        self, task: Task, prompt_tokens: int, new: list[int], times: Sequence[float], started_s: float, batch: int
    ) -> Kept:
        """The answer of one row: what follows its first end token is the padding of a batch."""
        at = next((at for at, token in enumerate(new) if token in self.ends), None)
        count = len(new) if at is None else at + 1
        text: str = self._loaded.tokenizer.decode(new[:count], skip_special_tokens=True)
        return Kept(
            key=task.key,
            answer=text,
            ended=at is not None,
            prompt_tokens=prompt_tokens,
            tokens=count,
            first_token_s=times[0] - started_s,
            latency_s=times[count - 1] - started_s,
            batch=batch,
            ids=new[:count],
        )

    @torch.no_grad()
    def after(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits of the token after a sequence, float32 [vocabulary], computed without a cache of earlier tokens."""
        given = torch.tensor([list(ids)], device=self._loaded.model.device)
        logits: torch.Tensor = self._loaded.model(given, use_cache=False).logits[0, -1]
        found: NDArray[np.float32] = logits.float().cpu().numpy()
        return found

    def text(self, token: int) -> str:
        """The text of a token, control tokens by their names."""
        return str(self._loaded.tokenizer.decode([token]))

    def measured(self) -> dict[str, float]:
        """Peak memory of this process and of its accelerators, and the size of the weights' files."""
        peak = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        found = {"peak_rss_bytes": peak, "size_bytes": float(self._size_bytes)}
        if torch.cuda.is_available():
            cards = range(torch.cuda.device_count())
            found["peak_vram_bytes"] = float(sum(torch.cuda.max_memory_allocated(card) for card in cards))
        return found


def _longest(model: Any) -> int:
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    given = getattr(config, "max_position_embeddings", None)
    return given if isinstance(given, int) and given > 0 else _NO_LIMIT


def _plain_text(task: Task) -> str:
    return "\n".join(str(message.get("content") or "") for message in task.messages)
