"""Two processes evaluate as one does: losses, answers, verdicts, metrics; and one continues what two have answered."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engines.evaluate.stage import run
from engines.judging.answers import kept_answers
from engines.run_dir.paths import RunDir
from recipes.fingerprint import fingerprint
from recipes.stages.evaluate import EvaluateStage
from tests.engines.ranks.together import Record, launch
from tests.engines.small_corpora import write_rows
from tests.engines.training import tiny
from tests.stage_context import TriedContext, make_context

pytestmark = pytest.mark.torch

TWO = {"processes": 2, "strategy": "ddp"}
BASE: dict[str, Any] = {"name": "judge", "kind": "evaluate", "model": "m", "data": "d", "max_length": 64}
TESTS = {"test_data": "d", "checks": ["contains"], "max_new_tokens": 5}
JOBS: dict[str, dict[str, Any]] = {
    "answers": {**BASE, **TESTS, "answers": 3, "per_device_eval_batch_size": 2},
    "together": {**BASE, **TESTS, "answer_batch_size": 3},
    "drawn": {**BASE, **TESTS, "temperature": 0.8, "num_return_sequences": 2},
    "windows": {**BASE, "data": "t", "max_length": 16, "per_device_eval_batch_size": 2},
}
ROWS = [("docstring", f"a{'b' * (at % 4)}{at}?", "yes " * (1 + at % 3)) for at in range(11)]
_TIMES = ("_s", "_per_second", "_bytes")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    rows = write_rows(folder / "rows", ROWS)
    tokens = tiny.write_tokens(folder / "tokens", {"test": 16 * 9 + 5})
    return {"model": tiny.write_model(folder / "model"), "d": rows, "t": tokens}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Path]) -> Path:
    """The records of all jobs in two processes."""
    folder = tmp_path_factory.mktemp("two")
    jobs = [
        {
            "name": name,
            "stage": {**stage, "launch": TWO},
            "inputs": {field: str(path) for field, path in of(stage, inputs).items()},
        }
        for name, stage in JOBS.items()
    ]
    launch(folder, jobs)
    return folder


def of(stage: dict[str, Any], inputs: dict[str, Path]) -> dict[str, Path]:
    """The inputs of a stage by its fields."""
    found = {"model": inputs["model"], "data": inputs[stage["data"]]}
    return {**found, "test_data": inputs["d"]} if "test_data" in stage else found


def alone(folder: Path, name: str, inputs: dict[str, Path]) -> tuple[TriedContext, dict[str, float]]:
    """The same stage in this process."""
    import torch

    torch.set_num_threads(1)
    ctx = make_context(folder, JOBS[name], inputs=of(JOBS[name], inputs))
    ctx.first_start = "2026-01-01T00:00:00"
    return ctx, run(ctx).metrics


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_measure_and_answer_as_one_does(
    tmp_path: Path, two: Path, inputs: dict[str, Path], name: str
) -> None:
    ctx, metrics = alone(tmp_path, name, inputs)
    record = Record(two, name)
    assert record.metrics.keys() == metrics.keys()
    for metric, value in metrics.items():
        if not metric.endswith(_TIMES):
            assert math.isclose(record.metrics[metric], value, rel_tol=1e-6), metric
    (placed,) = record.of("ranks_placed")
    assert (placed["world_size"], placed["strategy"], placed["devices"]) == (2, "ddp", ["cpu", "cpu"])
    mine, theirs = (json.loads((out / "report.json").read_text()) for out in (ctx.out, record.out))
    assert mine["answers"] == theirs["answers"]
    assert mine["protocol"] == theirs["protocol"]
    if "test_data" in JOBS[name]:
        mine, theirs = results(ctx.out), results(record.out)
        for key in ("key", "answer", "ids", "verdicts", "ended", "batch"):
            assert [row[key] for row in theirs["rows"]] == [row[key] for row in mine["rows"]], key


def test_each_row_is_answered_by_one_process_and_the_first_has_all_answers(two: Path) -> None:
    stage = Path(Record(two, "answers").out).parents[1]
    (file,) = stage.glob("answers-*")
    _, kept = kept_answers(file)
    assert len(kept) == len(ROWS)
    assert file.read_bytes().count(b"\n") == 1 + len(ROWS)
    other = Record(two, "answers", rank=1)
    assert not other.error
    (rest,) = (path for path in other.out.parents[1].glob("answers-*"))
    _, theirs = kept_answers(rest)
    assert 0 < len(theirs) < len(ROWS)
    assert all(kept[key] == one for key, one in theirs.items())
    assert not (other.out / "results.json").exists()


def test_another_number_of_processes_asks_only_what_no_one_has_answered(
    tmp_path: Path, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.evaluate.folder_answers import FolderAnswers

    whole, _ = alone(tmp_path / "whole", "together", inputs)
    (file,) = RunDir(whole.run_root).stage_dir("judge").glob("answers-*")
    header, *lines = file.read_bytes().splitlines(keepends=True)
    stage = RunDir(tmp_path / "left" / "run").stage_dir("judge")
    stage.mkdir(parents=True)
    (stage / file.name).write_bytes(b"".join([header, *lines[:3]]))
    (stage / f"{file.stem}.rank1.jsonl").write_bytes(b"".join([header, *lines[6:9], lines[9][:20]]))
    (stage / f"{file.stem}.rank7.jsonl").write_bytes(header)
    asked: list[str] = []
    answer = FolderAnswers.answer

    def noted(self: FolderAnswers, tasks: Any, waiting: Any) -> Any:
        asked.extend(task.key for task, _ in tasks)
        return answer(self, tasks, waiting)

    monkeypatch.setattr(FolderAnswers, "answer", noted)
    ctx, _ = alone(tmp_path / "left", "together", inputs)
    kept = {json.loads(line)["key"] for line in [*lines[:3], *lines[6:9]]}
    assert sorted(asked) == sorted(json.loads(line)["key"] for line in lines if json.loads(line)["key"] not in kept)
    assert [path.name for path in stage.glob("answers-*")] == [file.name]
    found, expected = results(ctx.out)["rows"], results(whole.out)["rows"]
    assert [(row["ids"], row["batch"]) for row in found] == [(row["ids"], row["batch"]) for row in expected]
    shutil.rmtree(tmp_path / "left")


def test_processes_do_not_make_another_result_and_what_they_do_not_share_is_refused() -> None:
    def made(**fields: Any) -> EvaluateStage:
        return EvaluateStage.model_validate({**BASE, **fields})

    values = [stage.model_dump(mode="json") for stage in (made(), made(launch=TWO))]
    assert fingerprint(values[0], []) == fingerprint(values[1], [])
    with pytest.raises(ValidationError, match=r"launch\.strategy — the engine of evaluate does not have it; got fsdp2"):
        made(launch={"processes": 2, "strategy": "fsdp2"})
    with pytest.raises(ValidationError, match="lm_eval_tasks — lm_eval is one program"):
        made(lm_eval_tasks=["arc_easy"], launch=TWO)
