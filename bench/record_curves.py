"""`python -m bench.record_curves FILE`: record the curves of tiny real trainings, healthy ones and ones made to fail.

`tests/cockpit/runs/test_diagnosis.py` judges the recorded numbers. Their text is Python's own library, a token a byte.
"the demo recipe" among the healthy ones is no training of this file: it is the journal of the recipe's stage `base`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

LENGTH, EVERY = 24, 20
SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "rows": 8, "attention_dropout": 0.0, "weight_decay": 0.0, "seed": 0,
    "learning_rate": 3e-3, "max_grad_norm": 1.0, "warmup_steps": 10, "max_steps": 300, "lr_scheduler_type": "cosine",
    "tokens": 200_000, "pattern": False, "letters": 0, "jump": None, "stop_at": None,
}  # fmt: skip
CONSTANT = {"lr_scheduler_type": "constant_with_warmup"}
TROUBLED: dict[str, dict[str, Any]] = {
    "overfitting": {"tokens": 1_000, "max_steps": 500, "learning_rate": 1e-2},
    "overfitting, later": {"tokens": 2_500, "max_steps": 700, "learning_rate": 1e-2, **CONSTANT},
    "learning rate too high, at once": {"learning_rate": 5.0, "max_grad_norm": 1e9, "stop_at": 150},
    "exploding, late": {"learning_rate": 3e-3, "jump": (200, 1.0), "max_grad_norm": 1e9, **CONSTANT},
    "learning rate too high, after a while": {"jump": (150, 0.3), **CONSTANT},
    "learning rate too low": {"learning_rate": 2e-6, **CONSTANT},
    "learning rate too low, cosine": {"learning_rate": 3e-5},
    "plateau": {"letters": 4, "max_steps": 500, "stop_at": 300, **CONSTANT},
    "underfitting": {"max_steps": 120, "learning_rate": 2e-4, **CONSTANT},
}
HEALTHY: dict[str, dict[str, Any]] = {
    **{f"cosine, seed {seed}": {"seed": seed, "max_steps": 200} for seed in range(6)},
    **{f"rate {rate}": {"learning_rate": rate, "max_steps": 200} for rate in (1.5e-3, 2e-3, 5e-3, 8e-3)},
    **{f"linear, seed {seed}": {"seed": seed, "max_steps": 240, "lr_scheduler_type": "linear"} for seed in range(3)},
    **{f"batch {size}": {"rows": size, "max_steps": 200} for size in (4, 16)},
    "wider": {"hidden_size": 48, "intermediate_size": 128, "max_steps": 300},
    "dropout": {"attention_dropout": 0.1, "max_steps": 200},
    "pattern": {"pattern": True, "max_steps": 300},
    "with a floor": {"lr_scheduler_type": "cosine_with_min_lr", "min_lr_rate": 0.1, "max_steps": 200},
    "still running": {"max_steps": 500, "stop_at": 180},
    "still running, constant": {"max_steps": 600, "stop_at": 150, **CONSTANT},
    "weight decay": {"weight_decay": 0.1, "max_steps": 200},
}


def main() -> int:
    """Train and write one JSON file."""
    parser = argparse.ArgumentParser(prog="python -m bench.record_curves", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="", help="trainings whose name contains this text")
    options = parser.parse_args()
    found = json.loads(options.file.read_text()) if options.file.exists() else {"troubled": {}, "healthy": {}}
    for kind, cases in (("troubled", TROUBLED), ("healthy", HEALTHY)):
        for name, fields in cases.items():
            if options.only in f"{kind}: {name}":
                found[kind][name] = _train({**SMALL, **fields})
                print(kind, name, found[kind][name]["losses"][-1], file=sys.stderr, flush=True)
                options.file.write_text(json.dumps(found, separators=(",", ":")) + "\n")
    return 0


def _train(fields: dict[str, Any]) -> dict[str, Any]:
    """A training of a Llama in a bare loop: AdamW, the engine's schedule, clipping, and a held-out loss."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from engines.training.schedule import Schedule

    torch.set_num_threads(1)
    torch.manual_seed(fields["seed"])
    width, inner, steps = fields["hidden_size"], fields["intermediate_size"], fields["max_steps"]
    config = LlamaConfig(
        vocab_size=261, hidden_size=width, intermediate_size=inner, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, attention_dropout=fields["attention_dropout"],
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    schedule = Schedule(fields["lr_scheduler_type"], warmup=fields["warmup_steps"], total=steps, min_rate=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=fields["weight_decay"])
    train, val = (torch.tensor(part) for part in _tokens(fields))
    draw = torch.Generator().manual_seed(fields["seed"])
    found: dict[str, Any] = {"losses": [], "rates": [], "norms": [], "evaluations": [], "total_steps": steps}
    peak = fields["learning_rate"]
    for step in range(1, fields["stop_at"] or steps + 1):
        if fields["jump"] and step == fields["jump"][0]:
            peak = fields["jump"][1]
        rate = peak * schedule(step - 1)
        starts = torch.randint(0, len(train) - LENGTH, (fields["rows"],), generator=draw)
        batch = torch.stack([train[start : start + LENGTH] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), fields["max_grad_norm"])
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        for name, value in (("losses", float(loss)), ("rates", rate), ("norms", float(norm))):
            found[name].append(_short(value))
        if step % EVERY == 0 or step == steps:
            model.eval()
            with torch.no_grad():
                rows = val[: len(val) // LENGTH * LENGTH].view(-1, LENGTH)
                found["evaluations"].append([step, _short(float(model(input_ids=rows, labels=rows).loss))])
            model.train()
    return found


def _tokens(fields: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Tokens to train on and held-out ones: text, one token a byte, or a noisy pattern."""
    count, held_out = fields["tokens"], 2_000
    if fields["letters"]:  # nothing to learn but their frequency
        draw = random.Random(0)
        ids = [5 + draw.randrange(fields["letters"]) for _ in range(count + held_out)]
    elif fields["pattern"]:
        draw = random.Random(0)
        ids = [5 + (n * 7 + draw.randrange(3)) % 250 for n in range(count + held_out)]
    else:
        names = sorted(Path(argparse.__file__).parent.glob("*.py"))
        text = b"".join(path.read_bytes() for path in random.Random(1).sample(names, 40))
        ids = [byte + 5 for byte in text[: count + held_out]]
    return ids[held_out:], ids[:held_out]


def _short(value: float | None) -> float | str | None:
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return None if value is None else str(value)
    return float(f"{value:.4g}")


if __name__ == "__main__":
    sys.exit(main())
