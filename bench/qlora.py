"""`python -m bench.qlora`: an adapter that was trained over a 4-bit base, in every form in which it can be used.

Each is compared with the model that was trained: mean KL and the share of equal most likely tokens. The trained
model has the values that the 4-bit weights stand for, plus the adapter, in float32. The rows of merges and files are
metrics of the product's own stages. Without a model and an adapter, it trains a small one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.commit import commit_output
from engines.context import StageResult
from engines.run_dir.paths import RunDir
from tests.exporters import exporting
from tests.stage_context import TriedContext, make_context

TYPES = ("F16", "Q8_0", "Q6_K", "Q4_K_M")
LENGTH = 256
SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class Row:
    """One form of the model. `mean_kl` is in nats, from the trained model."""

    name: str
    mean_kl: float
    top1: float


@dataclass(frozen=True)
class Compared:
    """What every form is compared on."""

    base: Path
    adapter: Path
    data: Path | None
    positions: int
    place: Path


def main() -> int:
    """Print one table; `--write` keeps it as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m bench.qlora", description=__doc__)
    parser.add_argument("--model", type=Path, help="the 16-bit base model (default: a small one, made here)")
    parser.add_argument("--adapter", type=Path, help="an adapter that was trained over it with load_in_4bit")
    parser.add_argument("--data", type=Path, help="held-out text: a file or the output of a prepare stage")
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--write", type=Path, help="also write the table here, as Markdown")
    args = parser.parse_args()
    if (args.model is None) != (args.adapter is None):
        parser.error("--model and --adapter belong together")
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        base, adapter = (args.model, args.adapter) if args.model else small_pair(place / "small")
        rows = []
        for row in measured(Compared(base, adapter, args.data, args.positions, place)):
            sys.stderr.write(f"{row.name}: {row.mean_kl:.3g}\n")
            rows.append(row)
    lines = [("form", "mean KL", "top-1"), ("---", "--:", "--:")]
    lines += [(row.name, f"{row.mean_kl:.2g}", f"{100 * row.top1:.2f}%") for row in rows]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    sys.stdout.write(table)
    if args.write:
        name = args.model.name if args.model else "a small model, made here"
        note = f"Distance from the trained model, on {args.positions} positions; `python -m bench.qlora`, {name}.\n\n"
        args.write.write_text(note + table)
    return 0


def small_pair(place: Path) -> tuple[Path, Path]:
    """A small base model in bfloat16, and an adapter that the engine trains over its 4-bit copy."""
    from engines.finetune.stage import run
    from tests.exporters.small_models import build_model, build_tokenizer

    base = build_model(place / "base", build_tokenizer(place / "words"), dtype="bfloat16", **SMALL)
    data = place / "rows"
    data.mkdir()
    for split, numbers in (("train", range(64)), ("val", range(64, 72))):
        turns = [
            [{"role": "user", "content": f"double {n}"}, {"role": "assistant", "content": json.dumps({"is": 2 * n})}]
            for n in numbers
        ]
        (data / f"{split}.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in turns))
    stage = {
        "name": "tuned", "kind": "finetune", "model": "base", "data": "rows", "load_in_4bit": True, "max_length": 64,
        "max_steps": 40, "learning_rate": 2e-3, "r": 16, "lora_alpha": 16.0, "save_steps": 40,
    }  # fmt: skip
    ctx = make_context(place, stage, inputs={"model": base, "data": data})
    return base, _finished(ctx, run(ctx))


def measured(given: Compared) -> Iterator[Row]:
    """Every form, in the order of the table."""
    yield from _unmerged(given)
    for name, fields in (
        ("merged, float32", {"dtype": "float32"}),
        ("merged, the base's type", {}),
        ("merged into the NF4 values, float32", {"dtype": "float32", "base_rounding": "nf4"}),
    ):
        exact = fields.get("dtype") == "float32" and "base_rounding" not in fields
        yield from _merged(given, name, fields, ("F16",) if exact else TYPES)


def _unmerged(given: Compared) -> Iterator[Row]:
    """The adapter over its base: in 4 bits as bitsandbytes computes it, and in 16 bits."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    from engines.finetune.model import _keep_layout
    from exporters.lora.trained_model import trained_with
    from exporters.proof.parity import Reference
    from exporters.proof.parity_data import read_parity_data
    from exporters.reference.reference_model import TorchLogits
    from exporters.reference.streamed_model import StreamedModel

    tokenizer = AutoTokenizer.from_pretrained(given.base, local_files_only=True)
    data = read_parity_data(given.data, tokenizer, positions=given.positions, max_length=LENGTH)
    quantized = trained_with(given.base, given.adapter)
    assert quantized is not None, "the adapter's base.json says that its base was in 4 bits"
    vocabulary = int(json.loads((given.base / "config.json").read_text())["vocab_size"])
    trained = Reference(given.place / "trained.f32", data.windows, vocabulary)
    threads = torch.get_num_threads()
    trained.compute(StreamedModel(given.base, quantized.weights(), threads), lambda _count: None)
    for name, dtype, bits in (
        ("4-bit base + adapter, float32", torch.float32, 4),
        ("4-bit base + adapter, bfloat16", torch.bfloat16, 4),
        ("16-bit base + adapter, float32", torch.float32, 16),
        ("16-bit base + adapter, bfloat16", torch.bfloat16, 16),
    ):
        four_bit = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantized.quantization["bnb_4bit_quant_type"],
            bnb_4bit_use_double_quant=quantized.quantization["bnb_4bit_use_double_quant"],
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=["lm_head"],
        )
        more = {"quantization_config": four_bit} if bits == 4 else {}
        model: Any = AutoModelForCausalLM.from_pretrained(given.base, dtype=dtype, local_files_only=True, **more)
        _keep_layout(model)
        adapted = PeftModel.from_pretrained(model, str(given.adapter)).eval()
        found = Reference(given.place / "found.f32", data.windows, vocabulary)
        found.compute(TorchLogits(adapted), lambda _count: None)
        distance = trained.compare(found)
        yield Row(name, distance.mean_kl, distance.top1)


def _merged(given: Compared, name: str, fields: dict[str, str], types: tuple[str, ...]) -> Iterator[Row]:
    """A merged model and its files, by the metrics of the stages that made them."""
    place = given.place / name.replace(" ", "-").replace(",", "")
    for folder in ("merge", "export"):
        (place / folder).mkdir(parents=True)
    merged = _finished(*exporting.merge(place / "merge", given.base, given.adapter, parity_positions=64, **fields))
    _, result = exporting.export(
        place / "export", merged, *types, data=given.data, parity_positions=given.positions, max_length=LENGTH
    )
    yield Row(name, result.metrics["model_kl_to_trained"], result.metrics["model_top1_to_trained"])
    for title in types:
        start = title.lower()
        yield Row(f"… as {title}", result.metrics[f"{start}_kl_to_trained"], result.metrics[f"{start}_top1_to_trained"])


def _finished(ctx: TriedContext, result: StageResult) -> Path:
    """The output of a stage, committed with its manifest as an engine does it."""
    commit_output(ctx, result, dict(result.metrics), refused="")
    return RunDir(ctx.run_root).out(ctx.stage_name)


if __name__ == "__main__":
    raise SystemExit(main())
