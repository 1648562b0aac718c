"""The model that MODEL names on the command line: a folder, a file, a stage of a run, a run's result, or a hub id."""

from __future__ import annotations

from pathlib import Path

from cockpit.one_stage.sources import sources
from cockpit.runs.find import find_run
from cockpit.runs.reader import read_now
from engines.artifacts.adapter_folder import is_adapter
from engines.artifacts.sharded import refuse_shards
from engines.run_dir.paths import RunDir
from recipes.problems import OperatorError, printable

GGUF = ".gguf"
LAST = "last"
MODEL_HELP = (
    "a model or adapter folder, a GGUF file, RUN:STAGE, RUN (its newest result), or the id of a model in the hub cache"
)


def model_place(given: str, runs: Path) -> str:
    """The path of a model, or the id of one in the hub cache.

    Args:
        given: MODEL as typed.
        runs: the folder of the runs.

    Raises:
        OperatorError: nothing has this name, or it is not one model.
    """
    path = Path(given).expanduser()
    if path.exists():
        return str(_one_file(path.absolute()))
    run_part, colon, stage = given.rpartition(":")
    if colon and run_part and "/" not in stage:
        out = find_run(runs, run_part).out(stage)
        if not out.is_dir():
            raise OperatorError(f"{printable(given)} has no finished output", f"see: cockpit show {run_part}")
        return str(_one_file(out))
    if path.suffix == GGUF or given.startswith((".", "/", "~")):
        raise OperatorError(f"MODEL — no file or folder {printable(str(path), 400)}")
    run = None if "/" in given else _run_named(given, runs)
    return str(given) if run is None else str(newest_result(run))


def newest_result(run: RunDir) -> Path:
    """The folder of the last model or adapter that a run has finished.

    Raises:
        OperatorError: it has none.
    """
    finished = [source.path for source in sources(run, read_now(run).state.stages) if source.step is None]
    if not finished:
        raise OperatorError(f"{run.id} has no finished model", f"name a stage, or see: cockpit show {run.id}")
    return finished[0]


def _run_named(given: str, runs: Path) -> RunDir | None:
    try:
        return find_run(runs, given)
    except OperatorError:
        if given == LAST:
            raise
        return None  # a hub id may have no slash


def _one_file(path: Path) -> Path:
    """The path itself; for a folder that an export wrote, its GGUF file.

    Raises:
        OperatorError: there are several, or the folder is a checkpoint in shards.
    """
    refuse_shards(path)
    if not path.is_dir() or is_adapter(path) or (path / "config.json").exists():
        return path
    files = sorted(path.glob(f"*{GGUF}"))
    if len(files) > 1:
        names = ", ".join(printable(file.name, 100) for file in files[:8])
        raise OperatorError(
            f"MODEL — {printable(str(path), 400)} has {len(files)} GGUF files: {names}", "name one of them"
        )
    return files[0] if files else path
