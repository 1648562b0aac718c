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

from engines.artifacts.adapter_folder import ADAPTER_CONFIG
from engines.json_text import read_object
from exporters.gguf.write import read_model
from exporters.hf_model.hub_cache import commit_of
from exporters.hf_model.model_folder import open_weights, read_config
from exporters.lora.adapter import read_adapter
from exporters.stages.lineage import hub_id
from recipes.problems import OperatorError, printable


def problems_of(job: dict[str, Any]) -> Iterator[tuple[str, OperatorError]]:
    """The problems of one stage's folders, each with its field."""
    model = Path(job["model"])
    yield from _tried("model", lambda: read_model(model) if job["writes"] else _open(model))
    for field, place in job["adapters"].items():
        adapter = Path(place)
        yield from _tried(field, lambda adapter=adapter: read_adapter(adapter))  # type: ignore[misc]
        yield from _tried(field, lambda adapter=adapter: check_revision(model, adapter))  # type: ignore[misc]


def check_revision(base: Path, adapter: Path) -> None:
    """Refuse a base model of the hub's cache in another revision than the one that the adapter names.

    Raises:
        OperatorError: the revisions differ; the message has both.
    """
    named = read_object(adapter / ADAPTER_CONFIG) if (adapter / ADAPTER_CONFIG).is_file() else {}
    revision, wanted = named.get("revision"), named.get("base_model_name_or_path")
    home = next((path for path in base.absolute().parents if path.name.startswith("models--")), None)
    if not isinstance(revision, str) or not revision or home is None or hub_id(base) != wanted:
        return
    given = base.absolute().relative_to(home).parts[-1]
    commit = commit_of(home, revision)
    if commit and commit != given:
        raise OperatorError(
            f"{adapter} was trained on revision {printable(revision, 60)} ({commit[:12]}) of {printable(str(wanted))}, "
            f"but the base model is revision {printable(given, 12)}",
            f"download that revision (hf download {printable(str(wanted))} --revision {printable(revision, 60)}) and "
            "name its folder",
        )


def _open(folder: Path) -> None:
    read_config(folder)
    open_weights(folder)


def _tried(field: str, examine: Callable[[], object]) -> Iterator[tuple[str, OperatorError]]:
    try:
        examine()
    except OperatorError as error:
        yield field, error


def main(argv: list[str]) -> None:
    """Print the problems of every job."""
    for number, job in enumerate(json.loads(argv[1])):
        for field, error in problems_of(job):
            line = {"job": number, "field": field, "message": error.message, "hint": error.hint}
            sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(sys.argv)
