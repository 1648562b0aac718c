"""Greedy answers to a fixed choice of questions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from engines.chat.rendering import Waiting
from engines.data.readers.row import MessageRow
from engines.data.special_pieces import TURN_END
from engines.evaluate.model import LoadedModel
from engines.labels.label import prompt_ids
from engines.labels.row import LabelRules


@dataclass(frozen=True)
class Answer:
    """A question, the held-out answer, and the model's answer."""

    prompt: str
    expected: str
    answer: str

    def as_dict(self) -> dict[str, str]:
        """For report.json."""
        return asdict(self)


def choose_questions(rows: Iterable[MessageRow], count: int) -> list[MessageRow]:
    """The first `count` rows, taken in turn from every kind of question, so that each kind is included."""
    by_kind: dict[str, list[MessageRow]] = {}
    for row in rows:
        of_kind = by_kind.setdefault(row.category, [])
        if len(of_kind) < count:
            of_kind.append(row)
    chosen: list[MessageRow] = []
    for turn in range(count):
        for kind in sorted(by_kind):
            if turn < len(by_kind[kind]) and len(chosen) < count:
                chosen.append(by_kind[kind][turn])
    return chosen


@torch.no_grad()
def answer(
    loaded: LoadedModel,
    row: MessageRow,
    max_new_tokens: int,
    rules: LabelRules,
    *,
    waiting: Waiting | None = None,
) -> Answer:
    """Encode a question as training does and decode greedily until an end token or `max_new_tokens`."""
    model, tokenizer = loaded.model, loaded.tokenizer
    prompt = prompt_ids(row.as_dicts()[:-1], row.tools, loaded.view, rules, waiting=waiting)
    ids = torch.tensor([prompt], device=model.device)
    ends = end_ids(model, tokenizer)
    written = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=ends or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0],
    )
    text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    return Answer(row.prompt, row.answer, text)


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: the model's own, the tokenizer's, and ChatML's end of turn."""
    named = getattr(model.generation_config, "eos_token_id", None)
    ends = set(named if isinstance(named, list) else [named])
    ends.add(tokenizer.eos_token_id)
    ends.add(tokenizer.get_vocab().get(TURN_END))
    return sorted(end for end in ends if end is not None)
