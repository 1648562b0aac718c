"""`python -m engines.evaluate.job JOB`: scores one model on data, asks it the tasks of a test file, writes results.

JOB is JSON; see `Job`. Each line of the output is a JSON object: `{"phase"}`, `{"warning"}`, `{"progress": {"done",
"total", "unit"}}`, at the end `{"result"}` (the results file without its rows that did not change), or `{"error",
"hint"}`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.evaluate.evaluate import Score
from engines.evaluate.loss_job import LossData, LossFile, loss_of_file, loss_of_folder, metrics_of
from engines.evaluate.results import Evaluation, evaluate_tasks, write_results
from engines.evaluate.target import Manner, Target, open_target
from engines.files import read_regular_text
from engines.judging.answers import kept_moment
from engines.judging.checks import Judges
from engines.judging.compare import Baseline, read_baseline
from engines.judging.model_judge.judge import JudgeModel, ModelJudge
from engines.judging.task import Task, sampled
from engines.judging.test_file import read_tests
from engines.judging.unit_tests import programs_of
from engines.llama.drawing import DrawRules
from engines.llama.job_lines import Send, run_job
from engines.stage_file import present_moment
from engines.words import ExitCode
from recipes.problems import OperatorError, printable

SHOWN_ROWS = 20
"""Changed or failed rows in the result line; the results file has all."""


@dataclass(frozen=True)
class Job:
    """What to evaluate.

    Attributes:
        model: a folder, a GGUF file or a hub id.
        adapter: a GGUF adapter over a GGUF file.
        tests: the test file; None without tests.
        output: the results file to write; the answers are kept beside it.
        baseline: a results file to compare with.
        checks: checks of rows that name none.
        command: the operator's program for the check `command`.
        limit: most new tokens of an answer.
        batch_size: prompts that are answered together.
        threads: CPU threads; None for those that torch finds.
        chat_template: a file with a chat template.
        plain: prompts are texts to continue.
        load_in_4bit: load the base model of an adapter in 4 bits, as its training did.
        data: rows, texts or tokens for loss and perplexity; None without them.
        tokenizer: the folder of the model from which a GGUF file was made.
        max_length: tokens of the longest row of `data`.
        max_tokens: scored tokens after which no more rows are taken.
        explain: say where answers first differ from the baseline's, and how close the two tokens were.
        dtype: type of the weights of a folder; auto for the one that its files have.
        allow_code_execution: run the code of answers against unit tests, in the sandbox.
        code_timeout_s: processor seconds of each such program.
        judge: the model at a URL for the check `judge`, as the arguments of `JudgeModel`; None without one.
        sampling: the fields of `DrawRules`; None for greedy answers.
        num_return_sequences: answers to each prompt.
    """

    model: str
    adapter: str | None
    tests: str | None
    output: str
    baseline: str | None
    checks: list[str]
    command: list[str]
    limit: int
    batch_size: int
    threads: int | None
    chat_template: str | None
    plain: bool
    dtype: str = "auto"
    load_in_4bit: bool = False
    explain: bool = False
    data: str | None = None
    tokenizer: str | None = None
    max_length: int = 512
    max_tokens: int = 200_000
    allow_code_execution: bool = False
    code_timeout_s: int = 10
    judge: dict[str, Any] | None = None
    sampling: dict[str, Any] | None = None
    num_return_sequences: int = 1


def answers_beside(output: Path) -> Path:
    """The file of kept answers of a results file."""
    return output.with_name(f"{output.name}.answers.jsonl")


def verdicts_beside(output: Path) -> Path:
    """The file of a judge's kept verdicts of a results file."""
    return output.with_name(f"{output.name}.verdicts.jsonl")


