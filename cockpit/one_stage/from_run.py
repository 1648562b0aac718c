"""What the Resume, Merge and Quantize buttons do, prepared without a screen: what fits, why not, what it takes.

A merge or an export of something that a run made is a run of its own with one stage, whose inputs are named by path
and whose parent is the run they come from; a finished journal grows only by Resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cockpit.runs.stage_view import StageView
from cockpit.supervision.resolved_recipe import RunRecipe, input_hash
from engines.events import CheckpointCommitted
from engines.json_text import read_json
from engines.moved_runs import place_now
from engines.run_dir import RunDir, RunDirError
from engines.words import RunStatus
from recipes.spelling import spell_text as quoted
from recipes.stages.registry import trains, weights


@dataclass(frozen=True)
class Source:
    """A finished result or a checkpoint that can be merged or exported.

    `path` is its folder; `manifest_sha256` what it is known by; `step` None for the finished result.
    """

    kind: Literal["model", "adapter"]
    stage: str
    path: Path
    manifest_sha256: str
    step: int | None = None
    attempt: int | None = None
    best: bool = False
    healthy: bool = True

    @property
    def title(self) -> str:
        """`tuned, finished` or `tuned, step 400`."""
        return f"{self.stage}, {'finished' if self.step is None else f'step {self.step}'}"


@dataclass(frozen=True)
class Base:
    """The model that an adapter belongs to: a folder, or a hub id."""

    text: str
    path: Path | None
    manifest_sha256: str | None


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint of a run, removed ones included."""

    stage: str
    kind: str
    checkpoint: CheckpointCommitted
    removed: bool
    eval_loss: float | None
    superseded: bool = False
    best: bool = False


@dataclass(frozen=True)
class OneStageRecipe:
    """A recipe made by a button: its name, its text, and the run it stems from."""

    name: str
    text: str
    parent: str


def checkpoint_rows(stages: Sequence[StageView]) -> list[CheckpointRow]:
    """Every checkpoint of the training stages, newest stage and step first."""
    rows = []
    for stage in reversed(stages):
        if not trains(stage.kind):
            continue
        losses = {e.step: e.loss for e in stage.all_evaluations}
        kept = {id(c) for c in stage.checkpoints}
        counted = {attempt.attempt: cut for attempt, cut in stage.lineage}
        everything = sorted(stage.all_checkpoints, key=lambda c: (c.attempt, c.step), reverse=True)
        rows += [
            CheckpointRow(
                stage.name,
                stage.kind,
                checkpoint,
                removed=id(checkpoint) not in kept,
                eval_loss=losses.get(checkpoint.step, checkpoint.loss),
                superseded=checkpoint.step > counted.get(checkpoint.attempt, -1),
                best=checkpoint is stage.best_checkpoint,
            )
            for checkpoint in everything
        ]
    return rows


def sources(run: RunDir, stages: Sequence[StageView]) -> list[Source]:
    """Finished results and checkpoints that are still there, the last stage first, its finished result first."""
    found = []
    for stage in reversed(stages):
        kind = weights(stage.kind)
        if kind is None:
            continue
        if stage.state.is_done and run.out(stage.name).is_dir():
            found.append(Source(kind, stage.name, run.out(stage.name), stage.manifest_sha256))
        for row in checkpoint_rows([stage]):
            checkpoint = row.checkpoint
            path = run.root / checkpoint.path
            if not row.removed and path.is_dir():
                found.append(
                    Source(
                        kind,
                        stage.name,
                        path,
                        checkpoint.sha256,
                        checkpoint.step,
                        checkpoint.attempt,
                        checkpoint.best,
                        checkpoint.healthy,
                    )
                )
    return found


def source_of(found: Sequence[Source], row: CheckpointRow | None, kind: str) -> Source | None:
    """The source a button works on: the chosen checkpoint when it is of that kind, else the newest finished result."""
    if row is not None:
        chosen = row.checkpoint
        for source in found:
            if (source.kind, source.stage, source.step, source.attempt) == (
                kind,
                row.stage,
                chosen.step,
                chosen.attempt,
            ):
                return source
    finished = [source for source in found if source.kind == kind and source.step is None]
    return finished[0] if finished else None


