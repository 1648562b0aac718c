"""Tokens of one text by a tokens stage and by `datasets.map`, in interleaved pairs, and whether the ids are equal.

    .venv/bin/python bench/tokenizing.py FILE.txt TOKENIZER SCRATCH [megabytes] [pairs]

FILE is any text; it is repeated with changed lines until it has the megabytes. TOKENIZER is a folder with
tokenizer.json. Both use two processes; `datasets.map` is given batches and the fast tokenizer, without attention masks.
Times are processor time of all processes, which a busy machine changes less than the time of a clock.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import sys
from pathlib import Path

import numpy as np

CORES = 2


def write_text(source: Path, folder: Path, megabytes: int) -> None:
    """A text folder with documents of a few kilobytes."""
    folder.mkdir(parents=True)
    lines = source.read_text("utf-8", errors="replace").splitlines(keepends=True)
    written, number = 0, 0
    with (folder / "train.jsonl").open("w") as out:
        while written < megabytes * 1_000_000:
            start = (number * 60) % max(1, len(lines) - 60)
            text = f"Document {number}\n" + "".join(lines[start : start + 60])
            out.write(json.dumps({"path": f"{number}.txt", "text": text}, ensure_ascii=False) + "\n")
            written += len(text.encode())
            number += 1
    for split in ("val", "test"):
        (folder / f"{split}.jsonl").write_text("")


def _processor_s() -> float:
    """Processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def _largest_mib(whose: int) -> float:
    """Most memory of a process, in MiB."""
    return resource.getrusage(whose).ru_maxrss / 1024


def by_stage(text: Path, tokenizer: Path, out: Path) -> float:
    """Seconds of a tokens stage's work."""
    from engines.data.tokens import prepare_tokens

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    began = _processor_s()
    prepare_tokens(text, tokenizer, out, processes=CORES, part_bytes=4 << 20)
    return _processor_s() - began


def by_map(text: Path, tokenizer: Path, out: Path) -> float:
    """Seconds of `datasets.map` with its Arrow files, as a training would read them."""
    import datasets
    from transformers import AutoTokenizer

    shutil.rmtree(out, ignore_errors=True)
    loaded = AutoTokenizer.from_pretrained(str(tokenizer))
    data = datasets.load_dataset("json", data_files=str(text / "train.jsonl"), split="train", cache_dir=str(out))
    began = _processor_s()
    plain = {"add_special_tokens": False, "split_special_tokens": True, "return_attention_mask": False}

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = loaded(batch["text"], **plain)["input_ids"]
        return {"input_ids": [[*one, loaded.eos_token_id] for one in ids]}

    made = data.map(encode, batched=True, num_proc=CORES, remove_columns=data.column_names)
    took = _processor_s() - began
    ids = np.fromiter((token for row in made["input_ids"] for token in row), dtype=np.int64)
    (out / "ids.npy").parent.mkdir(exist_ok=True)
    np.save(out / "ids.npy", ids)
    return took


def main() -> None:
    """Measure, and print a line of Markdown for each pair."""
    source, tokenizer, scratch = (Path(word) for word in sys.argv[1:4])
    megabytes = int(sys.argv[4]) if len(sys.argv) > 4 else 30
    pairs = int(sys.argv[5]) if len(sys.argv) > 5 else 3
    shutil.rmtree(scratch / "text", ignore_errors=True)
    write_text(source, scratch / "text", megabytes)
    print(f"{megabytes} MB, {CORES} processes, load {os.getloadavg()[0]:.1f}\n")
    print("| pair | tokens stage | datasets.map | times |\n|--:|--:|--:|--:|")
    ratios = []
    largest = 0.0
    for pair in range(pairs):
        stage = by_stage(scratch / "text", tokenizer, scratch / "stage")
        largest = largest or _largest_mib(resource.RUSAGE_CHILDREN)  # before another library's processes
        other = by_map(scratch / "text", tokenizer, scratch / "map")
        ratios.append(other / stage)
        print(f"| {pair + 1} | {stage:.1f} s | {other:.1f} s | {other / stage:.2f} |", flush=True)
    stage_ids = np.fromfile(scratch / "stage" / "train.bin", dtype="<u2")
    same = np.array_equal(stage_ids, np.load(scratch / "map" / "ids.npy"))
    print(f"\nmedian {statistics.median(ratios):.2f}; the same ids: {same}; a process of the stage: {largest:.0f} MiB")


if __name__ == "__main__":
    main()
