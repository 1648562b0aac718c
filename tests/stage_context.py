"""A real stage context over a real journal in a temporary folder: to try a stage's function without its process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.artifacts.manifest import manifest_sha256
from engines.context import Input, ResumePoint, StageContext
from engines.emitter import EventWriter
from engines.events.kinds import AnyEvent
from engines.journal import read_journal
from engines.run_dir.paths import RunDir
from engines.words import WriterRole
from recipes.stages.registry import STAGE_TYPES, tag_of_table

_WRITERS: list[EventWriter] = []
"""Those of the contexts that this module of tests has made."""


def close_writers() -> None:
    """Close the journals of all contexts so far: each has a thread, and hundreds of threads make every test slow."""
    while _WRITERS:
        _WRITERS.pop().close()


class TriedContext(StageContext[Any]):
    """A stage context that can read its journal back."""

    def events(self) -> list[AnyEvent]:
        """Everything in the journal so far."""
        return list(read_journal(RunDir(self.run_root).journal))


def make_context(
    tmp_path: Path,
    stage: Mapping[str, Any],
    *,
    inputs: Mapping[str, Path | str] | None = None,
    attempt: int = 1,
    resume: ResumePoint | None = None,
    learning_rate_scale: float = 1.0,
    test_faults: Mapping[str, Any] | None = None,
) -> TriedContext:
    """A context for a stage given as in a recipe. Inputs are folders by field name, or hub ids as strings.

    The files of an export begin with `run`, unless the stage has a `file_name` (or None)."""
    if stage["kind"] == "export":
        stage = {"file_name": "run", **stage}
    tag = tag_of_table(dict(stage))
    assert tag is not None, f"no such stage: {stage}"
    model = STAGE_TYPES[tag].model_validate(dict(stage))
    run = RunDir(tmp_path / "run")
    folder = run.attempt_dir(model.name, attempt)
    for path in (run.control, folder / "out.tmp", folder / "work", run.checkpoints(model.name, attempt)):
        path.mkdir(parents=True, exist_ok=True)
    if not run.run_json.exists():
        run.run_json.write_text(
            json.dumps({"format": 1, "id": run.id, "recipe": "tried", "parent": None, "version": "0"})
        )
    writer = EventWriter(run.journal, None, role=WriterRole.ENGINE, stage=model.name, attempt=attempt)
    _WRITERS.append(writer)
    given = {name: _input(name, value) for name, value in (inputs or {}).items()}
    return TriedContext(
        stage=model,
        inputs=given,
        out=folder / "out.tmp",
        work=folder / "work",
        attempt=attempt,
        resume=resume,
        learning_rate_scale=learning_rate_scale,
        checkpoints=run.checkpoints(model.name, attempt),
        run_id=run.id,
        stage_name=model.name,
        run_root=run.root,
        writer=writer,
        test_faults=dict(test_faults or {}),
    )


def _input(field: str, value: Path | str) -> Input:
    if isinstance(value, str):
        return Input(field, "hub", value, None)
    has_manifest = (value / "manifest.json").exists()
    return Input(field, "path", value.name, value, None, manifest_sha256(value) if has_manifest else None)
