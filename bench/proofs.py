"""`python -m bench.proofs`: writes correct files of every family and type, and proves their bytes and their meaning.

A correct file that is refused is a mistake of the proofs. Prints a table: for each family and stored type of its model,
the files, the refused ones, and the CPU seconds of writing and of proving. `--write FILE` also writes it as Markdown
(`bench/proofs.md` has the last one). `--libllama FOLDER` adds files that a complete libllama quantized from F16.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.byte_identity import LIBLLAMA
from engines.llama.quantizer import KernelQuantizer
from exporters.gguf.importance import Importance
from exporters.gguf.write import Model, read_model, write_gguf
from exporters.proof.audit import prove
from exporters.proof.audit_tokens import load_tokenizer
from exporters.proof.byte_proof import ByteProver
from recipes.file_types import FILE_TYPES
from tests.exporters.family_models import FAMILIES
from tests.exporters.small_models import build_tokenizer

SLOW = frozenset({"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ1_S", "IQ1_M"})
"""Types whose kernels take seconds for a small matrix; one family shows them."""
TYPES = [row.name for row in FILE_TYPES.values() if not row.ternary]
FOREIGN = ("Q8_0", "Q4_K_M", "Q3_K_M", "Q5_0", "Q6_K")


@dataclass
class Row:
    """One model's files."""

    model: str
    stored: str
    files: int = 0
    refused: list[str] = field(default_factory=list)
    unequal: int = 0
    written_s: float = 0.0
    proven_s: float = 0.0


def main() -> int:
    """Prove every file; returns 1 if a correct one is refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", help="names of FAMILIES, separated by commas (default: all)")
    parser.add_argument("--slow", action="store_true", help="also the types whose kernels are slow, on one family")
    parser.add_argument("--libllama", type=Path, help="folder with the libraries of a build of llama.cpp")
    parser.add_argument("--write", type=Path, help="also write the table here, as Markdown")
    args = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, KernelQuantizer(2) as quantizer:
        root = Path(folder)
        tokenizer = build_tokenizer(root / "tokenizer")
        for number, name in enumerate(args.families.split(",") if args.families else FAMILIES):
            base = FAMILIES[name](root / name, tokenizer)
            types = [kind for kind in TYPES if kind not in SLOW or (args.slow and number == 0)]
            for stored in ("float32", "bfloat16", "float16"):
                model = read_model(_stored_as(base, stored))
                if not any(shape.dimensions > 2 for shape in model.shapes):  # only experts are stored in MXFP4
                    types = [kind for kind in types if kind != "MXFP4_MOE"]
                rows.append(_own_files(name, stored, model, types, quantizer, root))
                types = [kind for kind in types if kind not in SLOW]
            if args.libllama:
                rows.append(_foreign_files(name, read_model(base), args.libllama, quantizer, root))
            sys.stderr.write(f"{name}: {sum(len(row.refused) for row in rows)} refused so far\n")
            if args.write:
                args.write.write_text(_table(rows))
    sys.stdout.write(_table(rows))
    return 1 if any(row.refused for row in rows) else 0


def _stored_as(folder: Path, dtype: str) -> Path:
    """The model with its weights in another type, in place."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {name: value.to(getattr(torch, dtype)).contiguous() for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def _own_files(name: str, stored: str, model: Model, types: list[str], quantizer: KernelQuantizer, root: Path) -> Row:
    row, path = Row(name, stored), root / "file.gguf"
    importance = importance_of(model)
    tokenizer = load_tokenizer(model.folder)
    with ByteProver(2, same_kernels=True, quantizer=quantizer) as prover:
        for file_type in types:
            weighted = bool(model.plan(file_type).needs_importance)
            given = importance if weighted else None
            began = _cpu_s(quantizer)
            write_gguf(model, model.plan(file_type, importance=weighted), path, quantizer, importance=given)
            wrote = _cpu_s(quantizer)
            values = given.values if given else None
            proofs = prove(
                path, model.folder, prover, importance=values, file_type=file_type, tokenizer=tokenizer,
                config=model.config,
            )  # fmt: skip
            _count(row, file_type, proofs)
            row.written_s += wrote - began
            row.proven_s += _cpu_s(quantizer) - wrote
    return row


def _foreign_files(name: str, model: Model, libraries: Path, quantizer: KernelQuantizer, root: Path) -> Row:
    """Files that libllama quantized from an F16 file, proven as files from elsewhere."""
    row, source, target = Row(name, "F16, by libllama"), root / "source.gguf", root / "theirs.gguf"
    write_gguf(model, model.plan("F16"), source, None)
    tokenizer = load_tokenizer(model.folder)
    with ByteProver(2, quantizer=quantizer) as prover:
        for file_type in FOREIGN:
            number = str(FILE_TYPES[file_type].id)
            command = [sys.executable, str(LIBLLAMA), str(libraries), str(source), str(target), number]
            subprocess.run(command, capture_output=True, check=True)
            began = _cpu_s(quantizer)
            _count(row, file_type, prove(target, model.folder, prover, tokenizer=tokenizer, config=model.config))
            row.proven_s += _cpu_s(quantizer) - began
    return row


def _count(row: Row, file_type: str, proofs: Any) -> None:
    row.files += 1
    row.refused += [f"{file_type}: {finding}" for finding in proofs.findings[:1]]
    row.unequal += proofs.bytes.tensors - proofs.bytes.equal


def importance_of(model: Model) -> Importance:
    """Fixed uneven importances for every matrix inside the layers."""
    rng = np.random.default_rng(11)
    inside = [shape for shape in model.shapes if shape.layer is not None and shape.dimensions > 1]
    values = {s.name: rng.gamma(1.0, 2.0, (s.experts, s.columns)).astype(np.float32) for s in inside}
    rows = {name: found[0] if len(found) == 1 else found for name, found in values.items()}
    return Importance(rows, 1, (1, 1), "fixed random numbers")


def _cpu_s(quantizer: KernelQuantizer) -> float:
    """CPU seconds of this process and of the kernels' process so far."""
    fields = Path(f"/proc/{quantizer.pid}/stat").read_text().rpartition(")")[2].split()
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime + (int(fields[11]) + int(fields[12])) / 100


def _cells(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        refused = "; ".join(row.refused) or "0"
        written = f"{row.written_s:.1f}" if row.written_s else "-"
        yield (
            f"| {row.model} | {row.stored} | {row.files} | {refused} | {row.unequal} | {written} | {row.proven_s:.1f} |"
        )


def _table(rows: list[Row]) -> str:
    files, refused = sum(row.files for row in rows), sum(len(row.refused) for row in rows)
    lines = [f"{refused} of {files} correct files are refused by their bytes or their meaning.", ""]
    lines += ["| family | stored as | files | refused | tensors with other bytes | writing, CPU s | proving, CPU s |"]
    lines += ["|---|---|---|---|---|---|---|", *_cells(rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
