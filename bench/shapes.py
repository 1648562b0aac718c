"""`python -m bench.shapes`: compares model shapes x file types with transformers, on at least 2,000 positions each.

Prints a table; `--write FILE` also writes it as Markdown (`bench/shapes.md` has the last one). The exit code is 1 if a
file violates the limits of its type.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from engines.context import StageFailedError
from tests.exporters.exporting import export, parity
from tests.exporters.small_models import build_byte_level_tokenizer, build_model, build_tokenizer

POSITIONS, LENGTH = 2048, 256
TYPES = ("F32", "F16", "BF16", "Q8_0")
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LINEAR = {"rope_type": "linear", "rope_theta": 100_000.0, "factor": 4.0}
MODELS: dict[str, dict[str, Any]] = {
    "llama, untied, GQA 8/2": {"tie_word_embeddings": False},
    "llama, tied": {},
    "llama, llama3 rope, head width 48": {"hidden_size": 192, "num_attention_heads": 4, "rope_parameters": LLAMA3},
    "llama, linear rope (DeepSeek-Coder)": {"rope_parameters": LINEAR, "words": "bpe"},
    "mistral": {"family": "Mistral", "sliding_window": None, "rope_parameters": {"rope_type": "default",
    "rope_theta": 1e6}},
    "qwen2, tied": {"family": "Qwen2", "words": "bpe", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen3, yarn, head width 64": {"family": "Qwen3", "words": "bpe", "head_dim": 64, "rope_parameters": YARN},
    "llama, width 96": {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 4},
    "llama, width 80": {"hidden_size": 80, "intermediate_size": 112, "num_attention_heads": 4},
    "llama, width 128": {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4},
}  # fmt: skip


def main() -> int:
    """Export every model in every type and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="also write the table here, as Markdown")
    args = parser.parse_args()
    lines = [
        "| model | file | positions | mean KL | max KL | top-1 | differ, widest gap | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        words = {"spm": build_tokenizer(_made(root / "spm")), "bpe": build_byte_level_tokenizer(_made(root / "bpe"))}
        for number, (name, given) in enumerate(MODELS.items()):
            fields = {key: value for key, value in given.items() if key != "words"}
            model = build_model(_made(root / f"model-{number}"), words[given.get("words", "spm")], **fields)
            for record in _files(_made(root / f"export-{number}"), model):
                passed = passed and record["verdict"] == "accepted"
                lines.append(_row(name, record))
                sys.stderr.write(lines[-1] + "\n")
    table = "\n".join(lines) + "\n"
    sys.stdout.write(table)
    if args.write:
        args.write.write_text(table)
    return 0 if passed else 1


def _files(folder: Path, model: Path) -> list[dict[str, Any]]:
    try:
        ctx, _ = export(folder, model, *TYPES, parity_positions=POSITIONS, max_length=LENGTH, threads=2)
    except StageFailedError as error:
        sys.stderr.write(f"{error}\n")
        raise
    return list(parity(ctx)["files"])


def _row(name: str, record: dict[str, Any]) -> str:
    quality = record["quality"]
    differ = f"{quality['top1_differences']}, {quality['widest_gap']:.2g}" if quality["top1_differences"] else "0"
    cells = [
        name, record["file_type"], str(quality["positions"]), f"{quality['mean_kl']:.2g}",
        f"{quality['max_kl']:.2g}", f"{quality['top1']:.4f}", differ, "; ".join(record["reasons"]) or record["verdict"],
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
