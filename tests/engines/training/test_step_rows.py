"""What a step read is found again exactly: order, packing, length groups, accumulation, epochs and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cockpit.commands.verify import run as verify
from cockpit.forms.step_reader import rows_of_step, segments_of, trained_stages
from engines.data.text import prepare_text
from engines.events.steps import CheckpointCommitted, Step
from engines.finetune.rows import ExampleDataset, PackedDataset
from engines.inputs.record import identify_inputs, write_record
from engines.look.step_answer import Segment
from engines.look.steps import Stream, first_difference
from engines.run_dir.paths import RunDir
from engines.stage_file import FORMAT, StageFile, StageInput
from engines.training.steps.mixin import EngineMixin
from engines.words import ExitCode
from recipes.problems import OperatorError
from tests.engines.small_corpora import fresh, tokenizer_of, tokens_of, write_tree
from tests.engines.training.attempts import context, of_kind, resume_point, run_stage
from tests.engines.training.tiny import FINETUNE, PRETRAIN, write_messages, write_model, write_tokens
from tests.stage_context import TriedContext


def segment(ctx: TriedContext, data: Path, model: Path | None = None, last: int = 8) -> Segment:
    fields = ctx.stage.model_dump(mode="json")
    return Segment(
        stage=fields, data=str(data), model=None if model is None else str(model), first_start="", first=1, last=last
    )


def windows_of(monkeypatch: pytest.MonkeyPatch) -> list[list[np.ndarray[Any, Any]]]:
    """The ids of each micro-batch of each step, as the training takes them."""
    seen: list[list[np.ndarray[Any, Any]]] = []
    take = EngineMixin.get_batch_samples

    def noted(self: Any, *args: Any) -> Any:
        batches, items = take(self, *args)
        seen.append([batch["input_ids"].numpy().copy() for batch in batches])
        return batches, items

    monkeypatch.setattr(EngineMixin, "get_batch_samples", noted)
    return seen


def test_the_windows_of_every_step_are_those_that_the_training_took_also_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_tokens(tmp_path / "data", {"train": 16 * 11 + 5})  # 11 windows: the last step of an epoch has fewer
    seen = windows_of(monkeypatch)
    first = context(tmp_path, PRETRAIN, {"data": data})
    run_stage(first)
    stream = Stream([segment(first, data)])
    told = []
    for number in range(1, 9):
        examples, batches = stream.step(number)
        read = [np.array([np.frombuffer(examples.content(n), "<u4") for n in batch]) for batch in batches]
        told.append(read)
    assert [len(batch) for batch in told[2]] == [2, 1]
    assert all(np.array_equal(one, two) for a, b in zip(seen, told, strict=True) for one, two in zip(a, b, strict=True))
    seen.clear()
    second = context(tmp_path, PRETRAIN, {"data": data}, attempt=2, resume=resume_point(first, 3))
    run_stage(second)
    assert all(
        np.array_equal(one, two) for a, b in zip(seen, told[3:], strict=True) for one, two in zip(a, b, strict=True)
    )
    digests = [{e.step: e.rng_sha256 for e in of_kind(first, CheckpointCommitted, attempt)} for attempt in (1, 2)]
    assert digests[0][6] == digests[1][6] != digests[0][3]
    with pytest.raises(OperatorError, match="has not done step 9"):
        stream.step(9)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="random", marks=pytest.mark.thorough),
        pytest.param({"train_sampling_strategy": "group_by_length"}, id="grouped", marks=pytest.mark.thorough),
        pytest.param({"packing": True}, id="packed"),
    ],
)
def test_the_rows_of_every_step_of_a_finetuning_are_those_that_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    taken: list[int] = []
    kind: Any = PackedDataset if "packing" in more else ExampleDataset
    get = kind.__getitem__

    def noted(self: Any, index: int) -> Any:
        taken.append(index)
        return get(self, index)

    monkeypatch.setattr(kind, "__getitem__", noted)
    data, model = write_messages(tmp_path / "rows"), write_model(tmp_path / "model")
    stage = {**FINETUNE, **more, "max_steps": 5, "save_steps": 5, "eval_strategy": "no"}
    ctx = context(tmp_path, stage, {"model": model, "data": data})
    run_stage(ctx)
    stream = Stream([segment(ctx, data, model, last=5)])
    told = [example for number in range(1, 6) for batch in stream.step(number)[1] for example in batch]
    assert told == taken[: len(told)]
    assert len(taken) - len(told) <= 2  # a batch is fetched ahead
    rows = [name for n in range(1, 6) for b in stream.step(n)[1] for e in b for name, *_ in stream.step(n)[0].rows(e)]
    assert rows[0].startswith(str(data / "train.jsonl:"))


def changed_copy(tokens: Path, out: Path, token: int) -> Path:
    import json
    import shutil

    shutil.copytree(tokens, out)
    ids = np.fromfile(out / "train.bin", dtype="<u2")
    ids[token] += 1
    ids.tofile(out / "train.bin")
    (out / "tokens.json").write_text(json.dumps(json.loads((out / "tokens.json").read_text())))
    return out


def test_one_changed_byte_is_named_with_the_first_step_that_reads_it(tmp_path: Path) -> None:
    data = write_tokens(tmp_path / "data", {"train": 16 * 11})
    ctx = context(tmp_path, PRETRAIN, {"data": data})
    one = segment(ctx, data)
    same = segment(ctx, changed_copy(data, tmp_path / "other", 3 * 16 + 5))
    assert first_difference([one], [one]) is None
    found = first_difference([one], [same])
    assert found is not None
    first = next(k for k in range(1, 9) if any(3 in batch for batch in Stream([one]).step(k)[1]))
    assert (found.step, found.why) == (first, "the tokens differ")
    assert found.files == ["train.bin", "train.bin"]
    assert found.bytes == [2 * (3 * 16 + 5)] * 2
    seeded = msgspec.structs.replace(one, stage={**one.stage, "seed": 7})
    other = first_difference([one], [seeded])
    assert other is not None
    assert (other.step, other.why) == (1, "the order of the examples differs")
    batched = msgspec.structs.replace(one, stage={**one.stage, "gradient_accumulation_steps": 4})
    grouped = first_difference([one], [batched])
    assert grouped is not None
    assert grouped.why == "the steps have other numbers of examples"


def test_the_width_of_the_numbers_in_a_shard_is_no_difference(tmp_path: Path) -> None:
    import json
    import shutil

    data = write_tokens(tmp_path / "data", {"train": 16 * 11})
    wide = shutil.copytree(data, tmp_path / "wide")
    ids = np.fromfile(wide / "train.bin", dtype="<u2").astype("<u4")
    ids.tofile(wide / "train.bin")
    about = json.loads((wide / "tokens.json").read_text())
    (wide / "tokens.json").write_text(json.dumps({**about, "dtype": "uint32"}))
    ctx = context(tmp_path, PRETRAIN, {"data": data})
    assert first_difference([segment(ctx, data)], [segment(ctx, wide)]) is None
    ids[3 * 16 + 5] += 0x10000
    ids.tofile(wide / "train.bin")
    found = first_difference([segment(ctx, data)], [segment(ctx, wide)])
    assert found is not None
    assert found.bytes == [2 * (3 * 16 + 5) + 1, 4 * (3 * 16 + 5) + 2]


def finished_run(tmp_path: Path, name: str, data: Path, **fields: Any) -> RunDir:
    """A run of one pretraining, with the file of its attempt."""
    ctx = context(tmp_path / name, {**PRETRAIN, "max_steps": 4, "save_steps": 4, **fields}, {"data": data})
    run_stage(ctx)
    run = RunDir(ctx.run_root)
    given = StageFile(
        format=FORMAT, run_root=str(run.root), tag="pretrain", stage=ctx.stage.model_dump(mode="json"), attempt=1,
        inputs={"data": StageInput(origin="path", name="data", path=str(data))},
    )  # fmt: skip
    run.stage_json("base", 1).write_bytes(msgspec.json.encode(given))
    write_record(run.inputs_json("base", 1), identify_inputs(ctx.stage, given.inputs))
    return run


@pytest.mark.thorough
def test_two_runs_are_compared_and_the_rows_of_a_step_are_named_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import argparse

    data = write_tokens(tmp_path / "data", {"train": 16 * 11})
    one, two = (finished_run(tmp_path, name, data) for name in ("one", "two"))
    three = finished_run(tmp_path, "three", data, seed=5)
    assert trained_stages(one) == ["base"]
    assert [(part.first, part.last) for part in segments_of(one, "base")] == [(1, 4)]

    def compared(other: RunDir) -> ExitCode:
        return verify(argparse.Namespace(runs_dir=tmp_path, artifact=str(one.root), other=str(other.root), json=False))

    assert compared(two) == ExitCode.DONE
    assert "the same tokens at each of 4 steps" in capsys.readouterr().out
    assert compared(three) == ExitCode.FAILED
    assert "from step 1 on, the order of the examples differs" in capsys.readouterr().out
    rows = rows_of_step(one, "base", 2)
    assert [row.micro_batch for row in rows] == [1, 1, 2, 2]
    assert {(row.name, row.tokens) for row in rows} == {("document 1", 16)}
    with pytest.raises(OperatorError, match="has not done step 5"):
        rows_of_step(one, "base", 5)


def test_files_that_changed_since_the_training_are_named_and_nothing_is_claimed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The order is made again from the present files: of others it says nothing about the training."""
    import argparse
    import json

    data = write_tokens(tmp_path / "data", {"train": 16 * 11})
    one, two = (finished_run(tmp_path, name, data) for name in ("one", "two"))

    def compared(**more: bool) -> tuple[ExitCode, str]:
        asked = argparse.Namespace(runs_dir=tmp_path, artifact=str(one.root), other=str(two.root), **more)
        return verify(asked), capsys.readouterr().out

    assert compared(json=False)[0] == ExitCode.DONE
    ids = np.fromfile(data / "train.bin", dtype="<u2")
    ids[[7, 3 * 16 + 5]] += 1
    ids.tofile(data / "train.bin")
    code, said = compared(json=False)
    assert code == ExitCode.FAILED
    assert "✗ base: not shown, because files have changed since the training read them" in said
    assert f"second run: base.data {data}: changed train.bin" in said
    assert "✓" not in said
    assert json.loads(compared(json=True)[1])["same"] is None
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(OperatorError, match="does not exist any more, and the training read it"):
        compared(json=False)


