"""`python -m bench.target_bits NAME=MODEL … --data FOLDER`: files of `target_bits` against Q4_K_M, by mean KL.

Each MODEL is a folder whose weights were never quantized; FOLDER is held-out text. All files have the same importance
matrix. The KL is llama.cpp's on the file against transformers in float32, on text that neither the importance matrix
nor the measured errors saw. Prints a table; `--write FILE` also writes it as Markdown (`bench/target_bits.md` has the
last one).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engines.llama.process import LlamaProcess
from engines.llama.quantizer import KernelQuantizer
from exporters.budget.choose import choose
from exporters.budget.measure import Meter, first_windows
from exporters.budget.plan import budget_of, target_plan
from exporters.gguf.importance import Importance
from exporters.gguf.quant_types import FilePlan
from exporters.gguf.write import Model, read_model, write_gguf
from exporters.proof.parity import Reference, compare
from exporters.proof.parity_data import read_parity_data
from exporters.reference.reference_model import TorchLogits, load_reference
from exporters.stages.importance_step import ImportanceRequest, calibration_data, measure_importance

BITS = (3.5, 4.0, 4.6, 5.25, 6.0)
HEAD = (
    "| model | file | bits per weight | size, KiB | expected KL | mean KL, nats | of Q4_K_M's | top-1 |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


def main() -> int:
    """Measure every model; the exit status is 1 when a claim of the table does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--data", type=Path, required=True, help="held-out text")
    parser.add_argument("--positions", type=int, default=2048, help="token positions that are compared")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens on which errors are measured")
    parser.add_argument("--bits", help=f"sizes, separated by commas (default: Q4_K_M's, {','.join(map(str, BITS))})")
    parser.add_argument("--imatrix-tokens", type=int, default=16_384)
    parser.add_argument("--write", type=Path, help="also write the table here, as Markdown")
    args = parser.parse_args()
    rows: list[str] = []
    held = True
    for given in args.models:
        name, _, folder = given.partition("=")
        made, good = _measure(name, read_model(Path(folder)), args)
        rows += made
        held = held and good
    text = HEAD + "\n".join(rows) + "\n"
    sys.stdout.write(text)
    if args.write:
        args.write.write_text(text)
    return 0 if held else 1


def _measure(name: str, model: Model, args: Any) -> tuple[list[str], bool]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.folder, local_files_only=True)
    compared = read_parity_data(args.data, tokenizer, positions=args.positions, max_length=256)
    request = ImportanceRequest(args.data, args.imatrix_tokens, args.positions, 256, 1)
    importance = measure_importance(model, request, lambda _done, _total: None)
    network = load_reference(model.folder, 1)
    rows, found = [], []
    with tempfile.TemporaryDirectory() as scratch, KernelQuantizer(1) as quantizer:
        reference = Reference(Path(scratch) / "reference.f32", compared.windows, int(model.config["vocab_size"]))
        reference.compute(TorchLogits(network), lambda _positions: None)
        rules = model.plan("Q4_K_M", importance=True)
        began = time.perf_counter()
        windows = first_windows(calibration_data(model, request).windows, args.tokens)
        meter = Meter(model, network, windows, quantizer)
        same = rules.bits_per_weight
        sizes = tuple(map(float, args.bits.split(","))) if args.bits else BITS
        for bits in (None, *([] if args.bits else [same]), *sizes):
            expected: float | None = None
            plan = rules
            if bits is not None:
                chosen = choose(meter.measure(bits, importance).options, budget_of(model, bits))
                expected = sum(option.error for option in chosen.values())
                plan = target_plan(model, bits, {tensor: option.type for tensor, option in chosen.items()})
            comparison = _compared(model, plan, importance, quantizer, reference, Path(scratch) / "file.gguf")
            found.append((bits, comparison.mean_kl))
            label = "Q4_K_M" if bits is None else "target_bits at its size" if bits == same else f"target_bits = {bits}"
            rows.append(
                f"| {name} | {label} | {plan.bits_per_weight:.3f} | {plan.bytes / 1024:.0f} | "
                f"{'-' if expected is None else f'{expected:.2e}'} | {comparison.mean_kl:.2e} | "
                f"{comparison.mean_kl / found[0][1]:.2f} | {comparison.top1:.3f} |"
            )
            sys.stderr.write(f"{rows[-1]}  {time.perf_counter() - began:.0f} s\n")
    ladder = [kl for bits, kl in sorted(found[1:]) if bits in sizes]
    at_its_size = [kl for bits, kl in found if bits == same]
    return rows, all(kl <= 0.85 * found[0][1] for kl in at_its_size) and ladder == sorted(ladder, reverse=True)


def _compared(
    model: Model, plan: FilePlan, importance: Importance, quantizer: KernelQuantizer, reference: Reference, path: Path
) -> Any:
    """Write a file and compare llama.cpp's distributions with transformers'."""
    write_gguf(model, plan, path, quantizer, importance=importance)
    with LlamaProcess(path, 256, 1) as llama:
        comparison = compare(reference, llama, lambda _positions: None)
    path.unlink()
    return comparison


if __name__ == "__main__":
    raise SystemExit(main())
