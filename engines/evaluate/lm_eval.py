"""Standard tasks by the program lm_eval, in its own process and interpreter: its metrics as those of the stage.

The program loads the model itself. Its results are kept as it wrote them, `lm_eval.json` in the output.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.artifacts.adapter_folder import is_adapter
from engines.context import Artifact, StageContext, StageFailedError, StageResult
from engines.evaluate.model import base_of
from engines.events.attempts import ProgramUsed
from engines.files import fsync_file, open_regular
from engines.json_text import read_json
from engines.training.inputs import cached_folder
from recipes.problems import OperatorError, printable
from recipes.stages.evaluate import HOW_TO_HAVE_LM_EVAL, EvaluateStage

LM_EVAL_JSON = "lm_eval.json"
MAX_RESULTS_BYTES = 256 * 1024 * 1024
_VERSION = "from importlib.metadata import version; print(version('lm_eval'))"
_LOOK_S = 0.2
_TIMEOUT_S = 60.0
_LOG_BYTES = 16_384
_NO_FILTER = "none"
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def run_lm_eval(ctx: StageContext[EvaluateStage]) -> StageResult:
    """Run the tasks; nothing without tasks.

    Raises:
        OperatorError: lm_eval is not installed, or the model is not on this machine.
        StageFailedError: the program failed, or wrote no results.
    """
    stage = ctx.stage
    if not stage.lm_eval_tasks:
        return StageResult()
    ctx.phase("lm_eval")
    work = ctx.work / "lm_eval"
    work.mkdir()
    python = stage.lm_eval_python or sys.executable  # of the engine, which is the stage's
    argv = command(stage, python, _model_args(ctx, work))
    ctx.emit(
        ProgramUsed(stage=ctx.stage_name, attempt=ctx.attempt, program="lm_eval", version=version_in(python), argv=argv)
    )
    _run(ctx, argv, work)
    found = next(iter(sorted((work / "results").rglob("results*.json"))), None)
    if found is None:
        raise StageFailedError("lm_eval wrote no results")
    try:
        metrics = metrics_of(read_json(found, MAX_RESULTS_BYTES))
    except (OSError, ValueError) as error:
        raise StageFailedError(f"the results of lm_eval cannot be read: {printable(str(error), 200)}") from error
    shutil.copyfile(found, ctx.out / LM_EVAL_JSON)
    fsync_file(ctx.out / LM_EVAL_JSON)
    return StageResult(metrics, [Artifact(ctx.stage_name, "report", LM_EVAL_JSON)])


def command(stage: EvaluateStage, python: str, model_args: Mapping[str, str]) -> list[str]:
    """The program's command, relative to its folder."""
    argv = [python, "-m", "lm_eval", "--model", "hf"]
    argv += ["--model_args", ",".join(f"{name}={value}" for name, value in model_args.items())]
    argv += ["--tasks", ",".join(stage.lm_eval_tasks), "--batch_size", str(stage.per_device_eval_batch_size)]
    argv += ["--output_path", "results"]
    if stage.lm_eval_include_path is not None:
        argv += ["--include_path", str(Path(stage.lm_eval_include_path).absolute())]
    if stage.lm_eval_num_fewshot is not None:
        argv += ["--num_fewshot", str(stage.lm_eval_num_fewshot)]
    if stage.lm_eval_limit is not None:
        argv += ["--limit", str(stage.lm_eval_limit)]
    return [*argv, "--apply_chat_template"] if stage.lm_eval_chat_template else argv


def version_in(python: str) -> str:
    """The version of lm_eval in an interpreter.

    Raises:
        OperatorError: it is not installed there.
    """
    try:
        answer = subprocess.run(
            [python, "-c", _VERSION], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True, env=environment()
        )
    except (OSError, subprocess.SubprocessError) as error:
        what = f"lm_eval_tasks — lm_eval is not installed in {printable(python, 200)}"
        raise OperatorError(what, HOW_TO_HAVE_LM_EVAL) from error
    return printable(answer.stdout.strip(), 60)


def environment() -> dict[str, str]:
    """The environment of the program: that of the engine, without Cockpit's own modules."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **kept}


def metrics_of(results: Any) -> dict[str, float]:
    """The numbers of each task: `lm_eval.TASK.METRIC`, with `.FILTER` behind it where the program has several.

    Raises:
        ValueError: no task has one.
    """
    tasks = results.get("results") if isinstance(results, dict) else None
    found = {}
    for task, values in tasks.items() if isinstance(tasks, dict) else ():
        for key, value in values.items() if isinstance(values, dict) else ():
            metric, comma, kind = key.partition(",")
            if comma and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                found[f"lm_eval.{task}.{metric}" + ("" if kind == _NO_FILTER else f".{kind}")] = float(value)
    if not found:
        raise ValueError("no task has a number")
    return found


def _model_args(ctx: StageContext[EvaluateStage], work: Path) -> dict[str, str]:
    """What the program loads, by links in its folder: a comma in a path would end an argument of it."""
    given = ctx.inputs["model"]
    folder = given.path or cached_folder(given.name)
    args = {"pretrained": "./model", "dtype": ctx.stage.dtype}
    if is_adapter(folder):
        (work / "adapter").symlink_to(folder.absolute())
        args["peft"] = "./adapter"
        folder = base_of(folder)
        if ctx.stage.load_in_4bit:
            args["load_in_4bit"] = "True"
    (work / "model").symlink_to(folder.absolute())
    return args


def _run(ctx: StageContext[EvaluateStage], argv: list[str], work: Path) -> None:
    log = work / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, cwd=work, env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        while process.poll() is None:
            ctx.check_stop()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_S)
    finally:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        sys.stderr.write(_end_of(log))
    if process.returncode != 0:
        lines = [line for line in _end_of(log).splitlines() if line.strip()]
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
        last = printable(lines[-1].strip(), 300) if lines else "it printed nothing"
        raise StageFailedError(f"lm_eval ended with {how}: {last}")


def _end_of(log: Path) -> str:
    """The last lines of a log, each as it was drawn last."""
    with open_regular(log) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
        data = file.read().decode(errors="replace")
    return "\n".join(_COLOURS.sub("", line.rpartition("\r")[2]) for line in data.splitlines()) + "\n"
