"""`python -m engines.chatting.pairs JOB`: the answers of two models to the same prompts, as a file of pairs.

JOB is JSON; see `PairsJob`. A side is a model, whose answers are kept as they come, or a file with the answers of an
evaluation. The output is lines of JSON: `{"phase"}`, `{"warning"}`, `{"progress": {"done", "total"}}`, at the end
`{"result": {"pairs", "missing"}}`, or `{"error", "hint"}`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from engines.chatting.lines import PairsJob, Side
from engines.chatting.manners import give_way
from engines.files import file_sha256, open_regular, write_text
from engines.judging.answers import MAX_LINE_BYTES, Kept, kept_moment
from engines.judging.compare import read_results
from engines.judging.task import Task
from engines.judging.test_file import read_prompts
from engines.llama.job_lines import Send, run_job
from engines.stage_file import present_moment
from engines.words import ExitCode
from recipes.problems import OperatorError, printable


def make_pairs(job: PairsJob, send: Send) -> dict[str, int]:
    """Do the job; returns how many pairs there are, and how many prompts lack an answer.

    Raises:
        OperatorError: an input cannot be used, or no prompt has both answers.
    """
    prompts, output = Path(job.prompts), Path(job.output)
    tasks = read_prompts(prompts)
    sides = [
        _read_answers(Path(side.answers)) if side.answers else _asked(job, side, number, tasks, send)
        for number, side in enumerate(job.sides)
    ]
    pairs = [task for task in tasks if all(task.key in side for side in sides)]
    if not pairs:
        raise OperatorError(
            "no prompt has an answer of both",
            "give answers to the prompts of --prompts: the same test file that they were evaluated on",
        )
    head = {"format": 1, "prompts_sha256": file_sha256(prompts), "sides": [side.title for side in job.sides]}
    lines = [json.dumps(head)]
    for task in pairs:
        value = {"key": task.key, "messages": list(task.messages), "answers": [side[task.key] for side in sides]}
        lines.append(json.dumps(value))
    write_text(output, "\n".join(lines) + "\n")
    return {"pairs": len(pairs), "missing": len(tasks) - len(pairs)}


def _asked(job: PairsJob, side: Side, number: int, tasks: Sequence[Task], send: Send) -> dict[str, str]:
    """The answers of a model."""
    # An evaluation's loader; a side with a file of answers needs none of it.
    import torch

    from engines.evaluate.asking import ask
    from engines.evaluate.target import Manner, open_target

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    name = f"{'first' if number == 0 else 'second'} model"
    send({"phase": f"loading the {name}"})
    target = open_target(side.model, None, lambda text: send({"warning": text}))
    kept_in = Path(f"{job.output}.{number + 1}.answers.jsonl")
    manner = Manner(
        limit=job.limit,
        threads=torch.get_num_threads(),
        plain=job.plain,
        template=job.template,
        moment=kept_moment(kept_in) or present_moment(),
    )
    answerer, close = target.answerer(manner)
    try:
        send({"phase": f"the {name} answers"})
        kept = ask(answerer, tasks, kept_in, lambda done, total: send({"progress": {"done": done, "total": total}}))
    finally:
        close()
    return {task.key: one.answer for task, one in zip(tasks, kept, strict=True) if not one.problem}


def _read_answers(file: Path) -> dict[str, str]:
    """The answers of a results file, or of a file of kept answers, by the keys of their prompts."""
    name = printable(str(file), 400)
    hint = "give the file that cockpit evaluate --output wrote, or the .answers.jsonl beside it"
    try:
        found = _kept(file) if file.suffix == ".jsonl" else _results(file)
    except (OSError, ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise OperatorError(f"{name} is not a file of answers: {printable(str(error), 200)}", hint) from error
    if not found or not all(isinstance(key, str) and isinstance(text, str) for key, text in found.items()):
        raise OperatorError(f"{name} has no answers", hint)
    return found


def _results(file: Path) -> dict[str, str]:
    rows: list[dict[str, Any]] = read_results(file)["rows"]
    return {row["key"]: row["answer"] for row in rows}


def _kept(file: Path) -> dict[str, str]:
    found = {}
    with open_regular(file) as lines:
        first = True
        while line := lines.readline(MAX_LINE_BYTES):
            if first or not line.endswith(b"\n"):
                first = False
                continue
            one = msgspec.json.decode(line, type=Kept)
            if not one.problem:
                found[one.key] = one.answer
    return found


def _work(text: str, send: Send) -> ExitCode:
    give_way()
    send({"result": make_pairs(msgspec.json.decode(text, type=PairsJob), send)})
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(run_job(sys.argv, _work))
