"""The Hugging Face form of a SentencePiece BPE model: both give the same ids for the same text.

SentencePiece merges the neighbours whose joined piece has the best score; `tokenizers` applies the first matching rule
of a list. The list therefore contains, for each piece in the order of scores, every pair of pieces that joins to it.
Control and byte pieces are in no pair: text must not produce them. `tokenizer_class` is one that uses tokenizer.json
unchanged; classes named after a model family build their own pre-tokenizers and would add a space in front.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from engines.data.special_pieces import (
    BEGIN,
    CHAT_TEMPLATE,
    END,
    SPACE_MARK,
    SPECIAL_PIECES,
    TURN_END,
    TURN_START,
    UNKNOWN,
)


def write_tokenizer(model: bytes, out: Path) -> SentencePieceProcessor:
    """Write tokenizer.model and the files that transformers needs beside it.

    Args:
        model: a SentencePiece model with the special pieces of `engines.data.special_pieces`.
        out: an existing folder.

    Returns:
        The loaded SentencePiece tokenizer.
    """
    processor = SentencePieceProcessor(model_proto=model)
    vocab = {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
    (out / "tokenizer.model").write_bytes(model)
    _write(out / "vocab.json", vocab, indent=0)
    _write(out / "tokenizer.json", tokenizer_json(processor, vocab), indent=1)
    _write(out / "tokenizer_config.json", _tokenizer_config(), indent=2)
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    return processor


def tokenizer_json(processor: SentencePieceProcessor, vocab: dict[str, int]) -> dict[str, Any]:
    """The content of tokenizer.json."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(vocab[piece], piece) for piece in SPECIAL_PIECES],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": SPACE_MARK, "prepend_scheme": "never", "split": False},
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNKNOWN,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": _merges(processor, vocab),
        },
    }


def _merges(processor: SentencePieceProcessor, vocab: dict[str, int]) -> list[tuple[str, str]]:
    normal = [
        index
        for index in vocab.values()
        if not (processor.is_control(index) or processor.is_byte(index) or processor.is_unknown(index))
    ]
    normal.sort(key=lambda index: (-processor.get_score(index), index))
    pieces = [processor.id_to_piece(index) for index in normal]
    known = set(pieces)
    merges = []
    for piece in pieces:
        pairs = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        merges += sorted(
            ((left, right) for left, right in pairs if left in known and right in known),
            key=lambda pair: (vocab[pair[0]], vocab[pair[1]]),
        )
    return merges


def _added_token(index: int, content: str) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, **plain, "special": True}


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": BEGIN,
        "eos_token": END,
        "unk_token": UNKNOWN,
        # Not the end token: code that masks padding by id would mask every end of document too.
        "pad_token": UNKNOWN,
        "extra_special_tokens": [TURN_START, TURN_END],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def _write(file: Path, content: dict[str, Any], *, indent: int) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=indent) + "\n", "utf-8")