def test_the_rows_behind_a_planted_spike_name_the_planted_document(tmp_path: Path) -> None:
    words = ["The driver registers the device and waits for it.\n", "Each line of this page is like the others.\n"]
    files = {f"{number:03}.txt": words[number % 2] * 60 + f"Page {number}.\n" for number in range(60)}
    files["planted.txt"] = "".join(chr(0x4E00 + 37 * number % 20_000) for number in range(120))
    source = write_tree(tmp_path / "source", files)
    prepare_text(str(source), fresh(tmp_path / "text"), val_fraction=0, test_fraction=0)
    tokenizer = tokenizer_of(tmp_path / "text", tmp_path / "tokenizer", vocab_size=390, character_coverage=0.98)
    data = tokens_of(tmp_path / "text", tokenizer, tmp_path / "tokens")
    shape = {"max_length": 64, "max_steps": 60, "save_steps": 60, "gradient_accumulation_steps": 1}
    stage = {**PRETRAIN, **shape, "learning_rate": 1e-2, "attention_dropout": 0.0, "per_device_train_batch_size": 4}
    ctx = context(tmp_path, stage, {"data": data})
    run_stage(ctx)
    losses = {event.step: event.loss or 0.0 for event in of_kind(ctx, Step)}
    late = {step: loss for step, loss in losses.items() if step > 15}
    spike = max(late, key=lambda step: late[step])
    assert late[spike] > 2 * sorted(late.values())[len(late) // 2]
    examples, batches = Stream([segment(ctx, data, last=60)]).step(spike)
    assert "planted.txt" in [name for batch in batches for number in batch for name, *_ in examples.rows(number)]
