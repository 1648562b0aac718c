"""Writes the i2_s file of an export, if the recipe requests one."""

from __future__ import annotations

from engines.context import Artifact, StageFailedError
from engines.files import file_sha256
from exporters.stages.export_job import Export
from exporters.ternary.i2s_file import planned_bytes, ternary_scales, validate, write_i2s
from recipes.problems import OperatorError

NONE = "none"


def plan_i2s(export: Export) -> int:
    """Size of the file that will be written; 0 if the recipe requests none.

    Raises:
        OperatorError: the model is not ternary, or its shapes do not fit the layout.
    """
    if export.ctx.stage.i2s == NONE:
        return 0
    export.i2s_scales = ternary_scales(export.model, export.ctx.stage.i2s)
    return planned_bytes(export.model)


def write_i2s_file(export: Export) -> list[Artifact]:
    """Write the file, read it back in its layout, and compare every value with the model's.

    Raises:
        StageFailedError: the file differs from the model.
    """
    ctx, layout = export.ctx, export.ctx.stage.i2s
    if layout == NONE:
        return []
    path = ctx.out / export.title.file(f"I2_S-{layout}")
    total, done = export.model.parameters, 0

    def advance(values: int) -> None:
        nonlocal done
        done += values
        ctx.progress(done, total, "weights")

    ctx.phase(f"writing i2_s, {layout}")
    write_i2s(export.model, export.i2s_scales, layout, path, advance)
    ctx.phase("validating i2_s")
    try:
        checked = validate(path, export.model)
    except OperatorError as error:
        raise StageFailedError(f"the i2_s file differs from the model: {error}") from error
    size = path.stat().st_size
    export.record["i2s"] = {"file": path.name, "bytes": size, "sha256": file_sha256(path), **checked}
    export.metrics["i2s_bytes"] = float(size)
    return [Artifact(f"I2_S-{layout}", "gguf", path.name)]