def evaluate(job: Job, send: Send) -> dict[str, Any]:
    """Do the job; returns the result line.

    Raises:
        OperatorError: an input cannot be used.
    """
    import torch

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    programs = programs_of(job.code_timeout_s) if job.allow_code_execution else None
    output, tests = Path(job.output), Path(job.tests) if job.tests else None
    model = ModelJudge(JudgeModel(**job.judge), verdicts_beside(output)) if job.judge else None
    judges = Judges(command=job.command, programs=programs, model=model)
    try:
        tasks = sampled(read_tests(tests, job.checks, judges), job.num_return_sequences) if tests else []
        baseline = read_baseline(Path(job.baseline)) if job.baseline else None
        moment = kept_moment(answers_beside(output)) or (baseline.moment if baseline else "") or present_moment()
        manner = Manner(
            limit=job.limit,
            batch_size=job.batch_size,
            threads=torch.get_num_threads(),
            template=_template(job.chat_template),
            plain=job.plain,
            moment=moment,
            rules=DrawRules(**(job.sampling or {})),
        )
        send({"phase": "loading"})
        adapter = Path(job.adapter) if job.adapter else None
        target = open_target(
            job.model,
            adapter,
            lambda text: send({"warning": text}),
            dtype=job.dtype,
            load_in_4bit=job.load_in_4bit,
        )
        found = _scored(job, target, manner, send) if job.data else None
        done = _answered(job, target, manner, tasks, judges, baseline, send) if tasks else Evaluation([], {}, {})
    finally:
        judges.close()
    if found is not None:
        protocol = {**(done.protocol or target.identity()), "loss": found.protocol}
        done = replace(done, metrics={**metrics_of(found), **done.metrics}, protocol=protocol)
    written = write_results(
        output, done, model=job.model, tests=tests, baseline=Path(job.baseline) if job.baseline else None
    )
    return {**{key: value for key, value in written.items() if key != "rows"}, **_shown(done)}


def _scored(job: Job, target: Target, manner: Manner, send: Send) -> Score:
    """Loss and perplexity on `data`."""
    send({"phase": "scoring"})
    assert job.data is not None
    data = LossData(
        place=Path(job.data),
        max_length=job.max_length,
        max_tokens=job.max_tokens,
        batch_size=job.batch_size,
        template=manner.template,
        moment=manner.moment,
    )

    def warn(text: str) -> None:
        send({"warning": text})

    def progress(done: int, total: int) -> None:
        send({"progress": {"done": done, "total": total, "unit": "tokens"}})

    if target.loaded is not None:
        return loss_of_folder(target.loaded, data, warn, progress)
    tokenizer = Path(job.tokenizer) if job.tokenizer else None
    return loss_of_file(LossFile(target.place, target.adapter, tokenizer, manner.threads), data, warn, progress)


def _answered(
    job: Job,
    target: Target,
    manner: Manner,
    tasks: list[Task],
    judges: Judges,
    baseline: Baseline | None,
    send: Send,
) -> Evaluation:
    answerer, close = target.answerer(manner)
    try:
        send({"phase": "answering"})
        return evaluate_tasks(
            answerer,
            tasks,
            judges,
            answers_beside(Path(job.output)),
            baseline=baseline,
            explain=job.explain,
            progress=lambda done, total: send({"progress": {"done": done, "total": total, "unit": "answers"}}),
            judging=lambda done, total: send({"progress": {"done": done, "total": total, "unit": "verdicts"}}),
        )
    finally:
        close()


def _shown(done: Evaluation) -> dict[str, Any]:
    """The rows that a reader looks at first: lost and won against a baseline, else those that failed."""
    by_key = {row.task.key: row for row in done.rows}
    if done.comparison is None:
        keys = {"failed": [row.task.key for row in done.rows if not row.passed]}
    else:
        keys = {"lost": done.comparison.lost, "won": done.comparison.won}
    return {
        "shown": {name: [_line(by_key[key]) for key in listed[:SHOWN_ROWS]] for name, listed in keys.items()},
        "counts": {name: len(listed) for name, listed in keys.items()},
    }


def _line(row: Any) -> dict[str, str]:
    reason = next((one.reason for one in row.verdicts if not one.passed), "")
    return {"where": row.task.name or row.task.where.rpartition("/")[2], "reason": reason}


def _template(file: str | None) -> str:
    if file is None:
        return ""
    try:
        return read_regular_text(Path(file), 1 << 20)
    except (OSError, ValueError) as error:
        name = printable(file, 400)
        raise OperatorError(f"--chat-template — {name} cannot be read: {printable(str(error), 200)}") from error


def _work(text: str, send: Send) -> ExitCode:
    send({"result": evaluate(Job(**json.loads(text)), send)})
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(run_job(sys.argv, _work))
