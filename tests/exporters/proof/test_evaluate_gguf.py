"""A GGUF file is asked what its model folder is asked, and answers the same; with an adapter it is another model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from engines.evaluate.asking import ask
from engines.evaluate.model import load_model
from engines.evaluate.stage import run
from engines.evaluate.target import Manner, answerer_of_folder, answerer_of_gguf
from engines.judging.task import Check, Task, prompt_key
from engines.llama.drawing import DrawRules
from engines.llama.gguf_file import read_gguf
from recipes.problems import OperatorError
from recipes.stages.registry import row_of
from tests.exporters.exporting import export
from tests.stage_context import make_context

pytestmark = pytest.mark.torch

MANNER = Manner(limit=6)


def tasks(count: int) -> list[Task]:
    made = []
    for at in range(count):
        turns = ({"role": "user", "content": "two words " * (1 + at)},)
        made.append(Task(prompt_key(turns, ()), f"t:{at}", turns, "1", (Check("number"),)))
    return made


def test_a_file_answers_as_its_model_does_and_is_known_by_its_bytes(tmp_path: Path, base: Path) -> None:
    ctx, _ = export(tmp_path / "run", base, "F32")
    file = ctx.out / "run-F32.gguf"
    gguf = answerer_of_gguf(file, MANNER)
    folder = answerer_of_folder(base, load_model(base, "base"), MANNER)
    try:
        assert [gguf.encode(task) for task in tasks(4)] == [folder.encode(task) for task in tasks(4)]
        ours = ask(gguf, tasks(4), tmp_path / "gguf", lambda _d, _a: None)
        theirs = ask(folder, tasks(4), tmp_path / "folder", lambda _d, _a: None)
        assert [(one.answer, one.tokens, one.ended) for one in ours] == [
            (one.answer, one.tokens, one.ended) for one in theirs
        ]
        assert gguf.measured()["size_bytes"] == file.stat().st_size
        assert gguf.measured()["peak_rss_bytes"] > 0
    finally:
        gguf.close()
    copy = tmp_path / "copy.gguf"
    shutil.copyfile(file, copy)
    again = answerer_of_gguf(copy, MANNER)
    again.close()
    assert again.identity == gguf.identity
    with copy.open("r+b") as changed:
        changed.seek(-1, 2)
        last = changed.read(1)[0]
        changed.seek(-1, 2)
        changed.write(bytes([last ^ 1]))
    other = answerer_of_gguf(copy, MANNER)
    other.close()
    assert other.identity != gguf.identity
    with pytest.raises(OperatorError, match="answers of another evaluation: model differ"):
        ask(other, tasks(4), tmp_path / "gguf", lambda _d, _a: None)


@pytest.mark.thorough
def test_drawn_answers_of_a_file_are_the_same_each_time_and_one_likely_token_is_greedy(
    tmp_path: Path, base: Path
) -> None:
    ctx, _ = export(tmp_path / "run", base, "F32")

    def drawn(name: str, rules: DrawRules) -> list[str]:
        gguf = answerer_of_gguf(ctx.out / "run-F32.gguf", replace(MANNER, rules=rules))
        try:
            assert gguf.identity["sampling"] == rules.stated()
            return [one.answer for one in ask(gguf, tasks(3), tmp_path / name, lambda _d, _a: None)]
        finally:
            gguf.close()

    rules = DrawRules(temperature=1.5, top_k=30, top_p=0.9, seed=4)
    first, greedy = drawn("first", rules), drawn("greedy", DrawRules())
    assert drawn("second", rules) == first != greedy
    assert drawn("other", replace(rules, seed=5)) != first
    assert drawn("likeliest", replace(rules, top_k=1)) == greedy


def test_a_stage_names_what_it_measured_by_file_type(tmp_path: Path, base: Path) -> None:
    ctx, _ = export(tmp_path / "export", base, "F16", "Q8_0")
    rows = [
        {"messages": [{"role": "user", "content": f"two {at}"}, {"role": "assistant", "content": "x"}]}
        for at in range(3)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {
        "name": "judge", "kind": "evaluate", "model": "m", "data": "d", "test_data": "t", "files": "f",
        "checks": ["exact"], "max_new_tokens": 3, "max_length": 64, "threads": 1,
    }  # fmt: skip
    data = tmp_path / "rows.jsonl"
    judged = make_context(tmp_path, stage, inputs={"model": base, "data": data, "test_data": data, "files": ctx.out})
    result = run(judged)
    assert {"success", "success.F16", "success_low.Q8_0", "latency_p95_s.Q8_0", "peak_rss_bytes.F16"} <= set(
        result.metrics
    )
    assert result.metrics["size_bytes.Q8_0"] < result.metrics["size_bytes.F16"]
    assert all(
        any(fnmatchcase(name, known) for known in row_of(judged.stage).metrics(judged.stage)) or name == "tokens"
        for name in result.metrics
    )
    assert {artifact.path for artifact in result.artifacts} >= {"results-F16.json", "results-Q8_0.json"}


def test_a_file_without_a_template_is_refused_unless_prompts_are_plain(tmp_path: Path, base: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(base, bare)
    for file in bare.glob("chat_template*"):
        file.unlink()
    ctx, _ = export(tmp_path / "run", bare, "F16")
    file = ctx.out / "run-F16.gguf"
    if read_gguf(file).scalar("tokenizer.chat_template") is not None:
        pytest.skip("the tokenizer's own settings have the template")
    with pytest.raises(OperatorError, match="has no chat template"):
        answerer_of_gguf(file, MANNER)
    plain = answerer_of_gguf(file, Manner(limit=3, plain=True))
    try:
        assert all(one.tokens for one in ask(plain, tasks(2), tmp_path / "a", lambda _d, _a: None))
    finally:
        plain.close()


def test_a_missing_or_broken_file_is_an_operators_mistake(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="no file"):
        answerer_of_gguf(tmp_path / "none.gguf", MANNER)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(OperatorError):
        answerer_of_gguf(tmp_path / "bad.gguf", MANNER)
