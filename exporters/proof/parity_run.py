"""`python -m exporters.proof.parity_run JOB`: compares GGUF files, in llama.cpp and any other runtime, with a model's
fixture.

JOB is JSON; see `Job`. Each line of the output is a JSON object: `{"phase"}`, `{"progress"}`, `{"warning"}`, one
`{"file"}` per file, and at the end `{"result"}`, or `{"error", "hint"}`. The exit code is 0 if everything agrees, else
1.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.files import file_sha256, write_text
from engines.llama.gguf_file import BY_ID, read_gguf
from engines.llama.job_lines import Send, run_job
from engines.words import ExitCode
from exporters.process.room import default_threads
from exporters.proof.fixture import Fixture, Prompt, load_fixture
from exporters.proof.model_parity import ModelCheck, check_model
from exporters.proof.runner import ForeignRuntime, LlamaRuntime, RunnerError, Runtime
from exporters.proof.runner_check import LOOSE_GAP, STRICT_GAP, Agreement, agree
from recipes import quantities
from recipes.problems import OperatorError, printable
from recipes.stages.export import ByteProof

_EXACT = frozenset({"F32", "F16"})


@dataclass(frozen=True)
class Job:
    """What to compare.

    Attributes:
        fixture: the fixture file; None to make one from `model`.
        model: the Hugging Face folder of the files' model.
        files: GGUF files.
        runner: command of another runtime; None for llama.cpp alone.
        timeout_s: for one prompt in the other runtime.
        threads: CPU threads of transformers and llama.cpp.
        positions: token positions compared with `model`.
        data: held-out text for them; None for Python's standard library.
        byte_proof: which rows of every tensor are compared with `model` byte for byte.
        save: where to write the fixture.
        imatrix: the importance matrix that the files were quantized with.
    """

    fixture: Path | None
    model: Path | None
    files: list[Path]
    runner: str | None
    timeout_s: float
    threads: int
    positions: int
    data: Path | None
    save: Path | None
    byte_proof: ByteProof = "all"
    imatrix: Path | None = None


def compare_runtimes(job: Job, send: Send) -> dict[str, Any]:
    """Run the job and return the report.

    Raises:
        OperatorError: the job is invalid, or a file cannot be read.
        NativeError: llama.cpp cannot load a file.
    """
    foreign = ForeignRuntime(job.runner, job.timeout_s) if job.runner is not None else None
    exact = {path: _is_exact(path) for path in job.files}
    report: dict[str, Any] = {"format": 1, "runner": job.runner, "files": []}
    checks: dict[Path, ModelCheck] = {}
    if job.model is not None:
        with tempfile.TemporaryDirectory(prefix="cockpit-parity-") as work:
            fixture, checks = check_model(
                job.model,
                job.files,
                Path(work),
                send,
                positions=job.positions,
                data=job.data,
                threads=job.threads,
                rows=job.byte_proof,
                imatrix=job.imatrix,
            )
        report["model"] = fixture.model
    else:
        assert job.fixture is not None
        fixture = load_fixture(job.fixture)
        report |= {"fixture": str(job.fixture), "model": fixture.model}
    if job.save is not None:
        write_text(job.save, fixture.as_json())
    llama = LlamaRuntime(job.threads)
    try:
        for path in job.files:
            send({"phase": f"comparing {path.name}"})
            runs = path not in checks or checks[path].tokens is not None
            record = (
                _compare_file(path, fixture, llama, foreign, exact=exact[path])
                if runs
                else _no_answers(path, exact[path])
            )
            if path in checks:
                record |= checks[path].record()
                record["problems"] = [*checks[path].problems, *record["problems"]]
            record["passed"] = not record["problems"]
            report["files"].append(record)
            send({"file": record})
    finally:
        llama.close()
    report["passed"] = all(record["passed"] for record in report["files"])
    return report


def _no_answers(path: Path, exact: bool) -> dict[str, Any]:
    """The record of a file that llama.cpp cannot run."""
    return {"file": path.name, "path": str(path), "exact": exact, "runtimes": [], "problems": []}


def _is_exact(path: Path) -> bool:
    """Whether every matrix of a file is F32 or F16.

    Raises:
        OperatorError: a tensor has a type that cannot be read here.
    """
    tensors = read_gguf(path).tensors.values()
    unknown = [tensor for tensor in tensors if tensor.kind is None]
    if unknown:
        first = unknown[0]
        raise OperatorError(
            f"{path}: {len(unknown)} tensors have types that this version cannot read; "
            f"{printable(first.name, 200)} has type {first.type_id}; allowed "
            f"{', '.join(kind.name for kind in BY_ID.values())}",
            "install a newer Cockpit, or compare a file of another type",
        )
    return all(tensor.kind is not None and tensor.kind.name in _EXACT for tensor in tensors if tensor.matrix)


def _compare_file(
    path: Path, fixture: Fixture, llama: LlamaRuntime, foreign: ForeignRuntime | None, *, exact: bool
) -> dict[str, Any]:
    problems = _check_identity(path, fixture)
    record: dict[str, Any] = {"file": path.name, "path": str(path), "exact": exact, "runtimes": []}
    own = [llama.answered_prompt(path, prompt, fixture) for prompt in fixture.prompts]
    result = _compare_answers(llama, path, fixture, fixture.prompts, STRICT_GAP)
    record["runtimes"].append({**result, "against": "transformers", "judged": exact})
    problems += _problems(result, "transformers") if exact else []
    if foreign is not None:
        reference, name = (fixture.prompts, "transformers") if exact else (own, "llama.cpp")
        result = _compare_answers(foreign, path, fixture, reference, STRICT_GAP if exact else LOOSE_GAP)
        record["runtimes"].append({**result, "against": name, "judged": True})
        problems += _problems(result, name)
    return {**record, "problems": problems}


def _check_identity(path: Path, fixture: Fixture) -> list[str]:
    known = next((item for item in fixture.files if item["file"] == path.name), None)
    if known is None or known.get("sha256") == file_sha256(path):
        return []
    return [f"{path.name} is not the file that the fixture was written with: its SHA-256 differs"]


def _compare_answers(
    runtime: Runtime, path: Path, fixture: Fixture, prompts: list[Prompt], tie_gap: float
) -> dict[str, Any]:
    stops, limit = fixture.protocol["stops"], int(fixture.protocol["limit"])
    agreements: list[Agreement] = []
    seconds, failures = 0.0, []
    for number, prompt in enumerate(prompts):
        try:
            answer = runtime.answer(path, prompt, fixture)
        except RunnerError as error:
            failures.append(f"prompt {number + 1}: {error}")
            continue
        seconds += answer.seconds
        agreements.append(agree(prompt, answer, stops, limit, tie_gap))
    deltas = [item.max_delta for item in agreements if item.max_delta is not None]
    return {
        "runtime": runtime.name,
        "tie_gap": tie_gap,
        "prompts": len(prompts),
        "tokens": sum(len(prompt.greedy_ids) for prompt in prompts),
        "equal": sum(item.equal for item in agreements),
        "max_delta": max(deltas) if deltas else None,
        "seconds": seconds,
        "failures": failures,
        "agreements": [item.record() for item in agreements],
    }


def _problems(result: dict[str, Any], reference: str) -> list[str]:
    name = result["runtime"]
    problems = [f"{name}: {text}" for text in result["failures"]]
    for number, item in enumerate(result["agreements"]):
        if item["passed"]:
            continue
        found = item["difference"]
        if found is None:
            problems.append(f"{name}: prompt {number + 1} has log-probabilities that are not finite")
            continue
        gap = "more than the kept logits show" if found["gap"] is None else quantities.number(found["gap"], 3)
        problems.append(
            f"{name}: prompt {number + 1}, token {found['index'] + 1} of {item['tokens']} is {found['got']}, but "
            f"{reference} has {found['expected']} (the logits differ by {gap}; a tie is below "
            f"{quantities.exact(result['tie_gap'])})"
        )
    return problems


def read_job(text: str) -> Job:
    """A job from JSON."""
    given = json.loads(text)

    def path(name: str) -> Path | None:
        return Path(given[name]) if given.get(name) else None

    return Job(
        fixture=path("fixture"),
        model=path("model"),
        files=[Path(item) for item in given["files"]],
        runner=given.get("runner"),
        timeout_s=float(given.get("timeout_s") or 600),
        threads=int(given.get("threads") or default_threads()),
        positions=int(given.get("positions") or 2048),
        data=path("data"),
        save=path("save"),
        byte_proof=given.get("byte_proof") or "all",
        imatrix=path("imatrix"),
    )


def _work(description: str, send: Send) -> ExitCode:
    report = compare_runtimes(read_job(description), send)
    send({"result": report})
    return ExitCode.DONE if report["passed"] else ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(run_job(sys.argv, _work))
