"""Measures `cockpit check` of 10,000 rows: the whole command, and the CPU time of reading and of labelling a row."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.rows import Row, best, cpu_s
from engines.inputs.source_tree import source_folder
from engines.look.answer import Job
from engines.look.stage_look import look_at
from recipes.load import STANDARD_LIBRARY

ROWS, WORDS = 10_000, 60
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
RECIPE = 'schema = 1\nname = "b"\n[[stage]]\nname = "t"\nkind = "finetune"\nmodel = "./model"\ndata = "./rows.jsonl"\n'
TIMES = 3


def measure() -> list[Row]:
    """Seconds of the command, and microseconds of CPU time for each row."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        words = " ".join(_words()).split(" ")
        _write_model(root / "model", [" ".join(words[at : at + 200]) for at in range(0, 200_000, 200)])
        (root / "rows.jsonl").write_text("".join(f"{line}\n" for line in _rows(words)))
        (root / "r.toml").write_text(RECIPE)
        table = {"name": "t", "kind": "finetune", "model": "m", "data": "d"}
        look = look_at(Job(table, str(root / "rows.jsonl"), str(root / "model")), label_s=600, read_s=600)
        label_s = best(lambda: cpu_s(lambda: _look(table, root, root / "model")), times=TIMES)
        read_s = best(lambda: cpu_s(lambda: _look(table, root, None)), times=TIMES)
        check_s = best(lambda: _wall_s([sys.executable, "-m", "cockpit", "check", str(root / "r.toml")]), times=TIMES)
    tokens = look.splits[0].tokens // ROWS
    how = f"{ROWS} rows of {tokens} tokens, best of {TIMES}"
    return [
        Row("check of data", check_s, "s", f"the whole command; {how}"),
        Row("check, reading", read_s / ROWS * 1e6, "µs/row", f"CPU; {how}"),
        Row("check, labels", (label_s - read_s) / ROWS * 1e6, "µs/row", f"CPU, without the template's process; {how}"),
    ]


def _look(table: dict[str, str], root: Path, model: Path | None) -> None:
    job = Job(dict(table), str(root / "rows.jsonl"), None if model is None else str(model))
    look_at(job, label_s=600, read_s=600)


def _wall_s(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - began


def _words() -> Iterator[str]:
    """Text of Python's own library."""
    for file in sorted(source_folder(STANDARD_LIBRARY).glob("*.py"))[:60]:
        yield " ".join(file.read_text(encoding="utf-8").split())


def _rows(words: list[str]) -> Iterator[str]:
    for number in range(ROWS):
        at = number * WORDS % (len(words) - 2 * WORDS)
        asked, answered = words[at : at + WORDS // 3], words[at + WORDS // 3 : at + WORDS]
        turns = [
            {"role": "user", "content": f"{number} {' '.join(asked)}"},
            {"role": "assistant", "content": " ".join(answered)},
        ]
        yield json.dumps({"messages": turns})


def _write_model(folder: Path, texts: list[str]) -> None:
    """A byte-level BPE tokenizer of 16,000 pieces, and what a check needs beside it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=16_000,
        special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": marks[1], "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"vocab_size": 16_000}))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
