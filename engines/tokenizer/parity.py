"""Check that SentencePiece and transformers give the same ids, and that encoding is lossless."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from engines.context import StageFailedError
from engines.data.documents import read_documents
from engines.data.special_pieces import SPACE_MARK, SPECIAL_PIECES, TURN_END, TURN_START
from engines.data.text import Report

EDGE_TEXTS = (
    "",
    " ",
    "  a  b ",
    " leading and trailing \n",
    "\n\n\t\tx = 1\r\n\ty\r",
    " " * 100,
    "\n" * 40,
    "\x00\x01\x02\x1b[0m\x7f",
    "".join(SPECIAL_PIECES) + " <0x0A> <pad>",
    "naïve e\u0301 ﬁ ½ 日本語 עברית",
    "👩‍👩‍👧‍👦 🇩🇪 \U0010fffd",
    "\ufeff\u200b\u00a0\u3000\u2028\u0085",
    "0123456789 1e-5 0x1F 3.14",
)
CHAT = (("user", " What does `f` do?\n"), ("assistant", "It adds 1.\n\n"), ("user", "\t?"), ("assistant", "Yes"))
"""Answers begin with a letter: no piece joins a letter to the newline before it, so the template's marks are between
pieces."""
SNIPPET_CHARACTERS = 400


def held_out_snippets(data: Path, count: int, seed: int) -> Iterator[str]:
    """Random cuts of documents, val and test first, because the tokenizer was not trained on those."""
    cuts = random.Random(seed)  # noqa: S311 - a repeatable choice, not a secret
    texts = (document.text for split in ("val", "test", "train") for document, _ in read_documents(data, split))
    for text in islice(texts, count):
        for _ in range(2):
            start = cuts.randrange(len(text) + 1)
            yield text[start : start + cuts.randrange(1, SNIPPET_CHARACTERS)]


def check_parity(
    folder: Path, processor: SentencePieceProcessor, snippets: list[str], report: Report | None = None
) -> int:
    """Compare ids and round trips on edge texts, snippets and a chat.

    Args:
        folder: the finished tokenizer folder, loaded here with `AutoTokenizer`.
        processor: the SentencePiece tokenizer.
        snippets: texts in addition to the edge texts.
        report: called with progress; an exception from it ends the check.

    Returns:
        The number of compared texts.

    Raises:
        StageFailedError: a text differs; the message has the first one.
    """
    from transformers import AutoTokenizer  # takes seconds to import; only this check needs it

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = [*EDGE_TEXTS, *snippets]
    for done, text in enumerate(texts, start=1):
        check_text(tokenizer, processor, text)
        if report is not None:
            report(done, len(texts), "texts")
    _check_chat(tokenizer, processor)
    return len(texts) + 1


def check_text(tokenizer: Any, processor: SentencePieceProcessor, text: str) -> None:
    """Compare one text.

    Raises:
        StageFailedError: the ids differ, or decoding does not restore the text.
    """
    ids = processor.encode(text, out_type=int)
    theirs = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    if ids != theirs:
        raise StageFailedError(f"SentencePiece and transformers give different ids for {text!r}: {ids} and {theirs}")
    expected = text.replace(SPACE_MARK, " ")
    for name, back in (("SentencePiece", processor.decode(ids)), ("transformers", tokenizer.decode(ids))):
        if back != expected:
            raise StageFailedError(f"{name} does not restore the text: {expected!r} became {back!r}")


def _check_chat(tokenizer: Any, processor: SentencePieceProcessor) -> None:
    """The template must give control ids around the ids of each turn, and must mark only answers."""
    turns = [{"role": role, "content": content} for role, content in CHAT]
    encoded = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    start, end = (processor.piece_to_id(piece) for piece in (TURN_START, TURN_END))
    ids: list[int] = []
    mask: list[int] = []
    for turn in turns:
        answer = turn["role"] == "assistant"
        body = processor.encode(f"{turn['role']}\n{turn['content']}", out_type=int)
        after = processor.encode("\n", out_type=int)
        head = len(processor.encode(f"{turn['role']}\n", out_type=int)) if answer else 0
        ids += [start, *body, end, *after]
        mask += [0] * (1 + head) + [int(answer)] * (len(body) - head + 1) + [0] * len(after)
    if ids != list(encoded["input_ids"]):
        raise StageFailedError(f"the chat template gives ids {list(encoded['input_ids'])}; its turns give {ids}")
    if mask != list(encoded["assistant_masks"]):
        raise StageFailedError("the chat template does not mark exactly the assistant's tokens")
