"""The GGUF files of the export that an evaluate stage names."""

from __future__ import annotations

from pathlib import Path

from engines.context import StageContext
from engines.llama.gguf_file import part_paths, read_gguf
from recipes.file_types import file_type_of_id
from recipes.problems import OperatorError, printable
from recipes.stages.evaluate import EvaluateStage


def gguf_files(ctx: StageContext[EvaluateStage]) -> list[tuple[str, Path]]:
    """File type and path of each model that an export wrote; of a split one its first part. Adapters are left out."""
    if "files" not in ctx.inputs:
        return []
    folder = ctx.inputs["files"].path
    assert folder is not None, "an export is a folder"
    found = []
    for file in sorted(folder.glob("*.gguf")):
        if part_paths(file)[0] != file:
            continue
        header = read_gguf(file)
        kind = file_type_of_id(int(header.scalar("general.file_type", -1)))
        if header.scalar("general.type", "model") == "model" and kind is not None:
            found.append((kind.name, file))
    if not found:
        raise OperatorError(f"files — {printable(str(folder), 400)} has no GGUF model", "give an export stage")
    return found
