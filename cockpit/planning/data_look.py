"""Look at the data of a recipe's stages before a run is made: rows, tokens, defects, steps. In a helper process.

The helper is the stage's own interpreter, with the model's own tokenizer. It reads data that exists now; the output of
a stage of the recipe does not.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engines.artifacts.adapter_folder import ADAPTER_CONFIG, BASE_JSON, is_adapter
from engines.inputs.code_or_rows import asks_about_code
from engines.inputs.command import missing_of_command
from engines.inputs.data_place import place_of
from engines.inputs.hub_cache import cached_model
from engines.json_text import read_object
from engines.look.answer import Defect, Job, Request, StageLook
from recipes import quantities
from recipes.graph import Reference
from recipes.load import LoadedRecipe
from recipes.problems import OperatorError, Problem, printable
from recipes.stages.data_fields import ReadFields
from recipes.stages.fields import StageFields
from recipes.stages.finetune import FinetuneFields
from recipes.stages.launch.fields import interpreter_here
from recipes.stages.merge import MergeStage
from recipes.stages.prepare import PrepareMessages

LABEL_S, READ_S = 15.0, 30.0
"""Seconds in which rows of a stage are labelled, and read; larger data is examined in part, and that is reported."""
_STARTS_S = 30.0
"""Seconds that a helper may take for all else."""
_LOOK_S = 0.1
_SHOWN = 3
"""Rows that are shown for each reason."""
_ROOT = Path(__file__).resolve().parents[2]

Stopped = Callable[[], bool]


def look_at_data(loaded: LoadedRecipe, stopped: Stopped = lambda: False) -> dict[str, StageLook]:
    """What each stage will read, by the stage's name; without the stages whose data does not exist yet.

    Args:
        loaded: a recipe without problems.
        stopped: called now and then; True ends the helper, and the looks are incomplete.
    """
    found: dict[str, StageLook] = {}
    jobs: dict[str, list[Job]] = {}
    for number, stage in enumerate(loaded.recipe.stage):
        if not isinstance(stage, ReadFields):
            continue
        if isinstance(stage, PrepareMessages) and stage.command:
            found.update(_look_at_command(stage))
            continue
        try:
            job = _job(loaded, number, stage)
        except OperatorError as error:
            found[stage.name] = StageLook(stage.name, defects=[Defect("data", error.message, error.hint)])
            continue
        if job is not None:
            jobs.setdefault(interpreter_here(stage), []).append(job)
    for python, some in jobs.items():
        for look in _answers(python, some, stopped):
            found[look.stage] = look
    return found


def _look_at_command(stage: PrepareMessages) -> dict[str, StageLook]:
    """The defect of a command that cannot run here; its data is not known before it ran."""
    folder = Path(stage.command_folder or ".")
    if not folder.is_dir():
        defect = Defect("command_folder", f"{folder} is not a folder", "name the folder that the command runs in")
    elif missing := missing_of_command(stage.command, folder, own_python=stage.python is None):
        defect = Defect("command", missing, "relative paths begin at command_folder, by default the recipe's folder")
    else:
        return {}
    return {stage.name: StageLook(stage.name, defects=[defect])}


def data_problems(loaded: LoadedRecipe, looks: Mapping[str, StageLook]) -> list[Problem]:
    """The defects that looks found, each at the line of the field that names the data or the model."""
    problems = []
    for look in looks.values():
        more = [Defect("data", f"and {look.more_defects} more rows")] if look.more_defects else []
        for defect in [*_few_of_a_kind(look.defects), *more]:
            line = loaded.line_of(look.stage, defect.field)
            words, hint = printable(defect.message, 1000), printable(defect.hint, 600)
            problems.append(Problem(loaded.path, line, f"{look.stage}.{defect.field}", words, hint=hint))
    return problems


def _few_of_a_kind(defects: Sequence[Defect]) -> list[Defect]:
    """The first rows of each reason, and the places of the others in one line."""
    by_reason: dict[tuple[str, str, str], list[Defect]] = {}
    for defect in defects:
        _, _, reason = defect.message.partition(": ")
        by_reason.setdefault((defect.field, reason or defect.message, defect.hint), []).append(defect)
    found: list[Defect] = []
    for (field, _, _), same in by_reason.items():
        found += same[:_SHOWN]
        if len(same) > _SHOWN:
            places = ", ".join(Path(one.message.partition(": ")[0]).name for one in same[_SHOWN:])
            found.append(Defect(field, f"{len(same) - _SHOWN} more rows for the same reason: {printable(places, 300)}"))
    return found


def helper_environment() -> dict[str, str]:
    """The environment of a process that looks: Cockpit's modules, and no hub."""
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}


def data_of(reference: Reference | None) -> Path | None:
    """Where the rows of an input are; None if a stage has yet to write them.

    Raises:
        OperatorError: the dataset is not in the local hub cache.
    """
    if reference is None or (reference.path is None and reference.origin != "hub"):
        return None
    return place_of(reference.path, reference.name)


