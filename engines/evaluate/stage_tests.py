"""The tests of an evaluate stage: its model, and the GGUF files of an export, answer the same rows."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from engines.context import Artifact, StageContext
from engines.data.documents import PROBE
from engines.evaluate.asking import Answerer
from engines.evaluate.gguf_files import gguf_models
from engines.evaluate.job import answers_beside
from engines.evaluate.model import LoadedModel
from engines.evaluate.results import Evaluation, evaluate_tasks, write_results
from engines.evaluate.target import Manner, answerer_of_folder, answerer_of_gguf
from engines.events.results import SampledText
from engines.files import fsync_file
from engines.judging.checks import Judges
from engines.judging.compare import Baseline, read_baseline
from engines.judging.model_judge.judge import RUBRIC, JudgeModel, ModelJudge
from engines.judging.sets.general import GENERAL, general_set
from engines.judging.task import Task, sampled
from engines.judging.test_file import read_tests
from engines.judging.unit_tests import programs_of
from engines.labels.stage_rows import rules_of
from engines.llama.drawing import DrawRules
from engines.run_dir.paths import RunDir
from engines.training.inputs import cached_folder
from engines.world import ALONE, World
from recipes.problems import OperatorError, printable
from recipes.stages.evaluate import RESULTS_JSON, EvaluateStage

_SHOWN_ROWS = 8
_SHOWN_CHARACTERS = 4_000


@dataclass(frozen=True)
class StageTests:
    """The tests of a stage, as they are before a model is asked.

    Attributes:
        file: the test file.
        tasks: its rows.
        judges: what judges answers.
        baseline: results of another model, to compare with.
    """

    file: Path
    tasks: list[Task]
    judges: Judges
    baseline: Baseline | None


def stage_tests(ctx: StageContext[EvaluateStage]) -> StageTests | None:
    """The tests of a stage; None if it has none.

    Raises:
        OperatorError: the test rows or the baseline cannot be used.
    """
    stage = ctx.stage
    if not stage.has_tests:
        return None
    judges = _judges(stage, RunDir(ctx.run_root).kept_verdicts(ctx.stage_name))
    file = _tests(ctx)
    try:
        tasks = sampled(read_tests(file, stage.checks, judges), stage.num_return_sequences)
        baseline = read_baseline(_file_in(ctx, "baseline", RESULTS_JSON)) if "baseline" in ctx.inputs else None
    except BaseException:
        judges.close()
        raise
    return StageTests(file, tasks, judges, baseline)


def run_tests(
    ctx: StageContext[EvaluateStage], loaded: LoadedModel, tests: StageTests
) -> tuple[dict[str, float], list[Artifact]]:
    """Ask the model and the files, and write a results file of each into `ctx.out`; returns metrics and artifacts.

    Several processes divide the model's answers, and the first one does the rest. Answers are kept beside the attempts,
    so that a new attempt continues. The metrics of a GGUF file end in its file type, with an adapter over it in
    `Q4_K_M+NAME`.

    Raises:
        OperatorError: a file cannot be used.
    """
    tasks, judges, baseline = tests.tasks, tests.judges, tests.baseline
    try:
        given = ctx.inputs["model"]
        folder = given.path or cached_folder(given.name)
        model = answerer_of_folder(folder, loaded, _manner(ctx, baseline))
        ctx.phase("answering")
        done = _evaluated(ctx, model, tasks, judges, baseline, ctx.world)
        if not ctx.world.is_first:
            return {}, []
        artifacts = [_write(ctx, done, given.name, tests.file, RESULTS_JSON, model)]
        metrics = dict(done.metrics)
        _show(ctx, done)
        for one in gguf_models(ctx):
            ctx.phase(f"answering with {one.name}")
            gguf = answerer_of_gguf(one.file, _manner(ctx, baseline), one.adapter)
            try:
                of_file = _evaluated(ctx, gguf, tasks, judges, baseline)
            finally:
                gguf.close()
            artifacts.append(_write(ctx, of_file, one.shown, tests.file, f"results-{one.name}.json", gguf))
            metrics |= {f"{name}.{one.name}": value for name, value in of_file.metrics.items()}
    finally:
        judges.close()
    return metrics, artifacts


def _judges(stage: EvaluateStage, kept: Path) -> Judges:
    """What judges the answers of a stage; `kept` keeps the verdicts of a judge.

    Raises:
        OperatorError: the judge at a URL cannot be asked.
    """
    model = None
    if stage.judge_url is not None:
        rubric = stage.judge_rubric or RUBRIC
        model = ModelJudge(JudgeModel(stage.judge_url, stage.judge_model, stage.judge_key_env, rubric), kept)
    programs = programs_of(stage.code_timeout_s) if stage.allow_code_execution else None
    return Judges(command=stage.judge_command, programs=programs, model=model)


def _manner(ctx: StageContext[EvaluateStage], baseline: Baseline | None) -> Manner:
    """How models are asked; a template that writes the date writes the baseline's, so that prompts are the same."""
    stage = ctx.stage
    rules = rules_of(stage, stage.max_length, ctx.first_start)
    return Manner(
        limit=stage.max_new_tokens,
        batch_size=stage.answer_batch_size,
        threads=stage.threads or len(os.sched_getaffinity(0)),
        template=rules.template,
        moment=(baseline.moment if baseline else "") or ctx.first_start,
        rules=DrawRules(stage.temperature, stage.top_p, stage.top_k, seed=stage.sampling_seed),
    )


