"""`python -m bench.training_memory`: the memory that trainings of several shapes take on this CPU, beside the plan's.

Each training is two steps with rows of `max_length`, in a child that is forked when the libraries are loaded: its peak
of resident memory, less what it had at its start, is the need beside the libraries that the plan estimates. The
process has an engine's environment, which decides what the allocator keeps.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cockpit.supervision.freed_memory import keep_few_kernels, keep_freed_memory

ROWS = 24
LETTERS = "abcdefghijklmnopqrstuvwxyz "
WIDE: dict[str, Any] = {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 8192, "tie_word_embeddings": True,
}  # fmt: skip
DEEP: dict[str, Any] = {**WIDE, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 16}
MANY_WORDS: dict[str, Any] = {**WIDE, "num_hidden_layers": 2, "vocab_size": 49_152, "tie_word_embeddings": False}
SMALL: dict[str, Any] = {
    **WIDE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512,
}  # fmt: skip
ADAPTER: dict[str, Any] = {"kind": "finetune", "r": 8, "bf16": False}
LONGER: dict[str, Any] = {"max_steps": 20}
"""Of a training on rows of many lengths: enough steps for a kernel of each."""
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pretrain": (DEEP, {"kind": "pretrain", "per_device_train_batch_size": 4}),
    "pretrain, checkpointing": (
        DEEP, {"kind": "pretrain", "per_device_train_batch_size": 16, "gradient_checkpointing": True}
    ),
    "pretrain, bfloat16": (DEEP, {"kind": "pretrain", "per_device_train_batch_size": 4, "bf16": True}),
    "all weights": (WIDE, {"kind": "finetune", "output": "model", "per_device_train_batch_size": 2}),
    "all weights, many words": (
        MANY_WORDS, {"kind": "finetune", "output": "model", "per_device_train_batch_size": 4}
    ),
    "adapter": (WIDE, {**ADAPTER, "per_device_train_batch_size": 4}),
    "adapter, dropout": (WIDE, {**ADAPTER, "per_device_train_batch_size": 4, "lora_dropout": 0.05}),
    "adapter, attention only": (WIDE, {**ADAPTER, "per_device_train_batch_size": 4, "target_modules": ATTENTION}),
    "adapter, bfloat16": (WIDE, {**ADAPTER, "per_device_train_batch_size": 4, "bf16": True}),
    "adapter, bfloat16, dropout": (
        WIDE, {**ADAPTER, "per_device_train_batch_size": 4, "bf16": True, "lora_dropout": 0.05}
    ),
    "adapter, checkpointing": (
        WIDE, {**ADAPTER, "per_device_train_batch_size": 8, "gradient_checkpointing": True}
    ),
    "adapter, deep": (DEEP, {**ADAPTER, "per_device_train_batch_size": 4}),
    "adapter, packed": (WIDE, {**ADAPTER, "per_device_train_batch_size": 4, "packing": True}),
    "adapter, 4 bits, bfloat16": (
        WIDE, {**ADAPTER, "per_device_train_batch_size": 4, "load_in_4bit": True, "bf16": True}
    ),
    "adapter, bfloat16, many lengths": (
        WIDE, {**ADAPTER, "per_device_train_batch_size": 4, "bf16": True, **LONGER}
    ),
    "adapter, 4 bits, bfloat16, many lengths": (
        WIDE, {**ADAPTER, "per_device_train_batch_size": 4, "load_in_4bit": True, "bf16": True, **LONGER}
    ),
    "preferences": (WIDE, {"kind": "dpo", "r": 8, "bf16": False, "per_device_train_batch_size": 2}),
    "preferences, many words": (
        MANY_WORDS, {"kind": "dpo", "r": 8, "bf16": False, "per_device_train_batch_size": 2}
    ),
}  # fmt: skip
MANY_HEADS: dict[str, Any] = {
    **WIDE, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 12, "num_key_value_heads": 8,
}  # fmt: skip
BROAD: dict[str, Any] = {**WIDE, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 3}
HELD_OUT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "adapter, many words": (MANY_WORDS, {**ADAPTER, "per_device_train_batch_size": 4}),
    "adapter, many words, tied": (
        {**MANY_WORDS, "tie_word_embeddings": True}, {**ADAPTER, "per_device_train_batch_size": 4}
    ),
    "all weights, many words, tied": (
        {**MANY_WORDS, "tie_word_embeddings": True},
        {"kind": "finetune", "output": "model", "per_device_train_batch_size": 4},
    ),
    "pretrain, broad": (BROAD, {"kind": "pretrain", "per_device_train_batch_size": 2}),
    "adapter, many heads": (MANY_HEADS, {**ADAPTER, "r": 32, "per_device_train_batch_size": 6}),
    "preferences, deep": (DEEP, {"kind": "dpo", "r": 8, "bf16": False, "per_device_train_batch_size": 1}),
}  # fmt: skip
"""Trainings to which no constant of the estimate was fitted."""
LENGTH = 128


def stage_of(fields: Mapping[str, Any], shape: Mapping[str, Any]) -> dict[str, Any]:
    """The whole stage of a case, as a recipe has it. Saves make no copies: the estimate does not count them."""
    own = {"model": "base", "data": "rows"}
    if fields["kind"] == "pretrain":
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        own = {"data": "rows", "tie_word_embeddings": shape["tie_word_embeddings"], **{n: shape[n] for n in names}}
    return {"name": "tried", **own, "max_length": LENGTH, "max_steps": 2, "async_save": False, **fields}


def main() -> int:
    """Measure the cases and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.training_memory", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    parser.add_argument("--held-out", action="store_true", help="only those to which no constant was fitted")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    engines_own = keep_few_kernels(os.environ) | keep_freed_memory(os.environ)
    if engines_own:  # glibc reads it when a process starts
        command = [sys.executable, "-m", "bench.training_memory", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **engines_own})
    found = measure([name for name in (HELD_OUT if options.held_out else [*CASES, *HELD_OUT]) if options.only in name])
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    print("| training | measured MiB |\n|---|---|")
    for name, peak in found.items():
        print(f"| {name} | {peak >> 20} |")
    return 0


