"""Writes the model card (README.md) of a merged model or of GGUF files: base, licence, training, figures, SHA-256.

Texts from elsewhere (names, paths, recipes) stand in code spans, in which Markdown and HTML have no meaning.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.context import Input, StageContext
from engines.files import file_sha256, read_regular_bytes, write_durably
from engines.json_text import read_json
from engines.run_dir.paths import STAGES, RunDir
from exporters.gguf.file_names import LORA
from exporters.hf_model.model_card import CARD, LICENSE_FILES, ModelCard, read_card
from exporters.stages.export_job import Export
from exporters.stages.lineage import Lineage, folder_name, lineage_of
from recipes import quantities
from recipes.problems import printable
from recipes.spelling import spell
from recipes.stages.dpo import DPO
from recipes.stages.finetune import FINETUNE
from recipes.stages.pretrain import PRETRAIN

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_MAX_LICENSE_BYTES = 1024 * 1024
_PLACES = {"name", "python", "threads", "devices", "model", "data", "adapter", "adapters", "tokenizer", "start_from"}
"""Fields of a stage that say where something is on this machine, not how the model was trained."""
_TRAINS = (PRETRAIN.kind, FINETUNE.kind, DPO.kind)
_FINE_TUNED = FINETUNE.kind
"""The relation to the base model, as model hubs spell it."""
_FIGURES = (("mean KL (nats)", "mean_kl"), ("top-1", "top1"), ("perplexity", "loss"))


def write_export_card(export: Export, folder: Path) -> None:
    """Write the card of an export's files, and copy the base model's licence.

    Args:
        export: the export after its comparison.
        folder: the folder of its input `model`.
    """
    card, lineage = _inherited(export.ctx, folder)
    keys = {"library_name": "gguf", "pipeline_tag": "text-generation", "tags": ["gguf"]}
    lines = [
        *_front(card, lineage, keys, "quantized"),
        "# " + export.title.stem.replace("_", "\\_"),
        "",
        f"GGUF files, written and compared with their model by Cockpit. parity.json has every figure; "
        f"{'fixture.json has prompts with the answers that a runtime must give; ' if export.fixture else ''}"
        "manifest.json lists every file and every ancestor with its SHA-256.",
        "",
        *_files(export),
        *_lineage(card, lineage),
    ]
    _write(export.ctx, lines, folder)


def write_merge_card(ctx: StageContext[Any], folder: Path, metrics: Mapping[str, float]) -> None:
    """Write the card of a merged model, and copy the base model's licence; `folder` is that of the input `model`."""
    card, lineage = _inherited(ctx, folder)
    keys = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["merge"]}
    compared = [f"- {title}: {_figure(metrics, key)}" for title, key in _FIGURES if key in metrics]
    if compared:
        compared = ["", "Compared with the adapter over its base model:", "", *compared]
    lines = [
        *_front(card, lineage, keys, _FINE_TUNED),
        f"# {code(' + '.join(dict.fromkeys([lineage.base, *lineage.trained])))}",
        "",
        f"An adapter merged into its base model by Cockpit: {quantities.count(metrics['parameters'])} parameters, "
        f"{quantities.size_in_both(metrics['bytes'])}.",
        *compared,
        "",
        *_lineage(card, lineage),
    ]
    _write(ctx, lines, folder)


def code(text: object) -> str:
    """A text as Markdown that shows it as it is: a code span."""
    shown = printable(str(text), 300)
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    space = " " if shown.startswith("`") or shown.endswith("`") or not shown.strip() else ""
    return f"{fence}{space}{shown}{space}{fence}"


def _inherited(ctx: StageContext[Any], folder: Path) -> tuple[ModelCard, Lineage]:
    inputs: Mapping[str, Input] = ctx.inputs
    return read_card(folder), lineage_of(inputs)


def _front(card: ModelCard, lineage: Lineage, keys: Mapping[str, Any], relation: str) -> list[str]:
    """The card's front matter. Every text is in JSON's quotes, which YAML reads."""
    values: dict[str, Any] = {"license": card.license, "license_name": card.license_name}
    values["license_link"] = card.license_link
    bases = [lineage.base] if _HUB_ID.fullmatch(lineage.base) else list(card.base_models)
    values |= {"base_model": bases, "base_model_relation": relation if bases else "", **keys}
    return ["---", *(f"{key}: {json.dumps(value)}" for key, value in values.items() if value), "---", ""]


