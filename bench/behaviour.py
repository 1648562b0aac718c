"""`python -m bench.behaviour [MODEL…]`: what llama.cpp's arithmetic costs correct files, and what faults cost that
neither bytes nor keys can show.

Every model is written in every type; each file is compared as an export compares it. The faults are those of a
runtime: llama.cpp gets a file with one setting changed, as a program that ignores or misreads it would use it, and is
compared with the right file's own weights. Without models, small random ones of every shape of `bench.shapes` are used.
Prints two tables; `--write FILE` also writes them as Markdown (`bench/behaviour.md` has the last ones). The exit code
is 1 if a correct file exceeds its limit or a fault does not.

`--families` judges correct files of every family in nearly every type instead, and prints one row for each family
(`bench/behaviour_families.md` has the last table).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.proofs import SLOW, importance_of
from bench.shapes import MODELS
from engines.files import atomic_file
from engines.llama.gguf_file import GgufFile, Value, read_gguf
from engines.llama.gguf_write import NewTensor, float32_value, text_value
from engines.llama.process import LlamaProcess
from engines.llama.quantizer import KernelQuantizer
from exporters.gguf.file_writer import ready, write_file
from exporters.gguf.write import Model, read_model, write_gguf
from exporters.hf_model.architectures import exact_context
from exporters.proof.behaviour import Expected, check_behaviour, expect, limits_of
from exporters.proof.parity import Comparison, Reference, compare
from exporters.proof.parity_data import read_parity_data
from exporters.reference.streamed_model import StreamedModel
from recipes.file_types import FILE_TYPES
from tests.exporters.family_models import FAMILIES
from tests.exporters.small_models import build_byte_level_tokenizer, build_model, build_tokenizer

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q4_0", "Q2_K")
FAULTY_TYPES = ("F16", "Q4_K_M")
LENGTH = 256

Keys = dict[str, Value]


@dataclass(frozen=True)
class Fault:
    """A runtime that misreads a file. `spoil` returns the changed keys, or None if the file has no such setting;
    `without` is a tensor that it ignores."""

    name: str
    spoil: Callable[[GgufFile, str], Keys | None]
    without: str = ""


def _scaled(key: str, factor: float) -> Callable[[GgufFile, str], Keys | None]:
    def spoil(file: GgufFile, family: str) -> Keys | None:
        value = file.scalar(f"{family}.{key}")
        return None if not value else {f"{family}.{key}": float32_value(float(value) * factor)}

    return spoil


def _default_base(file: GgufFile, family: str) -> Keys | None:
    name = f"{family}.rope.freq_base"
    return None if file.scalar(name) in (None, 10_000.0) else {name: float32_value(10_000.0)}


def _no_scaling(file: GgufFile, family: str) -> Keys | None:
    name = f"{family}.rope.scaling.type"
    return {name: text_value("none")} if file.scalar(name) else None


def _other_rope(file: GgufFile, family: str) -> Keys | None:
    """The other order of rotary pairs: llama.cpp rotates halves for qwen2 and neighbours for llama."""
    other = {"llama": "qwen2", "qwen2": "llama"}.get(family)
    if other is None or any(name.endswith("attn_q.bias") for name in file.tensors) or _no_scaling(file, family):
        return None
    moved = {name.replace(f"{family}.", f"{other}.", 1): v for name, v in file.keys.items() if name.startswith(family)}
    return {**moved, "general.architecture": text_value(other)}


def _nothing_else(_file: GgufFile, _family: str) -> Keys:
    return {}


FAULTS = (
    Fault("rotary base ignored", _default_base),
    Fault("rotary base halved", _scaled("rope.freq_base", 0.5)),
    Fault("rotary scaling ignored", _no_scaling),
    Fault("rotary factors ignored", _nothing_else, without="rope_freqs.weight"),
    Fault("rotary pairs in the other order", _other_rope),
    Fault("norm epsilon 10 times too large", _scaled("attention.layer_norm_rms_epsilon", 10)),
    Fault("output norm ignored", _nothing_else, without="output_norm.weight"),
)


def faulty(source: Path, target: Path, fault: Fault) -> bool:
    """Write the file as a faulty runtime sees it; return whether the fault applies to it."""
    file = read_gguf(source)
    keys = fault.spoil(file, str(file.scalar("general.architecture")))
    if keys is None or (fault.without and fault.without not in file.tensors):
        return False
    ones = fault.without == "output_norm.weight"
    tensors = []
    for name, tensor in file.tensors.items():
        if name == fault.without and not ones:
            continue
        assert tensor.kind is not None
        data = np.frombuffer(file.read(tensor, 0, tensor.rows), np.uint8)
        data = np.ones(tensor.columns, "<f4").view(np.uint8) if name == fault.without else data
        made = NewTensor(name, tensor.dimensions, tensor.type_id, data.nbytes)
        tensors.append((made, [ready(data, tensor.rows * tensor.columns)]))
    with atomic_file(target) as out:
        write_file(out, {**file.keys, **keys}, tensors)
    return True


class Bench:
    """The comparison of one model's files."""

    def __init__(self, folder: Path, work: Path, positions: int, threads: int) -> None:
        from transformers import AutoTokenizer

        self.model: Model = read_model(folder)
        self.work, self.threads = work, threads
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.length = min(LENGTH, exact_context(self.model.config))
        data = read_parity_data(None, tokenizer, positions=positions, max_length=self.length)
        self.trained = Reference(work / "trained.f32", data.windows, int(self.model.config["vocab_size"]))
        self.trained.compute(StreamedModel(folder, self.model.weights, threads), lambda _positions: None)

    def write(self, file_type: str) -> Path:
        path = self.work / f"model-{file_type}.gguf"
        weighted = bool(self.model.plan(file_type).needs_importance)
        importance = importance_of(self.model) if weighted else None
        with KernelQuantizer(self.threads) as kernels:
            write_gguf(
                self.model, self.model.plan(file_type, importance=weighted), path, kernels, importance=importance
            )
        return path

    def expected(self, path: Path) -> Expected:
        return expect(path, self.model, self.trained, self.work / "own.f32", self.threads, lambda _positions: None)

    def compare(self, path: Path, expected: Expected) -> Comparison:
        with LlamaProcess(path, self.length, self.threads) as llama:
            return compare(expected.reference, llama, lambda _positions: None)