def measure(names: list[str]) -> dict[str, int]:
    """The peak in bytes of each case, beside what the libraries take."""
    import torch

    torch.set_num_threads(1)
    import engines.finetune.stage
    import engines.preference.stage
    import engines.pretrain.stage  # noqa: F401

    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = _in_child(Path(folder), *{**CASES, **HELD_OUT}[name])
        print(f"{name}: {found[name] >> 20} MiB", file=sys.stderr, flush=True)
    return found


def _in_child(folder: Path, shape: dict[str, Any], fields: dict[str, Any]) -> int:
    """Run a case in a fork; the weights of its model are written by another one, so that they are not in memory."""
    reader, writer = os.pipe()
    for work in (_write, _train):
        pid = os.fork()
        if not pid:
            try:
                found = work(folder, shape, fields)
                os.write(writer, b"" if found is None else str(found).encode())
            except BaseException as error:  # noqa: BLE001 - the child's boundary: it must not continue as its parent
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            raise SystemExit(f"the training of {fields} failed")
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return int(pipe.read())


def _write(folder: Path, shape: dict[str, Any], fields: dict[str, Any]) -> int | None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from engines.artifacts.data_folder import TOKENS_JSON
    from tests.engines.training.tiny import write_tokenizer, write_tokens

    if fields["kind"] == "pretrain":
        tokens = write_tokens(folder / "data", {"train": LENGTH * 40, "val": 100})
        known = json.loads((tokens / TOKENS_JSON).read_text())
        (tokens / TOKENS_JSON).write_text(json.dumps({**known, "vocab_size": shape["vocab_size"]}))
        return None
    dtype = "bfloat16" if fields.get("bf16") else "float32"
    config = LlamaConfig(max_position_embeddings=LENGTH, bos_token_id=1, eos_token_id=2, dtype=dtype, **shape)
    LlamaForCausalLM(config).to(getattr(__import__("torch"), dtype)).save_pretrained(str(folder / "model"))
    write_tokenizer(folder / "model")
    draw = random.Random(1)
    (folder / "data").mkdir()
    size = LENGTH // 4 if fields.get("packing") else LENGTH - 24
    count = ROWS * 4 if fields.get("packing") else ROWS
    lines = []
    many_lengths = "max_steps" in fields
    for _ in range(count):
        length = draw.randrange(size // 3, size - 10) if many_lengths else size - 10
        texts = ["".join(draw.choice(LETTERS) for _ in range(length)) for _ in range(2)]
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in texts)
        asked = [{"role": "user", "content": "why?"}]
        row = {"prompt": asked, "chosen": chosen, "rejected": rejected}
        lines.append(json.dumps(row if fields["kind"] == "dpo" else {"messages": [*asked, *chosen]}))
    (folder / "data" / "train.jsonl").write_text("\n".join(lines) + "\n")
    return None


def _train(folder: Path, shape: dict[str, Any], fields: dict[str, Any]) -> int:
    from tests.engines.training.attempts import run_stage

    small = folder / "small"
    small.mkdir()
    two_steps = {name: value for name, value in fields.items() if name not in LONGER}
    _write(small, SMALL, two_steps)  # without kernels of many lengths
    run_stage(_context(small, SMALL, two_steps))  # now the libraries' own pages and buffers are in memory
    ctx = _context(folder, shape, fields)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = _status("VmRSS")
    print(f"libraries: {before >> 20} MiB", file=sys.stderr)
    run_stage(ctx)
    return _status("VmHWM") - before


def _context(folder: Path, shape: dict[str, Any], fields: dict[str, Any]) -> Any:
    from tests.engines.training.attempts import context

    inputs = {"data": folder / "data"} | ({} if fields["kind"] == "pretrain" else {"model": folder / "model"})
    return context(folder / "run", stage_of(fields, shape), inputs)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    sys.exit(main())
