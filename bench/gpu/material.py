"""What the jobs train on: a tokenizer and rows by the product, models with random weights, random token shards."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.gpu import runs
from bench.gpu.place import SMOKE, WORK, weights_folder
from bench.gpu.shapes import Tuning, tuning
from engines.artifacts.data_folder import TOKENS_JSON
from engines.run_dir.paths import RunDir

_SOURCES = ["json/*.py", "logging/*.py", "email/*.py", "http/*.py", "asyncio/*.py", "argparse.py", "typing.py"]
_EVALUATED_ROWS = 8


def prepare(_out: Path) -> dict[str, Any]:
    """Text, a tokenizer, shards and questions, by the product."""
    stages: list[dict[str, Any]] = [
        {
            "name": "corpus",
            "kind": "prepare",
            "output": "text",
            "source": "python-stdlib",
            "include": _SOURCES,
            "val_fraction": 0.05,
            "test_fraction": 0.05,
        },
        {"name": "tokenizer", "kind": "tokenizer", "data": "corpus", "vocab_size": 1024, "max_bytes": 1_500_000},
        {"name": "shards", "kind": "prepare", "output": "tokens", "data": "corpus", "tokenizer": "tokenizer"},
        {
            "name": "questions",
            "kind": "prepare",
            "output": "messages",
            "data": "corpus",
            "max_examples": 400,
            "max_answer_chars": 200,
        },
    ]
    code = runs.finish(runs.start("prepared", stages), 100)
    if code != 0:
        raise RuntimeError(f"exit {code}: " + runs.why_failed("prepared"))
    lines = [json.loads(one) for one in (output_of("questions") / "train.jsonl").read_text().splitlines()]
    folder = WORK / "pairs"
    folder.mkdir(exist_ok=True)
    pairs = [_pair(one["messages"], lines[number - 1]["messages"]) for number, one in enumerate(lines)]
    rows = [one for one in pairs if one["chosen"] != one["rejected"]]
    for name, some in (("train", rows[:-40]), ("val", rows[-40:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return {"tokenizer": sorted(one.name for one in tokenizer_folder().iterdir()), "pairs": len(rows)}


def _pair(right: list[dict[str, str]], other: list[dict[str, str]]) -> dict[str, Any]:
    return {"prompt": right[:-1], "chosen": right[-1:], "rejected": other[-1:]}


def output_of(stage: str, run: str = "prepared") -> Path:
    return RunDir(runs.root_of(run)).out(stage)


def tokenizer_folder() -> Path:
    return output_of("shards") / "tokenizer"


def model_folder(name: str) -> Path:
    return weights_folder() / name


def rows_folder(name: str) -> Path:
    return WORK / f"rows-{name}"


def weights(name: str) -> dict[str, Any]:
    """Weights and biases of Qwen2.5's shapes, random, in bfloat16, made on the card."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    job, folder, source = tuning(name, smoke=SMOKE), model_folder(name), tokenizer_folder()
    tokenizer = AutoTokenizer.from_pretrained(str(source))
    config = LlamaConfig(
        **job.shape.fields(),
        max_position_embeddings=32_768,
        rope_theta=1e6,
        tie_word_embeddings=False,
        attention_bias=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="bfloat16",
    )
    began = time.monotonic()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    built_s = time.monotonic() - began
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder), max_shard_size="5GB")
    for file in source.iterdir():
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    saved_s = time.monotonic() - began - built_s
    return {
        "folder": str(folder),
        "parameters": sum(one.numel() for one in model.parameters()),
        "bytes": sum(one.stat().st_size for one in folder.iterdir()),
        "built_s": round(built_s, 1),
        "saved_s": round(saved_s, 1),
    }


def write_rows(name: str) -> dict[str, Any]:
    """Conversations of the training's lengths, half of each scored; and the same rows as the product labels them."""
    from transformers import AutoTokenizer

    job = tuning(name, smoke=SMOKE)
    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder()))
    folder = rows_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    texts = [one.read_text(errors="replace") for one in sorted(Path(os.__file__).parent.glob("*.py"))[:40]]
    ids = tokenizer.encode("\n".join(texts).replace("<|", "< |"), add_special_tokens=False)
    draw = random.Random(0)
    counts = {"train": (job.steps + 2) * job.window, "val": _EVALUATED_ROWS}
    for split, count in counts.items():
        lines = [json.dumps({"messages": _row(draw, job, ids, tokenizer)}) + "\n" for _ in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    labelled = labelled_rows(folder, tokenizer, job.high)
    (WORK / f"labelled-{name}.json").write_text(json.dumps(labelled))
    lengths = [len(one) for one, _ in labelled]
    scored = sum(sum(label != -100 for label in labels) for _, labels in labelled)
    return {
        "rows": len(lengths),
        "mean": sum(lengths) / len(lengths),
        "longest": max(lengths),
        "shortest": min(lengths),
        "scored": scored / sum(lengths),
    }


def _row(draw: random.Random, job: Tuning, ids: list[int], tokenizer: Any) -> list[dict[str, str]]:
    wanted = draw.randint(job.low, job.high) - 16
    start = draw.randrange(max(1, len(ids) - wanted))
    middle = start + wanted // 2
    question = tokenizer.decode(ids[start:middle]).strip() or "x"
    answer = tokenizer.decode(ids[middle : start + wanted]).strip() or "y"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def labelled_rows(folder: Path, tokenizer: Any, longest: int) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of the train split, by the product's own labels."""
    from engines.data.door import ReadCounts, read_rows, source_of_stage
    from engines.labels.row import LabelCounts
    from engines.labels.stage_rows import examples_of, rules_of
    from engines.labels.vocabulary import view_of
    from recipes.stages.finetune import FinetuneStage

    stage = FinetuneStage(name="tuned", kind="finetune", model="model", data=str(folder), max_length=longest)
    source = source_of_stage(stage, folder, str(folder))
    rows = examples_of(
        read_rows(source, "train", ReadCounts()), view_of(tokenizer), rules_of(stage, longest), LabelCounts()
    )
    return [(list(one.ids), list(one.labels)) for one in rows]


def read_labelled(name: str) -> list[tuple[list[int], list[int]]]:
    found: list[tuple[list[int], list[int]]] = json.loads((WORK / f"labelled-{name}.json").read_text())
    return found


def material(name: str) -> dict[str, Any]:
    """Weights, and rows if none were brought along."""
    rows = {} if (WORK / f"labelled-{name}.json").is_file() else write_rows(name)
    return {**rows, **weights(name)}


def random_shards(vocabulary: int, tokens: int) -> Path:
    """Random ids in the product's own format, with a vocabulary of the wanted size."""
    import numpy as np

    whole = WORK / f"shards-{vocabulary}-{tokens}"
    if whole.is_dir():
        return whole
    folder = Path(tempfile.mkdtemp(dir=WORK))  # another job may make the same at the same time
    shutil.copytree(tokenizer_folder(), folder / "tokenizer")
    ids = np.random.default_rng(0).integers(5, vocabulary, tokens).astype("<u2")
    (folder / "train.bin").write_bytes(ids.tobytes())
    (folder / "train.idx").write_bytes(np.asarray([tokens], "<u8").tobytes())
    made = json.loads((output_of("shards") / TOKENS_JSON).read_text())
    split = {
        "tokens": tokens,
        "documents": 1,
        "file": "train.bin",
        "index": "train.idx",
        "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
    }
    (folder / TOKENS_JSON).write_text(
        json.dumps({**made, "dtype": "uint16", "vocab_size": vocabulary, "splits": {"train": split}})
    )
    with suppress(OSError):
        folder.rename(whole)
    return whole
