"""Running the two stages on small models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.context import StageFailedError, StageResult
from exporters.stages import export_stage, merge_stage
from tests.stage_context import TriedContext, make_context


def export(
    tmp_path: Path,
    model: Path,
    *file_types: str,
    data: Path | None = None,
    inputs: Mapping[str, Path] | None = None,
    **fields: Any,
) -> tuple[TriedContext, StageResult]:
    """Export a model; `inputs` are further ones, by field."""
    stage = {
        "name": "gguf",
        "kind": "export",
        "model": str(model),
        "file_types": list(file_types),
        "parity_positions": 400,
        "max_length": 128,
        "threads": 1,
        **({"data": str(data)} if data else {}),
        **fields,
    }
    given: dict[str, Path | str] = {"model": model, **({"data": data} if data else {}), **(inputs or {})}
    ctx = make_context(tmp_path, stage, inputs=given)
    return ctx, export_stage.run(ctx)


def failed_export(tmp_path: Path, model: Path, *file_types: str, **fields: Any) -> str:
    """The message of an export that must fail its comparison."""
    try:
        export(tmp_path, model, *file_types, **fields)
    except StageFailedError as error:
        return str(error)
    raise AssertionError("the export passed")


def merge(tmp_path: Path, base: Path, adapter: Path, **fields: Any) -> tuple[TriedContext, StageResult]:
    stage = {"name": "merged", "kind": "merge", "model": str(base), "adapter": str(adapter), **fields}
    ctx = make_context(tmp_path, stage, inputs={"model": base, "adapter": adapter})
    return ctx, merge_stage.run(ctx)


def merge_several(tmp_path: Path, base: Path, adapters: list[Path], **fields: Any) -> tuple[TriedContext, StageResult]:
    stage = {"name": "merged", "kind": "merge", "model": str(base), "adapters": list(map(str, adapters)), **fields}
    inputs: dict[str, Path | str] = {"model": base, **{f"adapters[{n}]": path for n, path in enumerate(adapters)}}
    ctx = make_context(tmp_path, stage, inputs=inputs)
    return ctx, merge_stage.run(ctx)


def parity(ctx: TriedContext) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((ctx.out / "parity.json").read_text())
    return value
