"""`python -m engines.evaluate.job JOB`: asks one model the tasks of a test file, and writes a results file.

JOB is JSON; see `Job`. Each line of the output is a JSON object: `{"phase"}`, `{"warning"}`, `{"progress": {"done",
"total"}}`, at the end `{"result"}` (the results file without its rows that did not change), or `{"error", "hint"}`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.evaluate.results import Evaluation, evaluate_tasks, write_results
from engines.evaluate.target import Manner, open_target
from engines.files import read_regular_text
from engines.judging.checks import Judges
from engines.judging.compare import read_baseline
from engines.judging.test_file import read_tests
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
        tests: the test file.
        output: the results file to write; the answers are kept beside it.
        baseline: a results file to compare with.
        checks: checks of rows that name none.
        command: the operator's program for the check `command`.
        limit: most new tokens of an answer.
        batch_size: prompts that are answered together.
        threads: CPU threads; None for those that torch finds.
        chat_template: a file with a chat template.
        plain: prompts are texts to continue.
    """

    model: str
    adapter: str | None
    tests: str
    output: str
    baseline: str | None
    checks: list[str]
    command: list[str]
    limit: int
    batch_size: int
    threads: int | None
    chat_template: str | None
    plain: bool


def answers_beside(output: Path) -> Path:
    """The file of kept answers of a results file."""
    return output.with_name(f"{output.name}.answers.jsonl")


def evaluate(job: Job, send: Send) -> dict[str, Any]:
    """Do the job; returns the result line.

    Raises:
        OperatorError: an input cannot be used.
    """
    import torch

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    judges = Judges(command=job.command)
    tests, output = Path(job.tests), Path(job.output)
    try:
        tasks = read_tests(tests, job.checks, judges)
        baseline = read_baseline(Path(job.baseline)) if job.baseline else None
        manner = Manner(
            limit=job.limit,
            batch_size=job.batch_size,
            threads=torch.get_num_threads(),
            template=_template(job.chat_template),
            plain=job.plain,
            moment=present_moment(),
        )
        adapter = Path(job.adapter) if job.adapter else None
        send({"phase": "loading"})
        answerer, close = open_target(job.model, adapter, manner, lambda text: send({"warning": text}))
        try:
            send({"phase": "answering"})
            done = evaluate_tasks(
                answerer,
                tasks,
                judges,
                answers_beside(output),
                baseline=baseline,
                progress=lambda done, total: send({"progress": {"done": done, "total": total}}),
            )
        finally:
            close()
    finally:
        judges.close()
    written = write_results(output, done, model=job.model, tests=tests)
    return {**{key: value for key, value in written.items() if key != "rows"}, **_shown(done)}


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
