"""A folder's model answers each prompt as it would alone: batches, penalties and kills change nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engines.evaluate.asking import ask
from engines.evaluate.folder_answers import FolderAnswers
from engines.evaluate.job import Job, evaluate
from engines.evaluate.model import load_model
from engines.evaluate.results import evaluate_tasks
from engines.judging.answers import AnswerFile, Kept
from engines.judging.checks import Judges
from engines.judging.compare import Baseline
from engines.judging.task import Check, Task, prompt_key, sampled
from engines.llama.drawing import DrawRules
from engines.words import ExitCode
from recipes.problems import OperatorError
from tests.engines.small_corpora import stdlib_text, tiny_model, tokenizer_of

pytestmark = pytest.mark.torch

LIMIT = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return tiny_model(tokenizer_of(stdlib_text(folder, "json"), folder / "tokenizer"), folder / "model")


def tasks(count: int) -> list[Task]:
    made = []
    for at in range(count):
        turns = ({"role": "user", "content": "What is it? " * (1 + at % 7) + str(at)},)
        made.append(Task(prompt_key(turns, ()), f"t:{at}", turns, "1", (Check("number"),)))
    return made


def answerer(model: Path, **fields: Any) -> FolderAnswers:
    given = {"sha256": "0" * 64, "size_bytes": 1, "limit": LIMIT, **fields}
    return FolderAnswers(load_model(model, "model"), **given)


def test_drawn_answers_are_the_same_in_any_batch_and_differ_by_seed_and_row(model: Path, tmp_path: Path) -> None:
    rules = DrawRules(temperature=1.5, top_k=40, top_p=0.95, seed=1)
    asked = [*tasks(4), *sampled(tasks(1), 3)[1:]]

    def drawn(name: str, **fields: Any) -> list[str]:
        made = answerer(model, **{"rules": rules, **fields})
        return [one.answer for one in ask(made, asked, tmp_path / name, lambda _done, _all: None)]

    alone = drawn("alone")
    assert drawn("together", batch_size=4) == alone
    assert drawn("again") == alone
    assert drawn("seed", rules=replace(rules, seed=2)) != alone
    assert len({alone[0], alone[4], alone[5]}) == 3
    narrow = drawn("narrow", rules=replace(rules, top_k=1, top_p=1.0))
    assert narrow == drawn("greedy", rules=DrawRules())


def without_times(kept: list[Kept]) -> list[tuple[Any, ...]]:
    return [(one.key, one.answer, one.ended, one.prompt_tokens, one.tokens) for one in kept]


def by_hand(model: Path, asked: list[Task]) -> list[str]:
    """The answers, token by token, without `generate`, a cache or padding."""
    loaded = load_model(model, "model")
    answers, view = [], answerer(model)
    for task in asked:
        ids = view.encode(task)
        new: list[int] = []
        while len(new) < LIMIT and not {2, 4} & set(new[-1:]):
            with torch.no_grad():
                new.append(int(loaded.model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        answers.append(loaded.tokenizer.decode(new, skip_special_tokens=True))
    return answers


def test_answers_of_a_batch_are_those_of_each_prompt_alone_and_by_hand(model: Path, tmp_path: Path) -> None:
    asked = tasks(9)
    alone = ask(answerer(model), asked, tmp_path / "1", lambda _d, _a: None)
    together = ask(answerer(model, batch_size=4), asked, tmp_path / "4", lambda _d, _a: None)
    assert without_times(alone) == without_times(together)
    assert [one.answer for one in alone] == by_hand(model, asked)
    assert {one.batch for one in together} == {4, 1}
    assert all(0 < one.first_token_s <= one.latency_s for one in [*alone, *together])


def test_a_model_with_a_state_answers_prompts_of_equal_length_together(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = answerer(model, batch_size=9)
    shapes = []
    generate = one._generate

    def noted(ids: torch.Tensor, mask: torch.Tensor, *more: Any) -> torch.Tensor:
        shapes.append((tuple(ids.shape), bool(mask.all())))
        return generate(ids, mask, *more)

    monkeypatch.setattr(one, "_generate", noted)
    monkeypatch.setattr(one, "_stateful", True)
    kept = ask(one, tasks(9), tmp_path / "s", lambda _d, _a: None)
    assert all(full for _, full in shapes)
    assert without_times(kept) == without_times(ask(answerer(model), tasks(9), tmp_path / "1", lambda _d, _a: None))


def test_the_folders_own_generation_settings_do_not_change_greedy_answers(model: Path, tmp_path: Path) -> None:
    plain = ask(answerer(model), tasks(4), tmp_path / "plain", lambda _d, _a: None)
    other = tmp_path / "other"
    other.mkdir()
    for file in model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    settings = {"eos_token_id": [2, 4], "repetition_penalty": 5.0, "do_sample": True, "no_repeat_ngram_size": 1}
    (other / "generation_config.json").write_text(json.dumps(settings))
    kept = ask(answerer(other), tasks(4), tmp_path / "other.jsonl", lambda _d, _a: None)
    assert without_times(kept) == without_times(plain)


def test_the_first_different_token_is_explained_by_the_gap_of_two_logits(model: Path, tmp_path: Path) -> None:
    asked = tasks(3)
    rows = evaluate_tasks(answerer(model), asked, Judges(), tmp_path / "a").compared()
    at, other = 2, 7
    changed = replace(rows[1], ids=(*rows[1].ids[:at], other, *rows[1].ids[at + 1 :]), answer="another")
    shorter = replace(rows[2], ids=rows[2].ids[:1])
    baseline = Baseline([rows[0], changed, shorter])
    done = evaluate_tasks(answerer(model), asked, Judges(), tmp_path / "a", baseline=baseline, explain=True)
    loaded = load_model(model, "model")
    with torch.no_grad():
        logits = loaded.model(torch.tensor([answerer(model).encode(asked[1]) + list(rows[1].ids[:at])])).logits[0, -1]
    assert done.differences is not None
    first, second = done.differences
    assert (first["at"], first["baseline"]) == (at, loaded.tokenizer.decode([other]))
    assert first["gap"] == pytest.approx(float(logits[rows[1].ids[at]] - logits[other]), abs=1e-5)
    assert first["gap"] > 0
    assert (second["at"], second["gap"]) == (1, None)
    assert done.metrics["same_answers"] == pytest.approx(2 / 3)


def job(model: Path, folder: Path, rows: int, **fields: Any) -> list[str]:
    lines = [{"prompt": "What is it? " * (1 + at % 7) + str(at), "answer": "1"} for at in range(rows)]
    (folder / "tests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {
        "model": str(model), "adapter": None, "tests": str(folder / "tests.jsonl"), "output": str(folder / "r.json"),
        "baseline": None, "checks": ["number"], "command": [], "limit": 4, "batch_size": 1, "threads": 1,
        "chat_template": None, "plain": False, **fields,
    }  # fmt: skip
    return [sys.executable, "-m", "engines.evaluate.job", json.dumps(given)]


def done(command: list[str]) -> tuple[int, list[dict[str, Any]]]:
    found = subprocess.run(command, capture_output=True, text=True)
    return found.returncode, [json.loads(line) for line in found.stdout.splitlines()]


DIES = """
import os, runpy, signal, sys
from engines.judging.answers import AnswerFile
left, add = int(sys.argv.pop(1)), AnswerFile.add
def counted(self, one):
    global left
    add(self, one)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