def why_no_resume(state: RunStatus, row: CheckpointRow | None, rows: Sequence[CheckpointRow] = ()) -> str:
    """Why the run cannot go on, from this checkpoint or (without one) as it is; nothing when it can."""
    if state.is_live:
        return "the run is live: stop it first"
    if row is None:
        return "" if state.can_resume else "every stage is done: choose a checkpoint to go back to"
    if row.removed:
        return "this checkpoint was removed (save_total_limit)"
    same_step = [other for other in rows if other.stage == row.stage and other.checkpoint.step == row.checkpoint.step]
    if row.superseded and any(not other.superseded and not other.removed for other in same_step):
        return "superseded: a later attempt has a checkpoint of the same step"
    return ""


def why_no_merge(state: RunStatus, source: Source | None, base: Base | None = None) -> str:
    """Why there is nothing to merge; nothing when there is."""
    if state.is_live:
        return "the run is live: stop it first"
    if source is None:
        return "no adapter here: a finetune stage makes one"
    if base is None:
        return "the adapter does not say which model it was trained on"
    if base.path is not None and not base.path.exists():
        return f"its base model is gone: {base.path}"
    return ""


def why_no_export(state: RunStatus, source: Source | None) -> str:
    """Why there is nothing to quantize; nothing when there is."""
    if state.is_live:
        return "the run is live: stop it first"
    return "" if source else "no whole model here: a pretrain or merge stage makes one"


def base_of(run: RunDir, source: Source) -> Base | None:
    """The model that an adapter was trained on, as its attempt recorded it; None when no record is readable."""
    attempts = [source.attempt] if source.attempt is not None else run.attempts(source.stage)[::-1]
    for attempt in attempts:
        found = _recorded_base(run.stage_json(source.stage, attempt), source.path)
        if found is not None:
            return found
    try:
        recorded = read_json(source.path / "base.json")
        return _base(recorded, source.path)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def merge_recipe(
    run: RunDir, recipe: str, source: Source, base: Base, dtype: str, others: Sequence[str] = ()
) -> OneStageRecipe:
    """A run of one merge stage: the adapter and its base by path and hash; `others` are folders of further adapters."""
    name = short_name(recipe, "merged")
    fields = [
        ("model", quoted(base.text), base.manifest_sha256),
        adapter_field(str(source.path), others, source.manifest_sha256),
        ("dtype", quoted(dtype), None),
    ]
    return OneStageRecipe(name, _one_stage(name, "merge", run.id, source, fields), run.id)


def adapter_field(first: str, others: Sequence[str], sha256: str | None = None) -> tuple[str, str, str | None]:
    """What is merged, as a line of a recipe: one adapter with its hash, or a list."""
    if not others:
        return "adapter", quoted(first), sha256
    return "adapters", "[" + ", ".join(map(quoted, [first, *others])) + "]", None


def export_recipe(
    run: RunDir,
    recipe: str,
    source: Source,
    file_types: Sequence[str],
    parity_positions: int | None = None,
    base: Base | None = None,
) -> OneStageRecipe:
    """A run of one export stage: the model by path and hash, and the file types to write.

    An adapter needs its `base`: it is merged while the files are written.
    """
    name = short_name(recipe, "gguf")
    types = "[" + ", ".join(quoted(file_type) for file_type in file_types) + "]"
    fields: list[tuple[str, str, str | None]] = [("model", quoted(str(source.path)), source.manifest_sha256)]
    if source.kind == "adapter":
        assert base is not None, "an adapter is merged into its base"
        fields = [
            ("model", quoted(base.text), base.manifest_sha256),
            ("adapter", quoted(str(source.path)), source.manifest_sha256),
        ]
    data = held_out_data(run, source.stage)
    if data is not None:
        fields.append(("data", quoted(str(data[0])), data[1]))
    fields.append(("file_types", types, None))
    if parity_positions is not None:
        fields.append(("parity_positions", str(parity_positions), None))
    return OneStageRecipe(name, _one_stage(name, "export", run.id, source, fields), run.id)


