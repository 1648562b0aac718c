"""The GGUF files of the export that an evaluate stage names: each model alone, and with each adapter over it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from engines.context import StageContext
from engines.llama.gguf_file import part_paths, read_gguf
from recipes.file_types import file_type_of_id
from recipes.problems import OperatorError, printable
from recipes.stages.evaluate import EvaluateStage

_ENCODING = re.compile(r"-[A-Z0-9_]+(?:-LoRA)?(?:-\d{5}-of-\d{5})?$")
"""What the names of files end in: the type, of an adapter its kind, and the number of a part."""


@dataclass(frozen=True)
class GgufModel:
    """One model of an export.

    Attributes:
        name: its file type, with `+` and the adapter's name where one is over it; metrics end in it.
        file: the GGUF file, of a split one its first part.
        adapter: a GGUF adapter over it.
    """

    name: str
    file: Path
    adapter: Path | None = None

    @property
    def shown(self) -> str:
        """For results and lists: the names of its files."""
        return self.file.name if self.adapter is None else f"{self.file.name} + {self.adapter.name}"


def gguf_models(ctx: StageContext[EvaluateStage]) -> list[GgufModel]:
    """Each model that an export wrote, by file; where it wrote adapters, then each model with each of them.

    Raises:
        OperatorError: there is no model.
    """
    if "files" not in ctx.inputs:
        return []
    folder = ctx.inputs["files"].path
    assert folder is not None, "an export is a folder"
    models, adapters = [], []
    for file in sorted(folder.glob("*.gguf")):
        if part_paths(file)[0] != file:
            continue
        header = read_gguf(file)
        kind = file_type_of_id(int(header.scalar("general.file_type", -1)))
        what = header.scalar("general.type", "model")
        if what == "model" and kind is not None:
            models.append(GgufModel(kind.name, file))
        elif what == "adapter":
            adapters.append(file)
    if not models:
        raise OperatorError(f"files — {printable(str(folder), 400)} has no GGUF model", "give an export stage")
    names = _adapter_names([one.file for one in models], adapters)
    over = [GgufModel(f"{one.name}+{names[file]}", one.file, file) for one in models for file in adapters]
    return [*models, *over]


def check_gguf_files(file: Path, adapter: Path | None) -> None:
    """Refuse files that are missing or damaged, an adapter in the place of a model, and the other way round.

    Raises:
        OperatorError: which file, and what it is.
    """
    for one in (file, *([adapter] if adapter else [])):
        if not one.is_file():
            raise OperatorError(f"no file {printable(str(one), 400)}", "give a GGUF file")
    name = printable(str(file), 400)
    if _is_adapter(file):
        hint = f"give a GGUF file of its base model as MODEL, and this one with --adapter {name}"
        raise OperatorError(f"{name} is an adapter, and no model", hint)
    if adapter is not None and not _is_adapter(adapter):
        other = printable(str(adapter), 400)
        raise OperatorError(f"--adapter — {other} is a model, and no adapter", "give a GGUF adapter, or MODEL alone")


def _is_adapter(file: Path) -> bool:
    return bool(read_gguf(file).scalar("general.type", "model") == "adapter")


def _adapter_names(models: list[Path], adapters: list[Path]) -> dict[Path, str]:
    """The name of each adapter: that of its file, without the model's name before it and the type behind it."""
    title = _ENCODING.sub("", models[0].stem) + "-"
    short = {file: _ENCODING.sub("", file.stem.removeprefix(title)) for file in adapters}
    counts = Counter(short.values())
    return {file: name if name and counts[name] == 1 else file.stem for file, name in short.items()}
