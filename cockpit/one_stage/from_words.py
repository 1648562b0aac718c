"""`cockpit merge` and `cockpit export`: a recipe of one stage, created from the command's arguments.

RUN:STAGE gives the same recipe as the button on the screen, with that run as its parent; a folder gives a recipe
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
from cockpit.runs.find import find_run, listed_runs
from cockpit.runs.reader import read_now
from engines.artifacts.adapter_folder import is_adapter
from engines.run_dir.paths import RunDir
from recipes.file_types import FIRST_FILE_TYPES
from recipes.graph import HUB_ID
from recipes.problems import OperatorError, printable

Kind = Literal["model", "adapter"]


@dataclass(frozen=True)
class Given:
    """An input from the command line: a stage of a run (with its `run` and `source`), a folder, or a hub id."""

    input: Input
    run: RunDir | None = None
    source: Source | None = None


def given(root: Path, wanted: str, kind: Kind, option: str) -> Given:
    """Resolve `DIR`, `RUN:STAGE`, `RUN` with one such result, or a hub id.

    Args:
        root: the folder of runs.
        wanted: the argument as typed.
        kind: the kind that the input must have.
        option: the name of the argument, for messages.

    Raises:
        OperatorError: it does not exist, or is of another kind.
    """
    folder = Path(wanted).expanduser()
    if folder.is_dir():
        return Given(Input.at(folder.absolute()))
    run_part, colon, stage = wanted.rpartition(":")
    if colon and run_part:
        return _of_stage(find_run(root, run_part), stage, kind, option)
    run = None if os.sep in wanted or folder.exists() else _run_named(root, wanted)
    if run is not None:
        return _of_run(run, kind, option)
    if kind == "model" and not folder.exists() and HUB_ID.fullmatch(wanted):
        return Given(Input(wanted))
    if folder.is_file():
        raise OperatorError(
            f"{option} — {printable(wanted, 400)} is a file",
            "quantize a GGUF file: cockpit quantize FILE; compare it: cockpit parity FILE --model DIR"
            if folder.suffix == ".gguf"
            else f"give the folder that contains it: {printable(str(folder.parent), 400)}",
        )
    raise OperatorError(
        f"{option} — no folder {printable(wanted, 400)}",
        f"give a folder with {'a model' if kind == 'model' else 'an adapter'}, or RUN:STAGE",
    )


def merge_text(root: Path, adapters: Sequence[str], model: str | None, dtype: str | None) -> OneStageRecipe:
    """The recipe of a merge of one or more adapters.

    Raises:
        OperatorError: inputs do not exist (all are reported at once); or `model` is not given, and the adapters name
            different base models or none.
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
    """Overrides of the only stage; its name is added to those without a stage, such as `field=value`."""
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
        types: file types, separated by commas.
        data: held-out text for the comparison.
        imatrix: for which file types an importance matrix is computed.
        adapter: an adapter that is merged into the model while the files are written.
        adapters: adapters that are written as GGUF adapters for the model.

    Raises:
        OperatorError: inputs do not exist; all missing adapters are reported at once.
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
    """An export of the input; `under` is the base model if the input is an adapter."""
    if taken.run is not None and taken.source is not None:
        return export_of(taken.run, taken.source, file_types, under)
    if under is not None:
        return Export(under, tuple(file_types), adapter=taken.input)
    return Export(taken.input, tuple(file_types))


def _recipe(stage: Merge | Export, of: Given) -> OneStageRecipe:
    """The recipe, named after the run's recipe or after the folder."""
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
    """The base model that all adapters name."""
    named = [(wanted, base) for wanted, item in zip(adapters, taken, strict=True) if (base := _base(item)) is not None]
    if not named:
        raise OperatorError(
            f"--model — missing, and {printable(adapters[0], 400)} does not name its base model",
            "give the base model: --model DIR",
        )
    first, base = named[0]
    for wanted, other in named[1:]:
        hashes = {base.manifest_sha256, other.manifest_sha256} - {None}
        if len(hashes) > 1 or (len(hashes) == 0 and base.text != other.text):
            raise OperatorError(
                f"--adapter — different base models: {printable(first, 200)} was trained on "
                f"{printable(base.text, 200)}, {printable(wanted, 200)} on {printable(other.text, 200)}",
                "merge adapters of one base model; if the two are the same model, give it: --model DIR",
            )
    if base.path is not None and not base.path.exists():
        raise OperatorError(
            f"--model — the base model of {printable(first, 200)} does not exist: {printable(str(base.path), 400)}",
            "create it again (cockpit resume RUN), or give its folder: cockpit merge ADAPTER --model DIR",
        )
    return base


def _base(adapter: Given) -> Input | None:
    if adapter.run is not None and adapter.source is not None:
        return base_of(adapter.run, adapter.source)
    assert adapter.input.path is not None, "an adapter is a folder"
    return base_of_folder(adapter.input.path)


def _model_or_adapter(root: Path, wanted: str) -> tuple[Given, Input | None]:
    """A model and None; or an adapter and the base model that it names."""
    folder = Path(wanted).expanduser()
    if is_adapter(folder):
        taken = given(root, wanted, "adapter", "MODEL")
        return taken, _common_base([wanted], [taken])
    try:
        return given(root, wanted, "model", "MODEL"), None
    except OperatorError:
        found, _ = _all_given(root, [wanted]) if os.sep not in wanted else ([], [])
        if not found:
            raise
    return found[0], _common_base([wanted], found)


def _run_named(root: Path, wanted: str) -> RunDir | None:
    """The run of an id, of a prefix or of `last`; None if no run has such a name.

    Raises:
        OperatorError: several runs do, or the run cannot be opened.
    """
    ids, _ = listed_runs(root)
    if not ids or (wanted != "last" and not any(name.startswith(wanted) for name in ids)):
        return None
    return find_run(root, wanted)


def _results(run: RunDir, kind: Kind) -> list[Source]:
    """The finished results of this kind in a run."""
    return [item for item in sources(run, read_now(run).state.stages) if item.kind == kind and item.step is None]


def _of_run(run: RunDir, kind: Kind, option: str) -> Given:
    """The only finished result of this kind in a run."""
    found = _results(run, kind)
    if len(found) == 1:
        return Given(found[0].input, run, found[0])
    names = ", ".join(f"{run.id}:{item.stage}" for item in found)
    raise OperatorError(
        f"{option} — {run.id} has {len(found)} finished results of the kind {kind}",
        f"name one: {names}" if found else f"give a folder with a{'n' if kind == 'adapter' else ''} {kind}",
    )


def _of_stage(run: RunDir, stage: str, kind: Kind, option: str) -> Given:
    found = _results(run, kind)
    source = next((source for source in found if source.stage == stage), None)
    if source is None:
        names = ", ".join(source.stage for source in found) or "none"
        raise OperatorError(
            f"{option} — no finished {kind} of stage {printable(stage)!r} in {run.id}; available: {names}"
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
        f"--data — no file, folder or stage {printable(wanted, 400)}",
        "give a text file, a folder of text files, the output of a prepare stage, or RUN:STAGE",
    )