AnswerFile.add = counted
runpy.run_module("engines.evaluate.job", run_name="__main__", alter_sys=True)
"""
"""The job, which dies with its answer of this number: a test that waited for it might come after the last one."""


@pytest.mark.thorough
@pytest.mark.parametrize("rows", [24, 500])
def test_a_killed_evaluation_continues_and_asks_nothing_twice(model: Path, tmp_path: Path, rows: int) -> None:
    command, answers = job(model, tmp_path, rows), tmp_path / "r.json.answers.jsonl"
    dying = subprocess.run([sys.executable, "-c", DIES, str(rows // 3), command[-1]], stdout=subprocess.DEVNULL)
    assert dying.returncode == -signal.SIGKILL
    before = answers.read_bytes()
    assert not (tmp_path / "r.json").exists()
    code, lines = done(command)
    assert code == ExitCode.DONE
    after = answers.read_bytes()
    assert after.startswith(before)
    assert after.count(b"\n") in (rows + 1, rows + 2)  # one line may have been cut by the kill
    keys = [json.loads(line)["key"] for line in after.splitlines()[1:] if line.endswith(b"}")]
    assert len(keys) == len(set(keys)) == rows
    results = json.loads((tmp_path / "r.json").read_text())
    assert [row["where"].rpartition(":")[2] for row in results["rows"]] == [str(n) for n in range(1, rows + 1)]
    (tmp_path / "once").mkdir()
    once = job(model, tmp_path / "once", rows)
    assert done(once)[0] == ExitCode.DONE
    other = json.loads((tmp_path / "once" / "r.json").read_text())
    counted = ("success", "success_low", "test_rows", "ended", "answer_tokens", "distinct_2", "repetition")
    assert {name: results["metrics"][name] for name in counted} == {name: other["metrics"][name] for name in counted}
    assert lines[-1]["result"]["metrics"] == results["metrics"]


def test_mistakes_are_named_before_anything_is_loaded(model: Path, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = []
    for fields, problem in (
        ({"checks": ["exakt"]}, "no such check"),
        ({"baseline": str(tmp_path / "b.json")}, "is not a file of results"),
        ({"chat_template": str(tmp_path)}, "cannot be read"),
    ):
        (tmp_path / "b.json").write_text('{"rows": [{"key": "x", "passed": "yes"}]}')
        given = json.loads(job(model, tmp_path, 2, **fields)[-1])
        with pytest.raises(OperatorError, match=problem):
            evaluate(Job(**given), lines.append)
    assert lines == []


def test_a_job_writes_every_row_and_compares_with_its_baseline(model: Path, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = []
    first = json.loads(job(model, tmp_path, 3)[-1])
    evaluate(Job(**first), lines.append)
    results = json.loads((tmp_path / "r.json").read_text())
    assert [row["where"].rpartition(":")[2] for row in results["rows"]] == ["1", "2", "3"]
    assert results["protocol"]["sampling"] == "greedy"
    assert results["metrics"]["success"] == sum(row["passed"] for row in results["rows"]) / 3
    assert lines[-1] == {"progress": {"done": 3, "total": 3, "unit": "answers"}}
    second = {**first, "output": str(tmp_path / "again.json"), "baseline": str(tmp_path / "r.json")}
    shown = evaluate(Job(**second), lines.append)
    assert (shown["comparison"]["rows"], shown["counts"]) == (3, {"lost": 0, "won": 0})
    assert shown["metrics"]["difference"] == 0


def test_a_model_without_a_template_is_refused_unless_prompts_are_plain(model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in model.iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(OperatorError, match="no chat template"):
        ask(answerer(bare), tasks(2), tmp_path / "a", lambda _d, _a: None)
    kept = ask(answerer(bare, plain=True), tasks(2), tmp_path / "b", lambda _d, _a: None)
    assert all(one.tokens for one in kept)
    assert AnswerFile(tmp_path / "b", answerer(bare, plain=True).identity).kept.keys() == {t.key for t in tasks(2)}
