"""The token that ends an answer: as a chat template writes it, and as training labelled it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from engines.chat.rendering import Chat, render_template

_QUESTION, _ANSWER = "QST5e2b", "ANS4d8b"
NO_LABEL = -100
"""Label of a position that the loss does not count (torch's own convention)."""


def written_end(template: str, special: Mapping[str, Any], controls: Collection[str]) -> str | None:
    """The control token that a chat template writes after an answer; None if it writes another text.

    Args:
        template: the chat template.
        special: the named special tokens, as the template sees them.
        controls: the names of all control tokens.

    Raises:
        TemplateError: the template cannot render a question and its answer.
    """
    talk = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    text = render_template(template, special, [Chat(talk)])[0]
    after = text.rpartition(_ANSWER)[2].lstrip()
    return max((name for name in controls if name and after.startswith(name)), key=len, default=None)


def trained_ends(
    examples: Iterable[tuple[Sequence[int], Sequence[int]]], tokenizer: Any, *, max_length: int
) -> list[int]:
    """The control tokens that end answers in training, most frequent first.

    Args:
        examples: ids and labels of each conversation.
        tokenizer: the model's.
        max_length: an example of this length may have been cut, so its last answer is left out.
    """
    controls = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    controls |= set(tokenizer.all_special_ids)
    blank: dict[int, bool] = {}
    counts: dict[int, int] = {}

    def is_blank(token: int) -> bool:
        if token not in blank:
            blank[token] = not str(tokenizer.decode([token])).strip()
        return blank[token]

    for ids, labels in examples:
        for end in _answer_ends(labels, cut=len(ids) >= max_length):
            at = end
            while at >= 0 and labels[at] != NO_LABEL and ids[at] not in controls and is_blank(ids[at]):
                at -= 1
            if at >= 0 and labels[at] != NO_LABEL and ids[at] in controls:
                counts[ids[at]] = counts.get(ids[at], 0) + 1
    return sorted(counts, key=lambda token: (-counts[token], token))


def _answer_ends(labels: Sequence[int], *, cut: bool) -> Iterable[int]:
    """The last position of each run of labels; not the end of a conversation that was cut."""
    last = len(labels) - 1
    return (
        at
        for at, label in enumerate(labels)
        if label != NO_LABEL and (at == last or labels[at + 1] == NO_LABEL) and not (cut and at == last)
    )
