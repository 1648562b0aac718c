"""Tiny preferences, and a stage that trains on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DPO: dict[str, Any] = {
    "name": "prefer",
    "kind": "dpo",
    "model": "base",
    "data": "pairs",
    "max_length": 48,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 8,
    "learning_rate": 3e-3,
    "bf16": False,
    "r": 4,
    "lora_alpha": 8.0,
    "save_steps": 3,
    "save_total_limit": 10,
}
WHOLE: dict[str, Any] = {
    **{name: value for name, value in DPO.items() if name not in ("r", "lora_alpha")},
    "output": "model",
}
"""The same training, of all weights."""


def row(n: int) -> dict[str, Any]:
    """Preferences of ragged lengths: the polite answer is preferred."""
    return {"prompt": f"q{n}?", "chosen": "yes " * (1 + n % 3) + str(n), "rejected": "no" * (1 + n % 4)}


def write_pairs(folder: Path, rows: int = 13, val: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in {"train": rows, "val": val}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row(n)) + "\n" for n in range(count)))
    return folder
