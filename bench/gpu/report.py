"""What a visit found: gpu.json with everything, gpu.md with the tables."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from bench.gpu.place import SMOKE, result_of
from bench.gpu.shapes import PEAK

_PARTS = ("flat", "padded", "flat again", "padded again", "eager", "compiled")


def write(out: Path, names: list[str]) -> None:
    results = {name: result_of(name) for name in names}
    (out / "gpu.json").write_text(json.dumps(results, indent=1, default=str) + "\n")
    (out / "gpu.md").write_text(
        "\n".join([*_machine(results.get("probe", {})), *_rates(results), *_rest(results)]) + "\n"
    )


def _machine(probe: dict[str, Any]) -> list[str]:
    versions = probe.get("versions", {})
    lines = [
        "# A visit to a GPU",
        "",
        f"{probe.get('card', 'no probe')}; torch {versions.get('torch')}, transformers {versions.get('transformers')},"
        f" peft {versions.get('peft')}; " + ("SMOKE: tiny shapes, figures mean nothing" if SMOKE else "full shapes"),
        "",
    ]
    shown = {
        key: one
        for key, one in probe.items()
        if key.startswith(("product_", "copy", "fetch", "launch", "free", "memory"))
    }
    return [*lines, json.dumps(shown), ""]


def _rates(results: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| job | real tok/s | MFU | peak GiB (allocated) | loss | state |", "|---|--:|--:|--:|---|---|"]
    for name, one in results.items():
        parts = [(name, one), *((f"{name}, {part}", one[part]) for part in _PARTS if part in one)]
        lines += [
            _row(label, found, str(one.get("state", ""))) for label, found in parts if "tokens_per_second" in found
        ]
    return lines


def _row(label: str, found: dict[str, Any], state: str) -> str:
    mfu = found["flop"] / found["seconds"] / PEAK if found.get("flop") else None
    loss = " → ".join(_number(one, ".4f") for one in found.get("loss", []))
    speed = _number(found["tokens_per_second"], ",.0f")
    cells = (label, speed, _number(mfu, ".1%"), _number(found.get("peak_allocated_gib"), ".1f"), loss, state)
    return f"| {' | '.join(cells)} |"


def _number(one: object, form: str) -> str:
    return format(one, form) if isinstance(one, int | float) and math.isfinite(one) else ""


def _rest(results: dict[str, dict[str, Any]]) -> list[str]:
    lines = [""]
    for key, one in results.get("comparison", {}).items():
        lines.append(f"- {key}: {json.dumps(one)}")
    for name, one in results.items():
        if "tokens_per_second" not in one:
            shown = {
                key: value
                for key, value in one.items()
                if key in ("exit", "kills", "resumed_from", "succeeded", "ends", "wall_s")
            }
            lines.append(f"- {name}: {one.get('state', '')} {json.dumps(shown)[:600]}")
        for key in ("error", "why"):
            if one.get(key):
                lines += ["", f"## {name}: {key}", "", "```", str(one[key])[-1800:], "```", ""]
    return lines
