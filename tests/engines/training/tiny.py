"""Tiny data, tokenizer and models: seconds on one core."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from engines.artifacts.manifest import write_manifest

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PRETRAIN: dict[str, Any] = {
    "name": "base",
    "kind": "pretrain",
    "data": "tokens",
    **SHAPE,
    "max_length": 16,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 8,
    "learning_rate": 3e-3,
    "warmup_steps": 2.0,
    "attention_dropout": 0.1,
    "save_steps": 3,
    "save_total_limit": 10,
}
FINETUNE: dict[str, Any] = {
    "name": "tune",
    "kind": "finetune",
    "model": "base",
    "data": "questions",
    "max_length": 48,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 8,
    "learning_rate": 3e-3,
    "r": 4,
    "lora_alpha": 8.0,
    "lora_dropout": 0.1,
    "bf16": False,
    "save_steps": 3,
    "save_total_limit": 10,
}


def write_tokenizer(folder: Path) -> Path:
    """A byte-level tokenizer with the special tokens of from-scratch models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=specials[3:],
        chat_template=CHATML,
    )
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(str(folder))
    (folder / "tokenizer.model").write_bytes(b"pretended sentencepiece file")
    return folder


def write_tokens(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """A tokens folder with noise-free patterns, so that a model learns something."""
    write_tokenizer(folder / "tokenizer")
    rng = random.Random(seed)
    splits = {}
    for split, count in counts.items():
        ids = np.array([5 + (n * 7 + rng.randrange(3)) % 250 for n in range(count)], dtype="<u2")
        if count:
            ids[-1] = 2
        (folder / f"{split}.bin").write_bytes(ids.tobytes())
        (folder / f"{split}.idx").write_bytes(np.array([count] if count else [], dtype="<u8").tobytes())
        splits[split] = {
            "tokens": count,
            "documents": 1 if count else 0,
            "file": f"{split}.bin",
            "index": f"{split}.idx",
            "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
        }
    tokenizer = hashlib.sha256((folder / "tokenizer" / "tokenizer.model").read_bytes()).hexdigest()
    body: dict[str, Any] = {"format": 1, "dtype": "uint16", "eos_id": 2, "vocab_size": 261}
    body["tokenizer_sha256"] = tokenizer
    body["splits"] = splits
    (folder / "tokens.json").write_text(json.dumps(body))
    return folder


def write_messages(folder: Path, rows: int = 13, val: int = 4) -> Path:
    """Conversations with answers of ragged lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in {"train": rows, "val": val}.items():
        lines = []
        for n in range(count):
            turns = [
                {"role": "user", "content": f"f{n}?"},
                {"role": "assistant", "content": "x" * (1 + (n * 5) % 9) + str(n)},
            ]
            lines.append(json.dumps({"messages": turns, "group": "a.py", "question": "docstring"}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + ("\n" if lines else ""))
    return folder


def write_model(folder: Path, seed: int = 1) -> Path:
    """A model folder with new weights and a manifest, as a pretrain stage writes it."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(seed)
    config = LlamaConfig(
        vocab_size=261, max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, **SHAPE
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    write_tokenizer(folder)
    write_manifest(folder, run="r", stage="base")
    return folder


def weights_sha256(folder: Path) -> str:
    """SHA-256 of a model's or adapter's weights."""
    name = "model.safetensors" if (folder / "model.safetensors").exists() else "adapter_model.safetensors"
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()
