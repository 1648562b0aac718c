"""Check that a trained tokenizer and the one that transformers loads give the same ids, and give every text back."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from typing import Any

from engines.context import StageFailedError
from engines.data.documents import read_documents
from engines.data.encoders import Encoder
from engines.data.hard_strings import HARD_STRINGS, ORDINARY
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


def held_out_snippets(data: Path, count: int, seed: int) -> list[str]:
    """Random cuts of documents, val and test first, because the tokenizer was not trained on those.

    Args:
        data: a text folder with documents.
        count: number of cuts. A few documents are cut more often, many at most twice each.
        seed: of the cuts.
    """
    cuts = random.Random(seed)  # noqa: S311 - a repeatable choice, not a secret
    documents = (document.text for split in ("val", "test", "train") for document, _ in read_documents(data, split))
    texts = list(islice(documents, -(-count // 2)))
    snippets: list[str] = []
    while texts and len(snippets) < count:
        for text in texts:
            for _ in range(2):
                start = cuts.randrange(len(text) + 1)
                snippets.append(text[start : start + cuts.randrange(1, SNIPPET_CHARACTERS)])
    return snippets[:count]


def check_parity(folder: Path, encoder: Encoder, snippets: list[str], report: Report | None = None) -> int:
    """Compare ids and round trips on edge texts, hard strings, snippets and a chat.

    Args:
        folder: the finished tokenizer folder, loaded here with `AutoTokenizer`.
        encoder: the tokenizer as it was trained.
        snippets: texts in addition to the edge texts and hard strings.
        report: called with progress; an exception from it ends the check.

    Returns:
        The number of compared texts.

    Raises:
        StageFailedError: a text differs; the message has the first one.
    """
    from transformers import AutoTokenizer  # takes seconds to import; only this check needs it

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = [*EDGE_TEXTS, *ORDINARY, *HARD_STRINGS, *snippets]
    for done, text in enumerate(texts, start=1):
        check_text(tokenizer, encoder, text)
        if report is not None:
            report(done, len(texts), "texts")
    _check_chat(tokenizer, encoder)
    return len(texts) + 1


def check_text(tokenizer: Any, encoder: Encoder, text: str) -> None:
    """Compare one text.

    Raises:
        StageFailedError: the ids differ, or decoding does not restore the text.
    """
    (ids,) = encoder.encode([text])
    theirs = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    if ids != theirs:
        raise StageFailedError(f"{encoder.file} and transformers give different ids for {text!r}: {ids} and {theirs}")
    expected = text.replace(SPACE_MARK, " ") if encoder.reads_space_mark else text
    for name, back in ((encoder.file, encoder.decode(ids)), ("transformers", tokenizer.decode(ids))):
        if back != expected:
            raise StageFailedError(f"{name} does not restore the text: {expected!r} became {back!r}")


def _check_chat(tokenizer: Any, encoder: Encoder) -> None:
    """The template must give control ids around the ids of each turn, and must mark only answers."""
    turns = [{"role": role, "content": content} for role, content in CHAT]
    encoded = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    vocabulary = encoder.vocabulary()
    start, end = vocabulary[TURN_START], vocabulary[TURN_END]
    ids: list[int] = []
    mask: list[int] = []
    for turn in turns:
        answer = turn["role"] == "assistant"
        body = encoder.encode([f"{turn['role']}\n{turn['content']}"])[0]
        after = encoder.encode(["\n"])[0]
        head = len(encoder.encode([f"{turn['role']}\n"])[0]) if answer else 0
        ids += [start, *body, end, *after]
        mask += [0] * (1 + head) + [int(answer)] * (len(body) - head + 1) + [0] * len(after)
    if ids != list(encoded["input_ids"]):
        raise StageFailedError(f"the chat template gives ids {list(encoded['input_ids'])}; its turns give {ids}")
    if mask != list(encoded["assistant_masks"]):
        raise StageFailedError("the chat template does not mark exactly the assistant's tokens")
