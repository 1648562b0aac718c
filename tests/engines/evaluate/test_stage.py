"""The evaluate stage measures models and adapters on messages and tokens, and refuses mismatched inputs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from engines.data.readers.row import Message, MessageRow
from engines.evaluate.answers import choose_questions
from engines.evaluate.evaluate import perplexity
from engines.evaluate.stage import run
from engines.events.attempts import Progress
from engines.events.results import Evaluated, SampledText
from engines.events.writers import Warned
from recipes.problems import OperatorError
from tests.engines.small_corpora import stdlib_text, tiny_model, tokenizer_of, tokens_of, write_rows
from tests.stage_context import make_context

pytestmark = pytest.mark.torch

KINDS = ("docstring", "signature", "bases")
ROWS = [(KINDS[at % 3] if at > 4 else "docstring", f"What is `f{at}`?", "It adds. " * (1 + at % 5)) for at in range(24)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    text = stdlib_text(folder, "json", "email")
    tokenizer = tokenizer_of(text, folder / "tokenizer")
    write_rows(folder / "messages", ROWS)
    write_rows(folder / "messages", ROWS[:5], "val")
    return {
        "tokens": tokens_of(text, tokenizer, folder / "tokens"),
        "other-tokens": tokens_of(text, tokenizer_of(text, folder / "other", vocab_size=600), folder / "other-tokens"),
        "messages": folder / "messages",
        "model": tiny_model(tokenizer, folder / "model"),
        "model-2": tiny_model(tokenizer, folder / "model-2", seed=1),
    }


def evaluated(
    tmp_path: Path, made: dict[str, Path], data: str, model: str | Path = "model", **fields: Any
) -> tuple[dict[str, float], dict[str, Any], list[Any]]:
    """Metrics, report.json and events."""
    stage = {"name": "before", "kind": "evaluate", "model": "model", "data": "data", **fields}
    given = made[model] if isinstance(model, str) and model in made else model
    context = make_context(tmp_path, stage, inputs={"model": given, "data": made[data]})
    result = run(context)
    assert [artifact.path for artifact in result.artifacts] == ["report.json"]
    return result.metrics, json.loads((context.out / "report.json").read_text()), context.events()


def test_messages_are_scored_on_their_answers_and_reported(tmp_path: Path, made: dict[str, Path]) -> None:
    metrics, report, events = evaluated(tmp_path, made, "messages", answers=4, max_new_tokens=5)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert report["loss"] == metrics["loss"]
    assert report["protocol"] == "answers(max_length=512, truncation=drop)"
    assert report["rows"]["rows"] == metrics["examples"] == 24
    event = next(e for e in events if isinstance(e, Evaluated))
    assert (event.loss, event.tokens, event.step) == (metrics["loss"], metrics["tokens"], None)
    progress = [e for e in events if isinstance(e, Progress)]
    assert progress[-1].unit == "answers"
    assert all(e.total for e in progress)
    shown = [e for e in events if isinstance(e, SampledText)]
    assert [(e.prompt, e.expected, e.text) for e in shown] == [
        (one["prompt"], one["expected"], one["answer"]) for one in report["answers"]
    ]
    kind_of = {question: kind for kind, question, _ in ROWS}
    assert [kind_of[e.prompt] for e in shown] == ["bases", "docstring", "signature", "bases"]


def test_the_same_rows_have_the_same_loss_in_every_format(tmp_path: Path, made: dict[str, Path]) -> None:
    metrics, _, _ = evaluated(tmp_path / "a", made, "messages")
    alpaca = [{"instruction": question, "input": None, "output": answer} for _, question, answer in ROWS]
    (tmp_path / "rows.json").write_text(json.dumps([*alpaca, {"instruction": "x", "output": ""}]))
    nested = [{"task": {"text": question}, "done": {"text": answer}} for _, question, answer in ROWS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in nested))
    places = {**made, "alpaca": tmp_path / "rows.json", "nested": tmp_path / "rows.jsonl"}
    columns = {"user": "task.text", "assistant": "done.text"}
    for place, fields in (("alpaca", {"on_bad_row": "skip"}), ("nested", {"columns": columns})):
        found, report, events = evaluated(tmp_path / place, places, place, **fields)
        assert found["loss"] == pytest.approx(metrics["loss"], abs=1e-6)
        assert found["skipped_rows"] == (place == "alpaca")
        assert report["split"] == "all"
        warnings = [event.message for event in events if isinstance(event, Warned)]
        assert any("1 of 25 rows were left out" in text for text in warnings) == (place == "alpaca")


def test_tokens_are_scored_in_windows(tmp_path: Path, made: dict[str, Path]) -> None:
    metrics, report, _ = evaluated(tmp_path, made, "tokens", max_length=64, max_tokens=2000, split="val")
    assert metrics["tokens"] == math.ceil(2000 / 63) * 63
    assert report["protocol"] == "windows(max_length=64)"
    assert report["split"] == "val"
    assert report["answers"] == []


def test_tokens_are_taken_from_the_start_or_from_the_whole_split(tmp_path: Path, made: dict[str, Path]) -> None:
    fields: dict[str, Any] = {"max_length": 16, "max_tokens": 150, "split": "val"}
    first, report, events = evaluated(tmp_path / "start", made, "tokens", **fields)
    warnings = [event.message for event in events if isinstance(event, Warned)]
    assert any("150 tokens are scored, the first of" in text for text in warnings)
    assert report["protocol"] == "windows(max_length=16)"
    spread, report, events = evaluated(tmp_path / "spread", made, "tokens", max_tokens_from="spread", **fields)
    assert not [event for event in events if isinstance(event, Warned) and "are scored, the first" in event.message]
    assert report["protocol"] == "windows(max_length=16, spread over the split)"
    assert spread["tokens"] == first["tokens"] == 150
    assert spread["loss"] != first["loss"]


def test_an_adapter_is_scored_on_its_base(tmp_path: Path, made: dict[str, Path]) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from engines.data.tokenizer_files import copy_tokenizer

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapter = tmp_path / "adapter"
    peft_model = get_peft_model(AutoModelForCausalLM.from_pretrained(made["model"]), config)
    peft_model.save_pretrained(adapter)
    copy_tokenizer(adapter, made["model"])
    (adapter / "base.json").write_text(json.dumps({"path": str(made["model"]), "manifest_sha256": None}))
    plain, _, _ = evaluated(tmp_path / "plain", made, "messages")
    adapted, _, _ = evaluated(tmp_path / "adapted", made, "messages", adapter)
    peft_model.merge_and_unload().save_pretrained(tmp_path / "merged")
    copy_tokenizer(tmp_path / "merged", made["model"])
    merged, _, _ = evaluated(tmp_path / "with", made, "messages", tmp_path / "merged")
    assert adapted["loss"] != pytest.approx(plain["loss"], abs=1e-4)
    assert adapted["loss"] == pytest.approx(merged["loss"], abs=1e-5)
    evaluated(tmp_path / "tokens", made, "tokens", adapter, max_tokens=500)

    base = tmp_path / "base"
    shutil.copytree(made["model"], base)
    (base / "manifest.json").write_text("{}")
    (adapter / "base.json").write_text(json.dumps({"path": str(base), "manifest_sha256": "0" * 64}))
    with pytest.raises(OperatorError, match="is not the base model that"):
        evaluated(tmp_path / "swapped", made, "messages", adapter)
    shutil.rmtree(base)
    with pytest.raises(OperatorError, match="does not exist"):
        evaluated(tmp_path / "gone", made, "messages", adapter)


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"path": 3}', "[" * 100_000, b"\xff"])
def test_an_adapter_with_a_malformed_record_of_its_base_is_refused(tmp_path: Path, record: str | bytes) -> None:
    from engines.evaluate.model import base_of

    (tmp_path / "base.json").write_bytes(record.encode() if isinstance(record, str) else record)
    with pytest.raises(OperatorError, match=r"base\.json"):
        base_of(tmp_path)


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path, made: dict[str, Path]) -> None:
    with pytest.raises(OperatorError, match="another tokenizer"):
        evaluated(tmp_path, made, "other-tokens")
    bare = tmp_path / "bare"
    shutil.copytree(made["model"], bare)
    (bare / "tokenizer.model").unlink()
    with pytest.raises(OperatorError, match=r"no tokenizer\.model"):
        evaluated(tmp_path / "b", made, "tokens", bare)


def test_a_hub_id_that_is_not_cached_is_reported_without_using_the_network(
    tmp_path: Path, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _refuse_the_network(monkeypatch)
    with pytest.raises(OperatorError, match="not in the local Hugging Face cache") as raised:
        evaluated(tmp_path, made, "messages", "nobody/nothing-of-this-name")
    assert "cockpit pull nobody/nothing-of-this-name" in raised.value.hint


def test_a_cached_hub_model_is_found_without_using_the_network(
    tmp_path: Path, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    commit = "0" * 40
    repository = cache / "models--someone--tiny"
    shutil.copytree(made["model"], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    _refuse_the_network(monkeypatch)
    cached, _, _ = evaluated(tmp_path / "hub", made, "messages", "someone/tiny")
    assert cached["loss"] == evaluated(tmp_path / "folder", made, "messages")[0]["loss"]


def _refuse_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_answers_need_messages_and_an_empty_split_is_reported(tmp_path: Path, made: dict[str, Path]) -> None:
    with pytest.raises(OperatorError, match="contain no questions"):
        evaluated(tmp_path / "a", made, "tokens", answers=1)
    with pytest.raises(OperatorError, match="has no train split"):
        evaluated(tmp_path / "b", made, "messages", split="train")
    with pytest.raises(OperatorError, match="nothing to score"):
        evaluated(tmp_path / "c", made, "messages", max_length=8)


def rendered_rows(model: Path) -> list[list[int]]:
    """Ids of every row in the model's chat format."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for _, q, a in ROWS]
    return [
        tokenizer(tokenizer.apply_chat_template(row, tokenize=False), add_special_tokens=False)["input_ids"]
        for row in rows
    ]


