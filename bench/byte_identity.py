"""`python -m bench.byte_identity --libllama FOLDER`: compares quantized tensors with libllama's, byte for byte.

FOLDER has the libraries of a complete build of llama.cpp, whose libllama quantizes the same F32 files with
`llama_model_quantize`, in its own process. Prints a table; `--write FILE` also writes it as Markdown
(`bench/byte_identity.md` has the last one).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from engines.llama.quantizer import KernelQuantizer
from exporters.gguf.importance import Importance
from exporters.gguf.write import Model, read_model, write_gguf
from recipes.file_types import FILE_TYPES, QUANTIZED
from tests.exporters.small_models import build_byte_level_tokenizer, build_model, build_tokenizer

LIBLLAMA = Path(__file__).with_name("libllama_quantize.py")
MODELS = {
    "llama, untied, GQA 8/2": ("Llama", {"tie_word_embeddings": False, "num_hidden_layers": 8}),
    "llama, tied, GQA 8/1": ("Llama", {"num_key_value_heads": 1, "num_hidden_layers": 16, "intermediate_size": 256}),
    "qwen2, tied": ("Qwen2", {"num_hidden_layers": 4}),
    "llama, width 96": (
        "Llama",
        {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 4, "num_hidden_layers": 4},
    ),
    "qwen3, head width 64": (
        "Qwen3",
        {"head_dim": 64, "num_attention_heads": 4, "num_hidden_layers": 4, "tie_word_embeddings": False},
    ),
}


def main() -> int:
    """Compare every type on every model, with and without an importance matrix."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--libllama", required=True, help="folder with the libraries of a build of llama.cpp")
    parser.add_argument("--types", help="file types, separated by commas (default: all)")
    parser.add_argument("--write", type=Path, help="also write the table here, as Markdown")
    args = parser.parse_args()
    rows: list[tuple[str, str, str, int, str]] = []
    types = args.types.split(",") if args.types else sorted(QUANTIZED, key=lambda name: FILE_TYPES[name].id)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tokenizers = {
            "spm": build_tokenizer(_made(root / "spm")),
            "bpe": build_byte_level_tokenizer(_made(root / "bpe")),
        }
        for number, (name, (family, fields)) in enumerate(MODELS.items()):
            tokenizer = tokenizers["spm" if family == "Llama" else "bpe"]
            rows += _compare_model(
                name,
                read_model(_built(root / str(number), tokenizer, family, fields)),
                Path(args.libllama),
                root,
                types,
            )
    table = _table(rows)
    sys.stdout.write(table)
    if args.write:
        args.write.write_text(table)
    return 0 if all(row[4] in ("identical", "both refuse") for row in rows) else 1


def _compare_model(
    name: str, model: Model, libraries: Path, root: Path, types: Sequence[str]
) -> list[tuple[str, str, str, int, str]]:
    source = root / "f32.gguf"
    write_gguf(model, model.plan("F32"), source, None)
    importance = _importance(model)
    weights = root / "importance.npz"
    np.savez(weights, allow_pickle=False, **importance.values)
    rows = []
    with KernelQuantizer(2) as quantizer:
        for file_type in types:
            for given in (None, importance):
                ours, theirs = root / "ours.gguf", root / "theirs.gguf"
                plan = model.plan(file_type, importance=given is not None)
                number = str(FILE_TYPES[file_type].id)
                command = [sys.executable, str(LIBLLAMA), str(libraries), str(source), str(theirs), number]
                done = subprocess.run(
                    [*command, *([str(weights)] if given else [])], capture_output=True, text=True, check=False
                )
                refused = plan.needs_importance and given is None
                if refused or done.returncode:
                    verdict = (
                        "both refuse"
                        if refused and done.returncode
                        else f"Cockpit {'refuses' if refused else 'writes'}, libllama does not"
                    )
                    rows.append((name, file_type, "yes" if given else "no", 0, verdict))
                    continue
                write_gguf(model, plan, ours, quantizer, importance=given)
                count, verdict = _difference(ours, theirs)
                rows.append((name, file_type, "yes" if given else "no", count, verdict))
                sys.stderr.write(f"{name}  {file_type}  {'importance' if given else 'plain'}  {verdict}\n")
    return rows


def _difference(ours: Path, theirs: Path) -> tuple[int, str]:
    found = [
        {t.name: (t.tensor_type, t.data.tobytes()) for t in gguf.GGUFReader(path).tensors} for path in (ours, theirs)
    ]
    different = sorted(name for name in found[0].keys() | found[1].keys() if found[0].get(name) != found[1].get(name))
    return len(found[0]), "identical" if not different else f"{len(different)} differ: {different[0]}"


def _importance(model: Model) -> Importance:
    """Fixed uneven importances for every matrix inside the layers."""
    rng = np.random.default_rng(11)
    inside = [shape for shape in model.shapes if shape.layer is not None and shape.dimensions == 2]
    values = {shape.name: rng.gamma(1.0, 2.0, shape.columns).astype(np.float32) for shape in inside}
    return Importance(values, 1, (1, 1), "fixed random numbers")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _built(folder: Path, tokenizer: Path, family: str, fields: Mapping[str, Any]) -> Path:
    return build_model(_made(folder), tokenizer, family=family, **fields)


def _table(rows: list[tuple[str, str, str, int, str]]) -> str:
    same = sum(row[4] in ("identical", "both refuse") for row in rows)
    lines = [f"{same} of {len(rows)} are identical to those of libllama's `llama_model_quantize`.", ""]
    lines += ["| model | file type | importance matrix | tensors | bytes |", "|---|---|---|---|---|"]
    lines += [
        f"| {model} | {file_type} | {given} | {count or '-'} | {verdict} |"
        for model, file_type, given, count, verdict in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
