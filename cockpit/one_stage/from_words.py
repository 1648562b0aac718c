"""`cockpit merge` and `cockpit export`: what an operator named on the command line, as a recipe of one stage.

Something that a run made gives the recipe that a button would make, with that run as its parent; a folder gives one
without a parent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cockpit.one_stage.from_run import (
    Base,
    OneStageRecipe,
    Source,
    adapter_field,
    base_of,
    export_recipe,
    merge_recipe,
    short_name,
    sources,
)
from cockpit.runs.find import find_run
from cockpit.runs.summaries import fold_run
from engines.json_text import read_json
from engines.moved_runs import place_now
from engines.run_dir import RunDir
from recipes.problems import OperatorError, printable
from recipes.spelling import spell_text as quoted

Kind = Literal["model", "adapter"]
MERGED, EXPORTED = "merged", "gguf"
"""Names of the one stage."""


@dataclass(frozen=True)
class Given:
    """An input as it was named: a stage of a run (then `run` and `source` say which), a folder, or a hub id."""

    base: Base
    run: RunDir | None = None
    source: Source | None = None


def given(root: Path, wanted: str, kind: Kind, option: str) -> Given:
    """What `DIR`, `RUN:STAGE` or a hub id means.

    Args:
        root: the folder of runs.
        wanted: the operator's words.
        kind: what it must be.
        option: the option it was given to, for messages.

    Raises:
        OperatorError: there is no such thing.
    """
    folder = Path(wanted).expanduser()
    if folder.is_dir():
        return Given(Base(str(folder.absolute()), folder.absolute(), None))
    run_part, colon, stage = wanted.rpartition(":")
    if colon and run_part:
        return _of_stage(find_run(root, run_part), stage, kind, option)
    if kind == "model" and wanted.count("/") == 1 and not wanted.startswith((".", "/", "~")):
        return Given(Base(wanted, None, None))
    raise OperatorError(
        f"{option} — no folder {printable(wanted, 400)}",
        f"give a folder with {'a model' if kind == 'model' else 'an adapter'}, or RUN:STAGE",
    )


def merge_text(root: Path, adapters: Sequence[str], model: str | None, dtype: str | None) -> OneStageRecipe:
    """The recipe of a merge of one adapter or several.

    Raises:
        OperatorError: inputs that cannot be found, all of them at once; adapters that name different bases; or none that says
            what it belongs to, and `model` is not given.
    """
    taken, problems = _all_given(root, adapters)
    base = None
    if model:
        try:
            base = given(root, model, "model", "--model").base
        except OperatorError as error:
            problems.append(f"{error.message}; {error.hint}" if error.hint else error.message)
    if problems:
        raise OperatorError("\n".join(problems))
    base = base or _common_base(adapters, taken)
    first, others = taken[0], [item.base.text for item in taken[1:]]
    if first.run is not None and first.source is not None:
        return merge_recipe(first.run, _recipe_name(first.run), first.source, base, dtype or "base", others)
    key, value, _ = adapter_field(first.base.text, others)
    fields = [("model", quoted(base.text)), (key, value), ("dtype", quoted(dtype or "base"))]
    return _of_folder("merge", first.base.text, fields)


def stage_sets(stage: str, sets: Sequence[str]) -> list[str]:
    """Overrides of the one stage, which need not name it: `field=value`."""
    return [text if "." in text.partition("=")[0] else f"{stage}.{text}" for text in sets]


def _all_given(root: Path, adapters: Sequence[str]) -> tuple[list[Given], list[str]]:
    taken, problems = [], []
    for wanted in adapters:
        try:
            taken.append(given(root, wanted, "adapter", "--adapter"))
        except OperatorError as error:
            problems.append(f"{error.message}; {error.hint}" if error.hint else error.message)
    return taken, problems


def _common_base(adapters: Sequence[str], taken: Sequence[Given]) -> Base:
    """The model that all adapters were trained on, as they say themselves."""
    named = [(wanted, base) for wanted, item in zip(adapters, taken, strict=True) if (base := _base(item)) is not None]
    if not named:
        raise OperatorError(
            f"--model — {printable(adapters[0], 400)} does not say which model it was trained on",
            "give it: --model DIR",
        )
    first, base = named[0]
    for wanted, other in named[1:]:
        hashes = {base.manifest_sha256, other.manifest_sha256} - {None}
        if len(hashes) > 1 or (len(hashes) == 0 and base.text != other.text):
            raise OperatorError(
                f"--adapter — {printable(first, 200)} was trained on {printable(base.text, 200)}, {printable(wanted, 200)} on"
                f" {printable(other.text, 200)}",
                "adapters of one base can be merged together; if both are the same model, say so: --model DIR",
            )
    if base.path is not None and not base.path.exists():
        raise OperatorError(
            f"--model — {printable(first, 200)} was trained on {printable(str(base.path), 400)}, which is gone",
            "make it again (cockpit resume RUN), or say where it is now: cockpit merge ADAPTER --model DIR",
        )
    return base


def export_text(
    root: Path,
    model: str,
    types: str | None,
    data: str | None,
    fields: Mapping[str, str] | None = None,
    *,
    adapter: str | None = None,
    adapters: Sequence[str] = (),
) -> OneStageRecipe:
    """The recipe of an export; `fields` are further fields of words.

    Args:
        root: the folder of runs.
        model: the model to write.
        types: file types, with commas between them.
        data: held-out text for the comparison.
        fields: further fields, as words.
        adapter: one that is merged into the model while the files are written.
        adapters: those that are written as GGUF adapters over the model.

    Raises:
        OperatorError: inputs cannot be found, all adapters at once.
    """
    taken, under = _model_or_adapter(root, model)
    names = [name.strip() for name in types.split(",") if name.strip()] if types else ["F16", "Q8_0", "Q4_K_M"]
    more = [("data", quoted(_data_folder(root, data)))] if data else []
    more += [(key, quoted(word)) for key, word in (fields or {}).items()]
    if adapter is not None and under is not None:
        raise OperatorError("--adapter — MODEL is an adapter itself", "merge several: cockpit merge ADAPTER ADAPTER")
    if adapter is not None:
        more.append(("adapter", quoted(given(root, adapter, "adapter", "--adapter").base.text)))
    found, problems = _all_given(root, adapters)
    if problems:
        raise OperatorError("\n".join(problems))
    if found:
        more.append(("adapters", "[" + ", ".join(quoted(item.base.text) for item in found) + "]"))
    if taken.run is not None and taken.source is not None:
        made = export_recipe(taken.run, _recipe_name(taken.run), taken.source, names, base=under)
        return OneStageRecipe(made.name, made.text + "".join(f"{key} = {value}\n" for key, value in more), made.parent)
    listed = "[" + ", ".join(quoted(name) for name in names) + "]"
    inputs = [("model", quoted(taken.base.text))]
    if under is not None:
        inputs = [("model", quoted(under.text)), ("adapter", quoted(taken.base.text))]
    return _of_folder("export", taken.base.text, [*inputs, ("file_types", listed), *more])


def _model_or_adapter(root: Path, wanted: str) -> tuple[Given, Base | None]:
    """A model; or an adapter, with the base that it names, into which it is merged while files are written."""
    folder = Path(wanted).expanduser()
    if (folder / "adapter_config.json").is_file():
        taken = given(root, wanted, "adapter", "MODEL")
        return taken, _common_base([wanted], [taken])
    try:
        return given(root, wanted, "model", "MODEL"), None
    except OperatorError:
        found, _ = _all_given(root, [wanted]) if ":" in wanted else ([], [])
        if not found:
            raise
    return found[0], _common_base([wanted], found)


def _of_stage(run: RunDir, stage: str, kind: Kind, option: str) -> Given:
    found = [source for source in sources(run, fold_run(run).stages) if source.kind == kind and source.step is None]
    source = next((source for source in found if source.stage == stage), None)
    if source is None:
        names = ", ".join(source.stage for source in found) or "none"
        raise OperatorError(
            f"{option} — {run.id} has no finished {kind} of a stage {printable(stage)!r}; there are: {names}"
        )
    return Given(Base(str(source.path), source.path, source.manifest_sha256), run, source)


def _base(adapter: Given) -> Base | None:
    if adapter.run is not None and adapter.source is not None:
        return base_of(adapter.run, adapter.source)
    assert adapter.base.path is not None, "an adapter is a folder"
    for name, key in (("base.json", "path"), ("adapter_config.json", "base_model_name_or_path")):
        try:
            text = read_json(adapter.base.path / name)[key]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(text, str) and text:
            path = place_now(Path(text), adapter.base.path)
            return Base(str(path), path, None) if path.is_absolute() else Base(text, None, None)
    return None


def _data_folder(root: Path, wanted: str) -> str:
    folder = Path(wanted).expanduser()
    if folder.is_dir() or folder.is_file():
        return str(folder.absolute())
    run_part, colon, stage = wanted.rpartition(":")
    if colon and run_part:
        out = find_run(root, run_part).out(stage) if os.sep not in stage else folder
        if out.is_dir():
            return str(out)
    raise OperatorError(
        f"--data — nothing is at {printable(wanted, 400)}",
        "give a folder made by a prepare stage, RUN:STAGE, a text file, or a folder of text files",
    )


def _recipe_name(run: RunDir) -> str:
    return str(run.read_run_json().get("recipe") or "run")


def _of_folder(kind: str, folder: str, fields: Sequence[tuple[str, str]]) -> OneStageRecipe:
    name = short_name(Path(folder).name, {"merge": MERGED, "export": EXPORTED}[kind])
    lines = ["schema = 1", f"name = {quoted(name)}", "", "[[stage]]"]
    lines += [f"name = {quoted({'merge': 'merged', 'export': 'gguf'}[kind])}", f"kind = {quoted(kind)}"]
    lines += [f"{key} = {value}" for key, value in fields]
    return OneStageRecipe(name, "\n".join(lines) + "\n", "")