def _tests(ctx: StageContext[EvaluateStage]) -> Path:
    """The test file."""
    if ctx.stage.tests == GENERAL:
        return general_set()
    name = PROBE if ctx.stage.tests == PROBE else ctx.stage.split
    return _file_in(ctx, "test_data", f"{name}.jsonl")


def _file_in(ctx: StageContext[EvaluateStage], field: str, name: str) -> Path:
    """The file that an input is, or the one of this name in its folder."""
    path = ctx.inputs[field].path
    if path is None:
        raise OperatorError(f"{field} — not a file or folder on this machine", "give a path, or a stage")
    found = path / name if path.is_dir() else path
    if not found.is_file():
        raise OperatorError(f"{field} — {printable(str(path), 400)} has no {name}", "give a file, or another split")
    return found


def _evaluated(
    ctx: StageContext[EvaluateStage],
    answerer: Answerer,
    tasks: list[Task],
    judges: Judges,
    baseline: Baseline | None,
    world: World = ALONE,
) -> Evaluation:
    return evaluate_tasks(
        answerer,
        tasks,
        judges,
        _answers(ctx, answerer),
        baseline=baseline,
        progress=lambda done, total: ctx.progress(done, total, "answers"),
        judging=lambda done, total: ctx.progress(done, total, "verdicts"),
        waiting=ctx.check_stop,
        world=world,
    )


def _answers(ctx: StageContext[EvaluateStage], answerer: Answerer) -> Path:
    """The file of one model's answers, outside the attempts: its name has the identity, so others stay apart."""
    return RunDir(ctx.run_root).kept_answers(ctx.stage_name, answerer.identity)


def _write(
    ctx: StageContext[EvaluateStage], done: Evaluation, model: str, tests: Path, name: str, answerer: Answerer
) -> Artifact:
    baseline = _file_in(ctx, "baseline", RESULTS_JSON) if "baseline" in ctx.inputs else None
    write_results(ctx.out / name, done, model=model, tests=tests, baseline=baseline)
    kept = answers_beside(ctx.out / name)
    shutil.copyfile(_answers(ctx, answerer), kept)
    fsync_file(kept)
    return Artifact(ctx.stage_name, "report", name)


def _show(ctx: StageContext[EvaluateStage], done: Evaluation) -> None:
    """The first answers as events, for the screen and the report."""
    for row in done.rows[:_SHOWN_ROWS]:
        ctx.emit(
            SampledText(
                stage=ctx.stage_name,
                attempt=ctx.attempt,
                step=None,
                prompt=row.task.prompt[:_SHOWN_CHARACTERS],
                text=row.kept.answer[:_SHOWN_CHARACTERS],
                expected=row.task.expected[:_SHOWN_CHARACTERS],
            )
        )
