"""The files of an export or a merge as rows of a table: size, and distance from the source model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cockpit.runs.stage_view import StageView
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.text.text_table import cells, text_table
from exporters.proof.quality import light_of

FILE_TITLES = (
    *("file", "size", "GB", "bits", "mean KL", "top-1", "KL to trained", "top-1 to trained", "ppl", "tok/s", "memory"),
    "light",
)
_LEAST = ("GB", "memory", "ppl", "tok/s", "bits", "top-1 to trained", "size")
"""Columns that a narrow table drops, in this order."""
_BYTES = "_bytes"


def files_table(stages: Sequence[StageView], width: int | None = None) -> list[str]:
    """The rows of stages as lines of a table; no lines without a file.

    Args:
        stages: stages of a run.
        width: drop the columns in `_LEAST`, one by one, until the table fits into this many cells; None keeps all.
    """
    rows = [row for stage in stages for row in file_rows(stage)]
    if not rows:
        return []
    lines: list[str] = []
    columns = list(range(len(FILE_TITLES)))
    for name in ("", *_LEAST):
        columns = [column for column in columns if FILE_TITLES[column] != name]
        chosen = [[row[column] for column in columns] for row in rows]
        lines = text_table([FILE_TITLES[column] for column in columns], chosen, range(1, len(columns)))
        if width is None or cells(lines[1]) <= width:
            break
    return lines


def file_rows(stage: StageView) -> list[list[str]]:
    """One row for each GGUF file: its size and its distance from the source model."""
    from recipes.stages.registry import makes  # loads pydantic, which a screen with charts does not need

    if not makes(stage.kind, "gguf"):
        return _rows_of_merge(stage)
    metrics = stage.metrics
    trained = "model_kl_to_trained" in metrics
    perplexities = {e.protocol.removeprefix("parity:"): e.perplexity for e in stage.evaluations}
    names = [name.removesuffix(_BYTES) for name in metrics if f"{name.removesuffix(_BYTES)}_bits_per_weight" in metrics]
    return (
        _merged_row(stage, "merged, not kept", "merge_")
        + [
            [
                safe_text(name.upper(), 20),
                shown(metrics.get(name + _BYTES), fmt.size),
                shown(metrics.get(name + _BYTES), fmt.gigabytes),
                shown(metrics.get(f"{name}_bits_per_weight"), fmt.bits_per_weight),
                *_distances(metrics, f"{name}_", trained=trained),
                shown(perplexities.get(name), fmt.number),
                shown(metrics.get(f"{name}_tokens_per_second"), lambda rate: fmt.number(rate, 3)),
                shown(metrics.get(f"{name}_rss_bytes"), fmt.size),
                _light(name.upper(), metrics, f"{name}_"),
            ]
            for name in dict.fromkeys(names)
        ]
        + _measured_rows(stage)
    )


def _rows_of_merge(stage: StageView) -> list[list[str]]:
    """A merged model; before it the adapter over its 16-bit base, if the training had that base in 4 bits."""
    metrics = stage.metrics
    rows = _merged_row(stage, safe_text(stage.name, 40), "")
    over = metrics.get("adapter_kl_to_trained")
    if not over:
        return rows
    distances = ["", "", *_distance(over, metrics.get("adapter_top1_to_trained"))]
    return [["adapter over 16-bit base", "", "", "", *distances, "", "", "", ""], *rows]


def _merged_row(stage: StageView, name: str, prefix: str) -> list[list[str]]:
    """A merged model, compared with its adapter over its base model; no row if that was not measured."""
    metrics = stage.metrics
    if metrics.get(f"{prefix}mean_kl") is None:
        return []
    size = metrics.get("bytes") if not prefix else None
    found = _distances(metrics, prefix, trained=bool(metrics.get("adapter_kl_to_trained")))
    if prefix and "model_kl_to_trained" in metrics:
        found[2:] = _distance(metrics["model_kl_to_trained"], metrics.get("model_top1_to_trained"))
    return [[name, shown(size, fmt.size), shown(size, fmt.gigabytes), "", *found, "", "", "", ""]]


def _measured_rows(stage: StageView) -> list[list[str]]:
    """One row for each comparison that the files' rows do not contain: those of a running export, and adapters."""
    rows = []
    for evaluation in stage.evaluations:
        file_type, plus, adapter = evaluation.protocol.removeprefix("parity:").partition("+")
        if plus or f"{file_type}_bits_per_weight" not in stage.metrics:
            size = next((artifact.bytes for artifact in stage.artifacts if artifact.name == adapter), None)
            name = safe_text(f"{file_type.upper()} + {adapter}" if plus else file_type.upper(), 40)
            light = "" if plus else _light(file_type.upper(), evaluation.metrics, "")
            perplexity = shown(evaluation.perplexity, fmt.number)
            sizes = [shown(size, fmt.size), shown(size, fmt.gigabytes)]
            found = evaluation.metrics
            trained = found.get("kl_to_trained") != found.get("mean_kl")
            rows.append([name, *sizes, "", *_distances(found, "", trained=trained), perplexity, "", "", light])
    return rows


def _distances(metrics: Mapping[str, float | None], prefix: str, *, trained: bool) -> list[str]:
    """Four cells: the distance from the exported model, and, with `trained`, from what was trained over 4 bits."""
    exported = _distance(metrics.get(f"{prefix}mean_kl"), metrics.get(f"{prefix}top1"))
    if not trained:
        return [*exported, "", ""]
    return [*exported, *_distance(metrics.get(f"{prefix}kl_to_trained"), metrics.get(f"{prefix}top1_to_trained"))]


def _distance(kl: float | None, top1: float | None) -> list[str]:
    return [shown(kl, fmt.number), shown(top1, lambda share: fmt.percent(share, 2))]


def _light(file_type: str, metrics: Mapping[str, float | None], prefix: str) -> str:
    """A quantized file's distance compared with what is usual for its type, as a word. Runs of older versions have only
    the distance of weights and arithmetic together."""
    kl = metrics.get(f"{prefix}weights_mean_kl")
    kl = metrics.get(f"{prefix}mean_kl") if kl is None else kl
    return (light_of(file_type, kl, metrics.get(f"{prefix}top1")) or "") if kl is not None else ""


def shown(value: float | None, words: Callable[[float], str]) -> str:
    """A cell; empty for None."""
    return "" if value is None else words(value)
