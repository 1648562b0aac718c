"""Names of GGUF adapters, from the run and the stage that trained them; no two adapters of an export have one name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from engines.artifacts.manifest import ManifestError, read_manifest
from engines.context import Input
from exporters.gguf.file_names import file_part

_STAMP = re.compile(r"^\d{8}-\d{4}-")


def adapter_names(adapters: Sequence[tuple[Input, Path]]) -> list[str]:
    """One name for each adapter, as short as it can be: the stage, else with the recipe, else with the run's id.

    Args:
        adapters: each input with its folder.
    """
    choices = [[file_part(name) for name in _choices(given, folder)] for given, folder in adapters]
    level = [0] * len(choices)
    while True:
        names = [choice[at] for choice, at in zip(choices, level, strict=True)]
        counts = Counter(map(metric_key, names))
        longer = [n for n, name in enumerate(names) if counts[metric_key(name)] > 1 and level[n] + 1 < len(choices[n])]
        if not longer:
            return _numbered(names)
        for n in longer:
            level[n] += 1


def metric_key(name: str) -> str:
    """The name in the names of metrics."""
    return name.lower().replace("-", "_").replace(".", "_")


def _choices(given: Input, folder: Path) -> list[str]:
    """Names, each longer than the one before."""
    if given.origin == "stage":
        return [given.name]
    try:
        manifest = read_manifest(folder)
    except ManifestError:
        manifest = {}
    run, stage, step = manifest.get("run"), manifest.get("stage"), manifest.get("step")
    if isinstance(run, str) and isinstance(stage, str) and run and stage:
        tail = f"{stage}-{step}" if isinstance(step, int) else stage
        return [tail, f"{_STAMP.sub('', run)}-{tail}", f"{run}-{tail}"]
    parts = [part for part in folder.absolute().parts if part != folder.anchor] or [given.name]
    return ["-".join(parts[-length:]) for length in range(1, min(len(parts), 4) + 1)]


def _numbered(names: Sequence[str]) -> list[str]:
    """Names that are still equal get a number."""
    taken: set[str] = set()
    found = []
    for name in names:
        candidate, number = name, 1
        while metric_key(candidate) in taken:
            number += 1
            candidate = f"{name}-{number}"
        taken.add(metric_key(candidate))
        found.append(candidate)
    return found
