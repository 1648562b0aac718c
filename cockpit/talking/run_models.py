"""The models of a run that a chat can open: a result or checkpoint, and the GGUF files of its exports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cockpit.one_stage.sources import Source
from cockpit.runs.stage_view import StageView
from engines.run_dir.paths import RunDir

_NO_MODEL = re.compile(r"-LoRA\.gguf$|-(?!00001)\d{5}-of-\d{5}\.gguf$")
"""Adapters, and the parts of a split file after its first."""


def run_models(run: RunDir, stages: Sequence[StageView], source: Source | None) -> list[tuple[str, Path]]:
    """Titles and paths: the source, if there is one, and the GGUF models that exist, the last stage's first."""
    found = [] if source is None else [(source.title, source.path)]
    for stage in reversed(stages):
        if stage.state.is_done:
            names = dict.fromkeys(Path(one.path).name for one in stage.artifacts if one.kind == "gguf")
            files = [run.out(stage.name) / name for name in names if not _NO_MODEL.search(name)]
            found += [(f"{stage.name}: {file.name}", file) for file in files if file.is_file()]
    return found
