"""The prepare stage for rows of any format: from the recipe's fields to a folder of splits, metrics and warnings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.context import Artifact, StageContext, StageResult
from engines.data.door import ReadCounts, source_of_stage
from engines.data.preparing.command import run_command
from engines.data.preparing.divide import SplitWish
from engines.data.preparing.rows import RowOptions, prepare_rows
from engines.data.split import SPLITS
from engines.inputs.code_or_rows import unused_warning
from recipes import quantities
from recipes.stages.prepare import PrepareMessages


def run_rows(ctx: StageContext[PrepareMessages]) -> StageResult:
    """Write the rows of the stage's data, or of its command, into `ctx.out`.

    Raises:
        OperatorError: the command fails, a row is refused, or the rows cannot be divided as requested.
    """
    stage = ctx.stage
    made_by, counts = None, ReadCounts()
    if stage.command:
        ctx.phase("running the command")
        folder = Path(stage.command_folder or ".")
        output = run_command(stage.command, folder, ctx.work, lambda done: ctx.progress(done, None, "bytes"))
        source, made_by = source_of_stage(stage, output.place, ""), output.record
    else:
        given = ctx.inputs["data"]
        source = source_of_stage(stage, given.path, given.name)
    metadata = prepare_rows(
        source, counts, ctx.out, ctx.work, options_of(stage), made_by=made_by, report=ctx.progress, phase=ctx.phase
    )
    unused = unused_warning(stage, about_code=False)
    for warning in [*counts.notes(), *([unused] if unused else []), *warnings_of(metadata)]:
        ctx.warn(warning)
    return StageResult(metrics_of(metadata), [Artifact(ctx.stage_name, "messages", ".")])


def options_of(stage: PrepareMessages) -> RowOptions:
    """What the stage does with its rows."""
    return RowOptions(
        wish=SplitWish(stage.val_fraction, stage.test_fraction, stage.val_rows, stage.test_rows),
        group_by=stage.group_by,
        duplicates=stage.duplicates,
        near_duplicates=stage.near_duplicates,
        near_duplicate_similarity=stage.near_duplicate_similarity,
        max_examples=stage.max_examples,
        seed=stage.seed,
    )


def metrics_of(metadata: dict[str, Any]) -> dict[str, float]:
    """The figures that a gate may use."""
    splits, duplicates = metadata["splits"], metadata["duplicates"]
    examples = sum(split["examples"] for split in splits.values())
    skipped = sum(metadata["skipped"].values())
    metrics = {
        "examples": examples,
        "rows": examples,
        "dropped": metadata["rows"] + skipped - examples,
        "skipped_rows": skipped,
        "duplicates": duplicates["exact"]["rows"],
        **{f"{name}_rows": splits[name]["examples"] for name in SPLITS},
    }
    if "near" in duplicates:
        metrics["near_duplicates"] = duplicates["near"]["rows"]
    return {name: float(value) for name, value in metrics.items()}


def warnings_of(metadata: dict[str, Any]) -> list[str]:
    """What an operator should know about the rows of the folder."""
    found = []
    exact, near = metadata["duplicates"]["exact"], metadata["duplicates"].get("near")
    if exact["rows"]:
        found.append(_duplicates(exact, "repeat another exactly"))
    if near is not None and near["rows"]:
        found.append(_duplicates(near, "share most of their words with another"))
    division = metadata["split"]
    if shared := division["train_rows_of_held_out_groups"]:
        found.append(f"{shared} row(s) of train have a group or a prompt that val or test has too")
    for split, rows in division["deviation"].items():
        found.append(
            f"the {split} split has {abs(rows)} row(s) {'more' if rows > 0 else 'fewer'} than requested:"
            " rows of one group stay together"
        )
    unused = division["unused_shares"]
    found += [_unused_share(name, share, division["given"]) for name, share in unused.items()]
    found += [
        f"the {name} split has no examples"
        for name in ("val", "test")
        if name not in unused and not metadata["splits"][name]["examples"]
    ]
    return found


def _unused_share(name: str, share: float, given: list[str]) -> str:
    return (
        f"the {name} split has no examples: the data gives {' and '.join(given)} itself, and {name}_fraction ="
        f" {quantities.exact(share)} is of data without splits; set {name}_rows to take rows of train for {name}"
    )


def _duplicates(counts: dict[str, Any], what: str) -> str:
    done = {"keep": "they are kept", "drop": "they were left out"}[counts["policy"]]
    across = counts["across_given_splits"]
    more = f", {across} of them one of another split" if across else ""
    return f"{counts['rows']} row(s) {what}{more}; {done}"
