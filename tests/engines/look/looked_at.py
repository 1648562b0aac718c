"""A small model folder without weights, data beside it, and looks at both in this process."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engines.look.answer import Job, StageLook
from engines.look.stage_look import look_at

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ("<unk>", "</s>", "<|im_start|>", "<|im_end|>")
VOCABULARY = len(SPECIALS) + 256
TABLE: Mapping[str, Any] = {
    "name": "tuned",
    "kind": "finetune",
    "model": "./model",
    "data": "./data",
    "max_length": 96,
    "per_device_train_batch_size": 4,
}


def write_model(folder: Path, template: str = CHATML, vocab_size: int = VOCABULARY, **settings: Any) -> Path:
    """config.json and a byte-level tokenizer, one token a byte."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    given = {"eos_token": "<|im_end|>", "unk_token": "<unk>", **({"chat_template": template} if template else {})}
    (folder / "tokenizer_config.json").write_text(json.dumps({**given, **settings}))
    (folder / "config.json").write_text(json.dumps({"vocab_size": vocab_size, "model_type": "llama"}))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def row(question: str, answer: str) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns})


def write_data(folder: Path, lines: Iterable[str], split: str = "train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def look(folder: Path, *, label_s: float = 60.0, read_s: float = 60.0, **fields: Any) -> StageLook:
    """A look at `folder`/data with the tokenizer of `folder`/model."""
    job = Job({**TABLE, **fields}, str(folder / "data"), str(folder / "model"))
    return look_at(job, label_s=label_s, read_s=read_s)
