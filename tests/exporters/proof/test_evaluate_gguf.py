"""A GGUF file is asked what its model folder is asked, and answers the same; with an adapter it is another model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engines.evaluate.asking import ask
from engines.evaluate.model import load_model
from engines.evaluate.target import Manner, answerer_of_folder, answerer_of_gguf
from engines.judging.task import Check, Task, prompt_key
from engines.llama.gguf_file import read_gguf
from recipes.problems import OperatorError
from tests.exporters.exporting import export

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
        changed.write(b"\x3f")
    other = answerer_of_gguf(copy, MANNER)
    other.close()
    assert other.identity != gguf.identity
    with pytest.raises(OperatorError, match="answers of another evaluation: model differ"):
        ask(other, tasks(4), tmp_path / "gguf", lambda _d, _a: None)


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
