"""`cockpit merge` and `cockpit export`: what an operator named on the command line, as a recipe of one stage.

Something that a run made gives the recipe that a button would make, with that run as its parent; a folder gives one
without a parent.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cockpit.one_stage.from_run import export_of, origin_of
from cockpit.one_stage.origins import base_of, base_of_folder
from cockpit.one_stage.recipe import Export, Input, Merge, OneStageRecipe, one_stage_recipe
from cockpit.one_stage.sources import Source, sources
from cockpit.runs.find import find_run
from cockpit.runs.reader import read_now
from engines.adapter_folder import is_adapter
from engines.run_dir import RunDir
from recipes.file_types import FIRST_FILE_TYPES
from recipes.problems import OperatorError, printable

Kind = Literal["model", "adapter"]


@dataclass(frozen=True)
class Given:
    """An input as it was named: a stage of a run (then `run` and `source` say which), a folder, or a hub id."""

    input: Input
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
        return Given(Input.at(folder.absolute()))
    run_part, colon, stage = wanted.rpartition(":")
    if colon and run_part:
        return _of_stage(find_run(root, run_part), stage, kind, option)
    if kind == "model" and wanted.count("/") == 1 and not wanted.startswith((".", "/", "~")):
        return Given(Input(wanted))
    raise OperatorError(
        f"{option} — no folder {printable(wanted, 400)}",
        f"give a folder with {'a model' if kind == 'model' else 'an adapter'}, or RUN:STAGE",
    )


def merge_text(root: Path, adapters: Sequence[str], model: str | None, dtype: str | None) -> OneStageRecipe:
    """The recipe of a merge of one adapter or several.

    Raises:
        OperatorError: inputs that cannot be found, all of them at once; adapters that name different bases; or none
            that says
            what it belongs to, and `model` is not given.
    """
    taken, problems = _all_given(root, adapters)
    base = None
    if model:
        try:
            base = given(root, model, "model", "--model").input
        except OperatorError as error:
            problems.append(_in_one_line(error))
    if problems:
        raise OperatorError("\n".join(problems))
    base = base or _common_base(adapters, taken)
    return _recipe(Merge(base, tuple(item.input for item in taken), dtype or "base"), taken[0])


def stage_sets(stage: str, sets: Sequence[str]) -> list[str]:
    """Overrides of the one stage, which need not name it: `field=value`."""
    return [text if "." in text.partition("=")[0] else f"{stage}.{text}" for text in sets]


def export_text(
    root: Path,
    model: str,
    types: str | None,
    data: str | None,
    *,
    imatrix: str | None = None,
    adapter: str | None = None,
    adapters: Sequence[str] = (),
) -> OneStageRecipe:
    """The recipe of an export.

    Args:
        root: the folder of runs.
        model: the model to write.
        types: file types, with commas between them.
        data: held-out text for the comparison.
        imatrix: when an importance matrix is measured.
        adapter: one that is merged into the model while the files are written.
        adapters: those that are written as GGUF adapters over the model.

    Raises:
        OperatorError: inputs cannot be found, all adapters at once.
    """
    taken, under = _model_or_adapter(root, model)
    names = [name.strip() for name in types.split(",") if name.strip()] if types else FIRST_FILE_TYPES
    stage = _export_of(taken, names, under)
    if data:
        stage = replace(stage, data=Input.at(_data_folder(root, data)))
    if adapter is not None and under is not None:
        raise OperatorError("--adapter — MODEL is an adapter itself", "merge several: cockpit merge ADAPTER ADAPTER")
    if adapter is not None:
        stage = replace(stage, adapter=given(root, adapter, "adapter", "--adapter").input)
    found, problems = _all_given(root, adapters)
    if problems:
        raise OperatorError("\n".join(problems))
    return _recipe(replace(stage, adapters=tuple(item.input for item in found), imatrix=imatrix), taken)


def _export_of(taken: Given, file_types: Sequence[str], under: Input | None) -> Export:
    """An export of what was named; `under` is the base of an adapter."""
    if taken.run is not None and taken.source is not None:
        return export_of(taken.run, taken.source, file_types, under)
    if under is not None:
        return Export(under, tuple(file_types), adapter=taken.input)
    return Export(taken.input, tuple(file_types))


def _recipe(stage: Merge | Export, of: Given) -> OneStageRecipe:
    """Named after the run's recipe, or after the folder."""
    if of.run is not None and of.source is not None:
        recipe = str(of.run.read_run_json().get("recipe") or "run")
        return one_stage_recipe(stage, recipe, origin_of(of.run, of.source))
    return one_stage_recipe(stage, Path(of.input.text).name)


def _all_given(root: Path, adapters: Sequence[str]) -> tuple[list[Given], list[str]]:
    taken, problems = [], []
    for wanted in adapters:
        try:
            taken.append(given(root, wanted, "adapter", "--adapter"))
        except OperatorError as error:
            problems.append(_in_one_line(error))
    return taken, problems


def _in_one_line(error: OperatorError) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message


def _common_base(adapters: Sequence[str], taken: Sequence[Given]) -> Input:
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
                f"--adapter — {printable(first, 200)} was trained on {printable(base.text, 200)}, "
                f"{printable(wanted, 200)} on"
                f" {printable(other.text, 200)}",
                "adapters of one base can be merged together; if both are the same model, say so: --model DIR",
            )
    if base.path is not None and not base.path.exists():
        raise OperatorError(
            f"--model — {printable(first, 200)} was trained on {printable(str(base.path), 400)}, which is gone",
            "make it again (cockpit resume RUN), or say where it is now: cockpit merge ADAPTER --model DIR",
        )
    return base


def _base(adapter: Given) -> Input | None:
    if adapter.run is not None and adapter.source is not None:
        return base_of(adapter.run, adapter.source)
    assert adapter.input.path is not None, "an adapter is a folder"
    return base_of_folder(adapter.input.path)


def _model_or_adapter(root: Path, wanted: str) -> tuple[Given, Input | None]:
    """A model; or an adapter, with the base that it names, into which it is merged while files are written."""
    folder = Path(wanted).expanduser()
    if is_adapter(folder):
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
    found = [
        source for source in sources(run, read_now(run).state.stages) if source.kind == kind and source.step is None
    ]
    source = next((source for source in found if source.stage == stage), None)
    if source is None:
        names = ", ".join(source.stage for source in found) or "none"
        raise OperatorError(
            f"{option} — {run.id} has no finished {kind} of a stage {printable(stage)!r}; there are: {names}"
        )
    return Given(source.input, run, source)


def _data_folder(root: Path, wanted: str) -> Path:
    folder = Path(wanted).expanduser()
    if folder.is_dir() or folder.is_file():
        return folder.absolute()
    run_part, colon, stage = wanted.rpartition(":")
    if colon and run_part:
        out = find_run(root, run_part).out(stage) if os.sep not in stage else folder
        if out.is_dir():
            return out
    raise OperatorError(
        f"--data — nothing is at {printable(wanted, 400)}",
        "give a folder made by a prepare stage, RUN:STAGE, a text file, or a folder of text files",
    )