def _files(export: Export) -> Iterator[str]:
    yield "## Files"
    yield ""
    yield from _table(
        ("file", "size", "bits per weight", *(title for title, _ in _FIGURES), "SHA-256"),
        [
            (
                code(item["file"]),
                quantities.size_in_both(item["size_bytes"]),
                quantities.bits_per_weight(item["bits_per_weight"]),
                *(_figure(item, key) for _, key in _FIGURES),
                _hashes(item),
            )
            for item in export.record["files"]
            if (export.ctx.out / item["file"]).is_file()
        ],
    )
    other = [path for path in sorted(export.ctx.out.glob("*.gguf")) if path.name not in _listed(export)]
    if other:
        yield from _table(
            ("other file", "size", "SHA-256"),
            [(code(p.name), quantities.size_in_both(p.stat().st_size), code(file_sha256(p))) for p in other],
        )
    if "data" in export.record:
        data = export.record["data"]
        compared = f"{data['positions']} positions of {code(data['source'])}"
        yield f"KL and top-1 compare each file with the model on {compared}."
        yield ""
    if any(LORA in path.name for path in other):
        yield f"A file that ends in {LORA} is an adapter: `llama-cli -m FILE --lora ADAPTER`."
        yield ""


def _listed(export: Export) -> set[str]:
    files = export.record["files"]
    return {str(part["file"]) for item in files for part in (item, *(item.get("parts") or ()))}


def _hashes(item: Mapping[str, Any]) -> str:
    """SHA-256 of a file, and of the further parts of a split one."""
    parts = item.get("parts") or []
    return ", ".join([code(item["sha256"]), *(f"{code(part['file'])} {code(part['sha256'])}" for part in parts)])


def _figure(item: Mapping[str, Any], key: str) -> str:
    """A figure of a file's comparison; "n/a" without one."""
    quality = item.get("quality")
    value = item.get(key, quality.get(key) if isinstance(quality, Mapping) else None)
    if not isinstance(value, int | float):
        return quantities.NOT_MEASURED
    if key == "loss":
        value = math.exp(min(value, 700.0))
    return quantities.percent(value, 2) if key == "top1" else quantities.number(value)


def _lineage(card: ModelCard, lineage: Lineage) -> Iterator[str]:
    yield "## Origin"
    yield ""
    yield f"- base model: {code(lineage.base)}"
    name = card.license_name or card.license
    link = f", {code(card.license_link)}" if card.license_link else ""
    yield f"- licence of the base model: {code(name) + link if name else 'its card names none'}"
    yield from (f"- adapter: {code(name)}" for name in lineage.adapters)
    by_id = {str(link["id"]): link for link in lineage.links}
    for step in lineage.links:
        if step.get("kind") in _TRAINS and step.get("run"):
            yield from _training(step, by_id)
    yield ""


def _training(step: Mapping[str, Any], by_id: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """One stage that trained the model: its run, its data, and the fields that its recipe sets."""
    yield f"- trained by run {code(step['run'])}, stage {code(step.get('stage', ''))} ({step['kind']})"
    for parent in _inputs(step, by_id):
        what = f"stage {code(parent['stage'])}" if parent.get("stage") else code(folder_name(Path(parent["folder"])))
        yield f"  - from {what}, {parent['kind']}, {_identity(parent)}"
    fields = _fields(Path(str(step["folder"])), str(step.get("stage", "")))
    if fields:
        yield f"  - recipe: {', '.join(code(f'{key} = {value}') for key, value in fields.items())}"


def _inputs(step: Mapping[str, Any], by_id: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The inputs of a training stage; those of its last checkpoint are its own."""
    parents = [by_id[name] for name in step["parents"] if name in by_id]
    if len(parents) == 1 and parents[0]["kind"] == "checkpoint":
        parents = [by_id[name] for name in parents[0]["parents"] if name in by_id]
    return parents


def _identity(link: Mapping[str, Any]) -> str:
    return "named only" if link.get("method") == "name" else f"SHA-256 {code(link['id'])}"


def _fields(folder: Path, stage: str) -> dict[str, str]:
    """The fields that a run's recipe sets for a stage, as TOML; empty if the run is not here any more."""
    if STAGES not in folder.parts:
        return {}
    run = RunDir(Path(*folder.parts[: len(folder.parts) - 1 - folder.parts[::-1].index(STAGES)]))
    try:
        value = read_json(run.recipe_json)
        given = next(item for item in value["recipe"]["stage"] if item["name"] == stage)
        names = [name for name in value["origins"][stage] if name in given and name not in _PLACES]
        return {name: spell(given[name]) for name in names if isinstance(given[name], bool | int | float | str | list)}
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return {}


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"|{'|'.join('---' for _ in titles)}|"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def _write(ctx: StageContext[Any], lines: Sequence[str], folder: Path) -> None:
    write_durably(ctx.out / CARD, ("\n".join(lines).rstrip() + "\n").encode())
    for name in LICENSE_FILES:
        if (folder / name).is_file():
            try:
                write_durably(ctx.out / name, read_regular_bytes(folder / name, _MAX_LICENSE_BYTES))
            except ValueError as error:
                ctx.warn(f"{name} of the base model was not copied: {printable(str(error), 200)}")