def measure(name: str, bench: Bench) -> tuple[list[str], list[str], bool]:
    """Rows of both tables for one model, and whether every limit separates right from wrong."""
    correct, wrong, sound = [], [], True
    for file_type in TYPES:
        path = bench.write(file_type)
        expected = bench.expected(path)
        limit = limits_of(file_type, expected).mean_kl
        assert limit is not None
        assert expected.rounding_kl is not None
        found = bench.compare(path, expected)
        sound = sound and found.mean_kl < limit
        correct.append(
            f"| {name} | {file_type} | {found.mean_kl:.1e} | {expected.rounding_kl:.1e} | {limit:.1e} | "
            f"{limit / max(found.mean_kl, 1e-12):.0f} | {found.top1:.4f} | "
            f"{bench.trained.mean_kl(expected.reference):.1e} |"
        )
        sys.stderr.write(correct[-1] + "\n")
        for fault in FAULTS if file_type in FAULTY_TYPES else ():
            target = bench.work / "faulty.gguf"
            if not faulty(path, target, fault):
                continue
            spoiled = bench.compare(target, expected)
            sound = sound and spoiled.mean_kl > limit
            wrong.append(
                f"| {name} | {file_type} | {fault.name} | {spoiled.mean_kl:.1e} | {limit:.1e} | "
                f"{spoiled.mean_kl / limit:.1f} |"
            )
            sys.stderr.write(wrong[-1] + "\n")
        path.unlink()
    return correct, wrong, sound


