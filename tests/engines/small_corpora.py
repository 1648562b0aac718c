"""Small corpora, tokenizers and models for the tests of the data engines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.data.text import prepare_text
from engines.data.tokens import prepare_tokens
from engines.tokenizer.convert import write_tokenizer
from engines.tokenizer.train import TrainingText, train_model

STDLIB_PART = ["json/*", "email/*"]


def write_tree(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """A source tree with these files."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def fresh(folder: Path) -> Path:
    """An empty folder that exists."""
    folder.mkdir(parents=True)
    return folder


def stdlib_text(folder: Path, *packages: str) -> Path:
    """A text folder of a few packages of the standard library."""
    import sysconfig

    source = folder / "source"
    for package in packages:
        for file in sorted((Path(sysconfig.get_paths()["stdlib"]) / package).glob("*.py")):
            write_tree(source, {f"{package}/{file.name}": file.read_bytes()})
    out = fresh(folder / "text")
    prepare_text(str(source), out, val_fraction=0.15, test_fraction=0.15)
    return out


def tokenizer_of(text: Path, out: Path, vocab_size: int = 700, **fields: Any) -> Path:
    """A tokenizer folder trained on a text folder."""
    fresh(out)
    write_tokenizer(train_model(TrainingText(text, max_bytes=None, seed=0), vocab_size=vocab_size, **fields), out)
    return out


def tokens_of(text: Path, tokenizer: Path, out: Path) -> Path:
    """A tokens folder."""
    prepare_tokens(text, tokenizer, fresh(out))
    return out


def write_rows(folder: Path, rows: list[tuple[str, str, str]], split: str = "test") -> Path:
    """A messages folder with these (question kind, question, answer) rows in one split."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(
            {
                "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}],
                "group": "g",
                "question": kind,
            }
        )
        for kind, asked, answer in rows
    ]
    (folder / f"{split}.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


def tiny_model(tokenizer: Path, out: Path, seed: int = 0) -> Path:
    """A Llama of a few thousand weights, random, with the tokenizer's files."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from engines.data.tokenizer_files import copy_tokenizer

    vocab_size = len(json.loads((tokenizer / "vocab.json").read_text()))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=[2, 4],
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    copy_tokenizer(out, tokenizer)
    return out
