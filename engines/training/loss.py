"""Token-weighted loss: which tokens count, how they are batched, and the mean over them.

Evaluation stages and evaluations during training use the same functions, so their numbers are comparable. A loss is the
sum of the negative log likelihoods (float64) of all scored tokens divided by their number, not a mean of batches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, Protocol

import torch
from torch.nn.functional import cross_entropy

from engines.chat.rendering import Chat, Marked, Waiting, render, render_marked, template_of
from recipes.problems import OperatorError

IGNORED = -100
"""Label of a position that the loss does not count (torch's own convention)."""

ANSWERS_PROTOCOL = "answers"
WINDOWS_PROTOCOL = "windows"

_CHUNK_ROWS, _CHUNK_CHARACTERS = 64, 200_000
"""Rows that one request to the chat template's process has: a request costs as much as several short rows."""


class Shard(Protocol):
    """The part of a token shard that `window_batches` uses."""

    tokens: Any

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Example:
    """One tokenized conversation. `labels` are the ids at answer positions, `IGNORED` elsewhere; equal lengths."""

    input_ids: list[int]
    labels: list[int]

    @property
    def scored(self) -> int:
        """Number of tokens that the loss counts; the first token has no context and does not count."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass
class AnswerStats:
    """Counts of rows: every row that is left out is counted."""

    rows: int = 0
    truncated: int = 0
    """rows cut at max_length that keep a part of the answer"""
    dropped: int = 0
    """rows without any answer token within max_length"""
    control_strings: int = 0
    """rows left out because their text contains a literal control string, such as <|im_end|>"""
    tokens: int = 0
    scored_tokens: int = 0


@dataclass(frozen=True)
class Batch:
    """Right-padded tensors, int64 [batch, longest]; `labels` is `IGNORED` at padding and outside answers."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Batches:
    """Batches that can be iterated more than once; their totals are known in advance."""

    walk: Callable[[], Iterator[Batch]]
    scored_tokens: int
    protocol: str
    stats: AnswerStats = field(default_factory=AnswerStats)

    def __iter__(self) -> Iterator[Batch]:
        return self.walk()


def encode_answers(
    rows: Iterable[Sequence[dict[str, str]]],
    tokenizer: Any,
    max_length: int,
    *,
    max_tokens: int | None = None,
    waiting: Waiting | None = None,
) -> tuple[list[Example], AnswerStats]:
    """Tokenize conversations with the tokenizer's chat template; only the assistant's turns have labels.

    The end-of-turn token that the template puts inside `{% generation %}` is labelled too, so the model learns to stop.
    A template without these marks is rendered turn by turn, and the text that each assistant turn adds is labelled.

    Args:
        rows: conversations, each a list of {"role", "content"} that ends with an assistant turn.
        tokenizer: a Hugging Face tokenizer with a chat template.
        max_length: longer examples are cut at the end, and counted.
        max_tokens: stop taking rows when this many tokens are scored.
        waiting: called now and then while a chat template computes; what it raises ends the encoding.

    Raises:
        OperatorError: the tokenizer has no chat template, or the template raises an error, exceeds its limits, or
            changes earlier turns.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise OperatorError(
            "the model's tokenizer has no chat template, so it cannot encode conversations",
            "use a model whose folder has chat_template.jinja",
        )
    stats = AnswerStats()
    examples: list[Example] = []
    for marked in _rendered_rows(rows, tokenizer, waiting):
        if max_tokens is not None and stats.scored_tokens >= max_tokens:
            break
        stats.rows += 1
        if marked is None:
            stats.control_strings += 1  # the tokenizer would read the text as a real control token
            continue
        ids, labels = _encode(tokenizer, marked)
        example = Example(ids[:max_length], labels[:max_length])
        if example.scored == 0:
            stats.dropped += 1
            continue
        stats.truncated += len(ids) > max_length
        stats.tokens += len(example.input_ids)
        stats.scored_tokens += example.scored
        examples.append(example)
    return examples, stats


def _rendered_rows(
    rows: Iterable[Sequence[dict[str, str]]], tokenizer: Any, waiting: Waiting | None
) -> Iterator[Marked | None]:
    """Each row as text with the spans of its answers; None for a row that contains a literal control token."""
    controls = [text for text in tokenizer.all_special_tokens if text]
    for chunk in _chunks(rows):
        clean = [not any(text in turn["content"] for turn in row for text in controls) for row in chunk]
        found = iter(_rendered(tokenizer, list(compress(chunk, clean)), waiting))
        yield from (next(found) if one else None for one in clean)


def _chunks(rows: Iterable[Sequence[dict[str, str]]]) -> Iterator[list[list[dict[str, str]]]]:
    """Rows that are rendered in one request: `_CHUNK_ROWS` of them, or `_CHUNK_CHARACTERS` of their text."""
    chunk: list[list[dict[str, str]]] = []
    size = 0
    for row in rows:
        chunk.append(list(row))
        size += sum(len(turn["content"]) for turn in row)
        if len(chunk) == _CHUNK_ROWS or size > _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _encode(tokenizer: Any, marked: Marked) -> tuple[list[int], list[int]]:
    """Ids and labels of one conversation.

    The text is split where an answer begins and ends, and each part is tokenized separately: otherwise a piece such as
    newline-and-backtick could span the end of the prompt and the answer, and the prompt of a generation, which ends
    there, would have other tokens than in training.
    """
    ids: list[int] = []
    labels: list[int] = []
    text, at = marked.text, 0
    for start, end in marked.spans:
        prompt, answer = _tokens(tokenizer, text[at:start], first=at == 0), _tokens(tokenizer, text[start:end])
        ids += prompt + answer
        labels += [IGNORED] * len(prompt) + answer
        at = end
    rest = _tokens(tokenizer, text[at:], first=at == 0)
    return ids + rest, labels + [IGNORED] * len(rest)


def _tokens(tokenizer: Any, text: str, *, first: bool = False) -> list[int]:
    if first or tokenizer.eos_token is None:
        return list(tokenizer.encode(text, add_special_tokens=False))
    # After a special token, no tokenizer treats the text as the beginning of a document and adds a space to it.
    return list(tokenizer.encode(tokenizer.eos_token + text, add_special_tokens=False))[1:] if text else []


def _rendered(tokenizer: Any, rows: Sequence[list[dict[str, str]]], waiting: Waiting | None) -> list[Marked]:
    """Conversations as text, with the spans of their answers."""
    if not rows:
        return []
    if re.search(r"\{%-?\s*generation\s*-?%\}", template_of(tokenizer)):
        return render_marked(tokenizer, rows, waiting=waiting)
    chats = [Chat(part, opened) for row in rows for part, opened in _parts(row)]
    texts = iter(render(tokenizer, chats, waiting=waiting))
    return [_located([next(texts) for _ in _parts(row)]) for row in rows]


def _parts(row: list[dict[str, str]]) -> list[tuple[list[dict[str, str]], bool]]:
    """The whole conversation, and what comes before and with each answer; True: up to the beginning of the answer."""
    found = [(row, False)]
    for turn, message in enumerate(row):
        if message["role"] == "assistant":
            found += [(row[:turn], True), (row[: turn + 1], False)]
    return found


def _located(texts: list[str]) -> Marked:
    """The answers' places in a conversation; `texts` are those of its `_parts`."""
    text, *parts = texts
    spans = []
    for before, after in zip(parts[::2], parts[1::2], strict=True):
        if not (after.startswith(before) and text.startswith(after)):
            raise OperatorError(
                "the chat template changes earlier turns when a turn is added, so answers cannot be located",
                "mark the assistant's text in chat_template.jinja with {% generation %} … {% endgeneration %}",
            )
        spans.append((len(before), len(after)))
    return Marked(text, spans)


def answer_batches(
    rows: Iterable[Sequence[dict[str, str]]],
    tokenizer: Any,
    max_length: int,
    batch_size: int,
    *,
    max_tokens: int | None = None,
    waiting: Waiting | None = None,
) -> Batches:
    """Batches of conversations for evaluation; the loss counts only answers.

    Args:
        rows: conversations, as for `encode_answers`.
        tokenizer: a Hugging Face tokenizer with a chat template.
        max_length: longer examples are cut at the end, and counted.
        batch_size: examples per batch; it does not change the loss.
        max_tokens: stop taking examples when this many tokens are scored; the batch size does not change the choice.
        waiting: as for `encode_answers`.
    """
    examples, stats = encode_answers(rows, tokenizer, max_length, max_tokens=max_tokens, waiting=waiting)
    examples.sort(key=lambda example: len(example.input_ids))  # group similar lengths: little padding

    def walk() -> Iterator[Batch]:
        for start in range(0, len(examples), batch_size):
            yield pad_batch(examples[start : start + batch_size])

    return Batches(walk, stats.scored_tokens, f"{ANSWERS_PROTOCOL}(max_length={max_length})", stats)


def pad_batch(examples: Sequence[Example], pad_id: int = 0) -> Batch:
    """Right-pad examples to the longest; padding is masked and unlabelled, so `pad_id` can be any token."""
    longest = max(len(example.input_ids) for example in examples)
    ids = torch.full((len(examples), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(examples), longest), dtype=torch.long)
    labels = torch.full((len(examples), longest), IGNORED, dtype=torch.long)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        ids[row, :length] = torch.tensor(example.input_ids, dtype=torch.long)
        mask[row, :length] = 1
        labels[row, :length] = torch.tensor(example.labels, dtype=torch.long)
    return Batch(ids, mask, labels)


def window_batches(shard: Shard, max_length: int, batch_size: int, *, max_tokens: int | None = None) -> Batches:
    """Consecutive windows of a token shard; every token but the first of a window is scored.

    Args:
        shard: an open split; read window by window, never into memory at once.
        max_length: tokens per window; the last window may be shorter.
        batch_size: windows per batch; it does not change the loss.
        max_tokens: stop taking windows when this many tokens are scored.
    """
    starts, scored = [], 0
    for start in range(0, len(shard) - 1, max_length):
        if max_tokens is not None and scored >= max_tokens:
            break
        starts.append(start)
        scored += min(max_length, len(shard) - start) - 1

    def walk() -> Iterator[Batch]:
        for at in range(0, len(starts), batch_size):
            windows = [shard.tokens[start : start + max_length].tolist() for start in starts[at : at + batch_size]]
            yield pad_batch([Example(window, window) for window in windows])

    return Batches(walk, scored, f"{WINDOWS_PROTOCOL}(max_length={max_length})")


def token_weighted_loss(
    model: Any, batches: Iterable[Batch], on_progress: Callable[[int], None] | None = None
) -> tuple[float, int]:
    """Mean negative log likelihood per scored token, in nats, and the number of scored tokens.

    Logits are converted to float32 and their losses are summed in float64. The model is in evaluation mode meanwhile
    and returns to its previous mode. Without scored tokens the result is (NaN, 0).

    Args:
        model: a causal language model that takes `input_ids` and `attention_mask` and returns `.logits`
            as [batch, length, vocab_size] of any floating type.
        batches: the batches to score.
        on_progress: called after each batch with the tokens scored so far; an exception from it ends the evaluation.
    """
    was_training = bool(model.training)
    device = next(model.parameters()).device
    model.eval()
    total, tokens = 0.0, 0
    try:
        for batch in batches:
            nll, scored = _batch_nll(model, batch, device)
            total += nll
            tokens += scored
            if on_progress is not None:
                on_progress(tokens)
    finally:
        model.train(was_training)
    return (total / tokens if tokens else float("nan")), tokens


@torch.no_grad()
def _batch_nll(model: Any, batch: Batch, device: torch.device) -> tuple[float, int]:
    """Sum of the negative log likelihoods of the scored tokens, in nats, and the number of tokens."""
    # The logits after a token predict the next one: [batch, length - 1, vocab_size] and int64 [batch, length - 1].
    logits = model(
        input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False
    ).logits[:, :-1]
    targets = batch.labels[:, 1:].to(device)
    scored = targets != IGNORED
    # float32 [scored, vocab_size] and int64 [scored] → float32 [scored]
    nll = cross_entropy(logits[scored].float(), targets[scored], reduction="none")
    return float(nll.double().sum()), int(scored.sum())
