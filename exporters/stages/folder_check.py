"""`python -m exporters.stages.folder_check JOBS`: examines the folders that merges and exports will read, without
their weights, before a run is made.

JOBS is a JSON list of `{"model", "adapters": {field: folder}, "writes": whether Cockpit's own converter writes the
model}`. Each line of the output is one problem: `{"job", "field", "message", "hint"}`. It imports no torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engines.words import ExitCode
from exporters.gguf.write import read_model
from exporters.hf_model.model_folder import open_weights, read_config
from exporters.lora.adapter import read_adapter
from exporters.lora.base_check import check_base
from exporters.lora.merge_plan import Weighted, plan_merge
from recipes.problems import OperatorError


def problems_of(job: dict[str, Any]) -> Iterator[tuple[str, OperatorError]]:
    """The problems of one stage's folders, each with its field."""
    model = Path(job["model"])
    broken = list(_tried("model", lambda: read_model(model) if job["writes"] else _open(model)))
    yield from broken
    for field, place in job["adapters"].items():
        adapter = Path(place)
        found = [
            *_tried(field, lambda adapter=adapter: read_adapter(adapter)),  # type: ignore[misc]
            *_tried(field, lambda adapter=adapter: check_base(model, None, adapter)),  # type: ignore[misc]
        ]
        yield from found
        if not broken and not found:
            yield from _tried(field, lambda adapter=adapter: _fit(model, adapter))  # type: ignore[misc]


def _fit(base: Path, adapter: Path) -> None:
    """Refuse an adapter that changes what the base model does not have."""
    plan_merge(open_weights(base), read_config(base), [Weighted(read_adapter(adapter))], dtype="base", untie=True)


def _open(folder: Path) -> None:
    read_config(folder)
    open_weights(folder)


def _tried(field: str, examine: Callable[[], object]) -> Iterator[tuple[str, OperatorError]]:
    try:
        examine()
    except OperatorError as error:
        yield field, error


def main(argv: list[str]) -> ExitCode:
    """Print the problems of every job."""
    for number, job in enumerate(json.loads(argv[1])):
        for field, error in problems_of(job):
            line = {"job": number, "field": field, "message": error.message, "hint": error.hint}
            sys.stdout.write(json.dumps(line) + "\n")
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv))