@dataclass(frozen=True)
class RowsPlace:
    """Where the rows of a stage come from: `data`; with `prepare`, the output of that stage for `data`."""

    data: Path
    prepare: dict[str, Any] | None = None


def rows_place(loaded: LoadedRecipe, reference: Reference | None) -> RowsPlace | None:
    """Where the rows of an input come from; None if that is not known before the recipe runs.

    A prepare stage that divides rows is known by its data. A command's output is not.

    Raises:
        OperatorError: a dataset is not in the local hub cache.
    """
    if reference is None or reference.origin != "stage":
        data = data_of(reference)
        return None if data is None else RowsPlace(data)
    number = next(n for n, stage in enumerate(loaded.recipe.stage) if stage.name == reference.name)
    stage = loaded.recipe.stage[number]
    if not isinstance(stage, PrepareMessages) or stage.command:
        return None
    data = data_of(loaded.graph.inputs[stage.name].get("data"))
    if data is None or asks_about_code(stage, data):
        return None
    return RowsPlace(data, loaded.resolved["stage"][number])


def through_stages(loaded: LoadedRecipe, reference: Reference | None) -> Reference | None:
    """The model whose tokenizer a stage's model will have, through merges and trainings that keep it."""
    by_name = {stage.name: stage for stage in loaded.recipe.stage}
    while reference is not None and reference.origin == "stage":
        stage = by_name[reference.name]
        keeps = isinstance(stage, MergeStage) or (isinstance(stage, FinetuneFields) and not stage.chat_template)
        reference = loaded.graph.inputs[stage.name].get("model") if keeps else None
    return reference


def tokenizer_of(reference: Reference | None) -> Path | None:
    """The folder with the tokenizer of a stage's model; None if it does not exist yet."""
    if reference is None:
        return None
    folder = reference.path or (cached_model(reference.name) if reference.origin == "hub" else None)
    if folder is None or not is_adapter(folder) or (folder / "tokenizer.json").is_file():
        return folder
    return _base_of(folder)


def _base_of(adapter: Path) -> Path | None:
    """The base model's folder of an adapter that has no tokenizer of its own."""
    try:
        own = (adapter / BASE_JSON).is_file()
        name = read_object(adapter / (BASE_JSON if own else ADAPTER_CONFIG))
        given = name.get("path" if own else "base_model_name_or_path")
    except OperatorError:
        return None
    if not isinstance(given, str) or not given:
        return None
    return Path(given) if Path(given).is_dir() else cached_model(given)


def _job(loaded: LoadedRecipe, number: int, stage: StageFields) -> Job | None:
    refs = loaded.graph.inputs[stage.name]
    place = rows_place(loaded, refs.get("data"))
    if place is None or (isinstance(stage, PrepareMessages) and asks_about_code(stage, place.data)):
        return None
    model = tokenizer_of(through_stages(loaded, refs.get("model")))
    return Job(loaded.resolved["stage"][number], str(place.data), None if model is None else str(model), place.prepare)


def _answers(python: str, jobs: list[Job], stopped: Stopped) -> list[StageLook]:
    """The helper's looks; a look with a warning for each job that it could not answer."""
    with tempfile.TemporaryDirectory(prefix="cockpit-look-") as scratch:
        request = msgspec.json.encode(Request(jobs, LABEL_S, READ_S, scratch))
        try:
            output, why = _run(python, request, _STARTS_S + 2 * READ_S * len(jobs), stopped)
        except OSError as error:
            output, why = b"", str(error)
        output = output.replace(f"{scratch}{os.sep}".encode(), b"")
    found = []
    for line in output.splitlines():
        try:
            found.append(msgspec.json.decode(line, type=StageLook))
        except msgspec.MsgspecError:
            break
    done = {look.stage for look in found}
    warning = f"the data could not be examined before the start: {printable(why or 'no answer', 300)}"
    return found + [StageLook(name, warnings=[warning]) for job in jobs if (name := job.stage["name"]) not in done]


def _run(python: str, request: bytes, patience_s: float, stopped: Stopped) -> tuple[bytes, str]:
    """A helper's output, and why it is incomplete; empty for a complete one."""
    process = subprocess.Popen(
        [python, "-m", "engines.look"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=helper_environment(),
    )
    waited_s = 0.0
    given: bytes | None = request
    why = ""
    while True:
        try:
            output, errors = process.communicate(given, timeout=_LOOK_S)
        except subprocess.TimeoutExpired:
            waited_s, given = waited_s + _LOOK_S, None
            if stopped() or waited_s >= patience_s:
                why = "it was ended" if stopped() else f"it took longer than {quantities.duration(patience_s)}"
                process.kill()
            continue
        last = errors.decode(errors="replace").strip().splitlines()[-1:] if process.returncode else []
        return output, why or (last[0] if last else "")