def families(names: list[str], root: Path, positions: int, threads: int) -> tuple[list[str], bool]:
    """Judge correct files of these families; returns a table, and whether all passed."""
    words, rows, refused, files = build_tokenizer(_made(root / "spm")), [], 0, 0
    for number, name in enumerate(names):
        bench = Bench(FAMILIES[name](root / name, words), _made(root / f"work-{number}"), positions, threads)
        problems, least, top1 = [], [], []
        for file_type in _types(bench.model):
            path = bench.write(file_type)
            expected = bench.expected(path)
            limits = limits_of(file_type, expected)
            found = bench.compare(path, expected)
            problems += [f"{file_type}: {text}" for text in check_behaviour(found, limits)]
            assert limits.mean_kl is not None
            least.append((limits.mean_kl / max(found.mean_kl, 1e-12), file_type))
            top1.append((found.top1, file_type))
            path.unlink()
        files, refused = files + len(least), refused + len(problems)
        (margin, nearest), (worst, changed) = min(least), min(top1)
        rows.append(
            f"| {name} | {len(least)} | {'; '.join(problems) or '0'} | {margin:.1f} ({nearest}) | "
            f"{worst:.3f} ({changed}) |"
        )
        sys.stderr.write(rows[-1] + "\n")
    head = [
        f"{refused} of {files} correct files are refused by their behaviour.",
        "",
        "| family | files | refused | least times below the limit | lowest top-1 |",
        "|---|---|---|---|---|",
    ]
    return [*head, *rows], not refused


def _types(model: Model) -> list[str]:
    """Types whose kernels are quick; MXFP4 for models with experts, which alone it stores."""
    stacked = any(shape.dimensions > 2 for shape in model.shapes)
    kinds = [row.name for row in FILE_TYPES.values() if not row.ternary and row.name not in SLOW]
    return [name for name in kinds if name != "MXFP4_MOE" or stacked]


def _small_models(root: Path) -> Iterator[tuple[str, Path]]:
    words = {"spm": build_tokenizer(_made(root / "spm")), "bpe": build_byte_level_tokenizer(_made(root / "bpe"))}
    for number, (name, given) in enumerate(MODELS.items()):
        fields = {key: value for key, value in given.items() if key != "words"}
        yield f"random {name}", build_model(_made(root / f"model-{number}"), words[given.get("words", "spm")], **fields)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> int:
    """Measure every model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="model folders")
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--families", nargs="*", metavar="NAME", help="judge correct files of these families of FAMILIES, or of all"
    )
    parser.add_argument("--write", type=Path, help="also write the tables here, as Markdown")
    args = parser.parse_args()
    if args.families is not None:
        with tempfile.TemporaryDirectory() as folder:
            lines, passed = families(args.families or list(FAMILIES), Path(folder), args.positions, args.threads)
        return _end("\n".join(lines) + "\n", args.write, passed)
    correct = [
        "| model | file | arithmetic, mean KL | cost of rounding | limit | times below | top-1 | weights, mean KL |",
        "|---|---|---|---|---|---|---|---|",
    ]
    wrong = ["| model | file | runtime's fault | mean KL | limit | times above |", "|---|---|---|---|---|---|"]
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        models = [(path.name, path) for path in args.models] or _small_models(root)
        for number, (name, path) in enumerate(models):
            rows, faults, sound = measure(
                name, Bench(path, _made(root / f"work-{number}"), args.positions, args.threads)
            )
            correct, wrong, passed = correct + rows, wrong + faults, passed and sound
    return _end("\n".join([*correct, "", *wrong]) + "\n", args.write, passed)


def _end(table: str, place: Path | None, passed: bool) -> int:
    """Print the table, keep it, and return the exit code."""
    sys.stdout.write(table)
    if place:
        place.write_text(table)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
