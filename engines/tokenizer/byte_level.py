"""Train a byte-level BPE tokenizer on the train split of a text folder, and write the files that transformers needs.

Every byte has a token, so every text comes back. Text is divided by a pattern before it is merged: that of Qwen2 (each
digit alone) or the one with digits in groups of up to three. llama.cpp has both under a name, so a GGUF file gives the
same ids. The same text gives the same file: `tokenizers` counts pairs in parallel, but breaks ties by the tokens' ids.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from engines.data.special_pieces import BEGIN, CHAT_TEMPLATE, END, TURN_END, TURN_START
from engines.data.text import Report
from engines.tokenizer.train import Sentences, TrainingText, too_large

PADDING = "<pad>"
SPECIAL_TOKENS = (PADDING, BEGIN, END, TURN_START, TURN_END)
"""In the order of their ids, from 0: those of a SentencePiece tokenizer, with padding in the place of unknown text."""
LEAST_COUNT = 2
"""A pair that the text has only once is not merged."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {True: _WORDS + r"\p{N}" + _REST, False: _WORDS + r"\p{N}{1,3}" + _REST}
"""By `split_digits`; llama.cpp's names are qwen2 and dbrx."""


def train_byte_level(
    text: TrainingText, *, vocab_size: int, split_digits: bool = True, report: Report | None = None
) -> str:
    """The content of tokenizer.json; the same arguments give the same text.

    Args:
        text: the text to train on.
        vocab_size: number of tokens, including the special ones and the 256 bytes.
        split_digits: give every digit a token of its own.
        report: progress of reading the text; the native training reports no progress.

    Raises:
        OperatorError: vocab_size is too large for the text; the message names the largest value that fits.
    """
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERNS[split_digits]), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=LEAST_COUNT,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    sentences = Sentences(text.chunks(report))
    try:
        tokenizer.train_from_iterator(sentences, trainer)
    except BaseException:
        if sentences.error is not None:
            raise sentences.error from None
        raise
    if sentences.error is not None:
        raise sentences.error
    found = tokenizer.get_vocab_size()
    if found < vocab_size:
        raise too_large(vocab_size, text.bytes, found)
    return tokenizer.to_str(pretty=True)


def write_byte_level(content: str, out: Path) -> None:
    """Write tokenizer.json, and the files that transformers needs beside it.

    Args:
        content: of tokenizer.json.
        out: an existing folder.
    """
    vocabulary = json.loads(content)["model"]["vocab"]
    vocabulary = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PADDING,
        "extra_special_tokens": [TURN_START, TURN_END],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (out / "tokenizer.json").write_text(content + "\n", "utf-8")
    (out / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0) + "\n", "utf-8")
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