def held_out_data(run: RunDir, stage: str) -> tuple[Path, str | None] | None:
    """The data that a stage's model learned from last, and its manifest: its held-out part is what a comparison should read.

    A merge has none of its own: its adapter's, and before that its model's, is taken.
    """
    try:
        plan = RunRecipe.read(run)
    except RunDirError:
        return None
    seen: set[str] = set()
    todo = [stage]
    while todo:
        name = todo.pop(0)
        if name in seen:
            continue
        seen.add(name)
        refs = plan.inputs.get(name, {})
        data = refs.get("data")
        if data is not None:
            path = run.out(data.name) if data.origin == "stage" else Path(data.path or "")
            return (path, input_hash(path)) if data.path != "" and path.is_dir() else None
        learned = [field for field in refs if field.startswith("adapter")]
        todo += [refs[field].name for field in (*learned, "model") if field in refs and refs[field].origin == "stage"]
    return None


def short_name(recipe: str, suffix: str) -> str:
    """A recipe name of at most 40 characters that says what it came from; never `gguf-gguf`."""
    stem = "".join(char if char.isascii() and (char.islower() or char.isdigit()) else "-" for char in recipe.lower())
    stem = stem.strip("-") or "run"
    for old in ("-merged", "-gguf"):
        stem = stem.removesuffix(old)
    return f"{stem[: 39 - len(suffix)].rstrip('-')}-{suffix}"


def _one_stage(name: str, kind: str, run_id: str, source: Source, fields: Sequence[tuple[str, str, str | None]]) -> str:
    lines = [
        "schema = 1",
        f"name = {quoted(name)}",
        f"description = {quoted(f'{kind.capitalize()} of {source.title}, of the run {run_id}.')}",
        "",
        "[[stage]]",
        f"name = {quoted({'merge': 'merged', 'export': 'gguf'}[kind])}",
        f"kind = {quoted(kind)}",
    ]
    for key, value, sha256 in fields:
        lines.append(f"{key} = {value}" + (f"  # manifest sha256 {_hex(sha256)}" if sha256 else ""))
    return "\n".join(lines) + "\n"


def _hex(text: str) -> str:
    """A hash for a comment: nothing but its hexadecimal digits, whatever the record held."""
    return "".join(char for char in text if char in "0123456789abcdef")[:64]


def _base(recorded: dict[str, Any], near: Path) -> Base:
    path = place_now(Path(recorded["path"]), near)
    return Base(str(path), path, recorded.get("manifest_sha256"))


def _recorded_base(stage_json: Path, near: Path) -> Base | None:
    try:
        recorded: dict[str, Any] = read_json(stage_json)["inputs"]["model"]
        if recorded["origin"] == "hub":
            return Base(str(recorded["name"]), None, None)
        return _base(recorded, near)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Item:
    """One line of the checkpoints screen: a finished result (`row` is None) or a checkpoint."""

    stage: str
    kind: str
    row: CheckpointRow | None
    source: Source | None
    newest: bool = False


def items(run: RunDir, stages: Sequence[StageView]) -> list[Item]:
    """Finished results and every checkpoint, stage by stage from the last, the newest first."""
    found = sources(run, stages)
    listed: list[Item] = []
    for stage in reversed(stages):
        listed += [Item(stage.name, s.kind, None, s) for s in found if s.stage == stage.name and s.step is None]
        newest_seen = False
        kind = weights(stage.kind)
        for row in checkpoint_rows([stage]):
            source = source_of(found, row, kind) if kind is not None else None
            if source is not None and source.step is None:
                source = None
            newest = not newest_seen and not row.removed and not row.superseded
            newest_seen = newest_seen or newest
            listed.append(Item(stage.name, stage.kind, row, source, newest))
    return listed


def resume_words(stages: Sequence[StageView], item: Item | None, dependents: Sequence[str] = ()) -> str:
    """What resuming from the item means, for the question before it."""
    if item is None or item.row is None:
        return "Stages that are done stay; the others run, training from its newest complete checkpoint."
    step = item.row.checkpoint.step
    stage = next(stage for stage in stages if stage.name == item.stage)
    reached = stage.at_step or step
    lines = [f"{item.stage} goes on from step {step}."]
    if reached > step:
        lines.append(f"Steps {step + 1} to {reached} are superseded; nothing is deleted.")
    if dependents:
        lines.append(f"What depends on it is done again: {', '.join(dependents)}.")
    return "\n".join(lines)