@pytest.mark.parametrize(
    "fields",
    [{"split": "val"}, {"max_length": "of half the rows"}, {"max_tokens": 40}],
    ids=lambda fields: next(iter(fields)),
)
def test_fields_that_change_what_is_scored_reach_the_score(
    tmp_path: Path, made: dict[str, Path], fields: dict[str, Any]
) -> None:
    if "max_length" in fields:  # tokens of a row depend on the sources that the tokenizer was trained on: this Python's
        fields = {"max_length": sorted(map(len, rendered_rows(made["model"])))[len(ROWS) // 2]}
    default, _, _ = evaluated(tmp_path / "default", made, "messages")
    changed, _, _ = evaluated(tmp_path / "changed", made, "messages", **fields)
    assert changed["tokens"] < default["tokens"]
    assert changed["loss"] != default["loss"]


def test_model_and_data_reach_the_score_and_the_batch_size_does_not_change_it(
    tmp_path: Path, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    from engines.training import loss as loss_module

    pad = loss_module.pad_batch

    def counted(examples: list[Any]) -> Any:
        sizes.append(len(examples))
        return pad(examples)

    monkeypatch.setattr(loss_module, "pad_batch", counted)
    default, _, _ = evaluated(tmp_path / "default", made, "messages")
    small, _, _ = evaluated(tmp_path / "small", made, "messages", per_device_eval_batch_size=3)
    assert sizes == [8] * 3 + [3] * 8
    assert small["loss"] == pytest.approx(default["loss"], abs=1e-5)
    assert small["tokens"] == default["tokens"]
    assert evaluated(tmp_path / "model", made, "messages", "model-2")[0]["loss"] != default["loss"]


def test_answers_and_their_length_reach_the_generation_which_is_greedy(tmp_path: Path, made: dict[str, Path]) -> None:
    short = evaluated(tmp_path / "a", made, "messages", answers=3, max_new_tokens=4)[1]["answers"]
    again = evaluated(tmp_path / "b", made, "messages", answers=3, max_new_tokens=4)[1]["answers"]
    long = evaluated(tmp_path / "c", made, "messages", answers=6, max_new_tokens=12)[1]["answers"]
    assert short == again
    assert (len(short), len(long)) == (3, 6)
    assert all(
        more["answer"].startswith(less["answer"].rstrip("\ufffd")) for less, more in zip(short, long, strict=False)
    )
    assert any(len(more["answer"]) > len(less["answer"]) for less, more in zip(short, long, strict=False))


def test_questions_are_taken_in_turn_from_every_kind() -> None:
    def row(kind: str, text: str) -> MessageRow:
        return MessageRow([Message("user", text), Message("assistant", "a")], category=kind)

    rows = [row("a", "1"), row("a", "2"), row("a", "3"), row("b", "4"), row("b", "5")]
    assert [one.prompt for one in choose_questions(rows, 4)] == ["1", "4", "2", "5"]
    assert [one.prompt for one in choose_questions(rows, 9)] == ["1", "4", "2", "5", "3"]
    assert choose_questions(rows, 0) == []


def test_perplexity_of_a_huge_loss_is_infinite_and_not_an_error() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(1e6) == math.inf
    assert math.isnan(perplexity(math.nan))
