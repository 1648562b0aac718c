"""The loss of a GGUF file is that of its model folder on the same rows, and that of a calculation by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.evaluate.evaluate import SCORED_OF_PAIR
from engines.evaluate.loss_job import LossData, LossFile, loss_of_file, loss_of_folder
from engines.evaluate.model import load_model
from engines.evaluate.stage import run
from engines.llama.gguf_file import read_gguf
from recipes.problems import OperatorError
from tests.exporters.exporting import export
from tests.exporters.gguf.test_adapter import export_with
from tests.exporters.small_models import build_adapter, build_byte_level_tokenizer, build_model, copy_folder
from tests.stage_context import make_context

pytestmark = pytest.mark.torch

NF4 = {"method": "bitsandbytes", "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False}
CHATS = [("two words", "three"), ("words " * 9, "two two words"), ("one", "words, and <s> words " * 5)]


def warn(_text: str) -> None:
    """No row of these tests is worth a warning."""


def progress(_done: int, _all: int) -> None:
    """The tests look at results."""


def rows(file: Path, texts: bool = False) -> Path:
    lines: list[dict[str, Any]] = []
    for asked, answer in CHATS:
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        lines.append({"text": f"{asked} {answer} " * 20} if texts else {"messages": turns})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def data(place: Path, max_length: int = 96) -> LossData:
    return LossData(place, max_length=max_length, max_tokens=10_000, batch_size=2, template="", moment="2026-01-02")


def by_hand(folder: Path, file: Path) -> tuple[float, int]:
    """Answers with their end token, by transformers' own template and tokenizer; float64 throughout."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    total, count = 0.0, 0
    for line in file.read_text().splitlines():
        turns = json.loads(line)["messages"]
        before = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        answer = whole[len(before) :].rstrip("\n")
        ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, answer)]
        with torch.no_grad():
            found = torch.log_softmax(model(torch.tensor([ids[0] + ids[1]])).logits[0], dim=-1)
        for at, token in enumerate(ids[1], start=len(ids[0])):
            total -= float(found[at - 1, token])
            count += 1
    return total / count, count


def test_the_loss_of_a_file_is_that_of_its_folder_and_that_by_hand(tmp_path: Path) -> None:
    """Byte-level: with the folder's tokenizer and with the file's own vocabulary the rows are the same."""
    words = build_byte_level_tokenizer(tmp_path / "words")
    chatml = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (words / "chat_template.jinja").write_text(chatml)
    model = build_model(tmp_path / "model", words, family="Qwen2", vocab_size=603, bos_token_id=None, eos_token_id=600)
    ctx, _ = export(tmp_path / "run", model, "F32", "F16", parity_positions=64)
    place = rows(tmp_path / "rows.jsonl")
    place.write_text(place.read_text().replace("<s> ", ""))  # by hand, a spelled control token is one
    expected, count = by_hand(model, place)
    folder = loss_of_folder(load_model(model, "m"), data(place), warn, progress)
    assert folder.loss == pytest.approx(expected, abs=1e-5)
    assert folder.tokens == count
    for kind, close in (("F32", 1e-5), ("F16", 1e-3)):
        file = ctx.out / f"run-{kind}.gguf"
        with_folder = loss_of_file(LossFile(file, None, model, 1), data(place), warn, progress)
        alone = loss_of_file(LossFile(file, None, None, 1), data(place), warn, progress)
        assert with_folder.loss == pytest.approx(expected, abs=close)
        assert with_folder.tokens == count
        assert alone == with_folder
        assert with_folder.protocol == (
            f"answers(max_length=96, truncation=drop), {kind} weights in llama.cpp, f32 cache"
        )
    texts = rows(tmp_path / "texts.jsonl", texts=True)
    folder = loss_of_folder(load_model(model, "m"), data(texts, 64), warn, progress)
    alone = loss_of_file(LossFile(ctx.out / "run-F32.gguf", None, None, 1), data(texts, 64), warn, progress)
    assert alone.loss == pytest.approx(folder.loss, abs=1e-5)
    assert alone.tokens == folder.tokens


def test_a_stage_measures_the_loss_of_each_file_for_gates(tmp_path: Path, base: Path) -> None:
    ctx, _ = export(tmp_path / "export", base, "F32", "Q4_0", parity_positions=64)
    stage = {
        "name": "judge", "kind": "evaluate", "model": "m", "data": "d", "files": "f", "max_length": 96, "threads": 1,
        "gate": [{"metric": "perplexity.Q4_0", "op": "<", "value": 1e9}],
    }  # fmt: skip
    place = rows(tmp_path / "rows.jsonl")
    judged = make_context(tmp_path, stage, inputs={"model": base, "data": place, "files": ctx.out})
    metrics = run(judged).metrics
    assert metrics["loss.F32"] == pytest.approx(metrics["loss"], abs=1e-5)
    assert metrics["loss.Q4_0"] != pytest.approx(metrics["loss"], abs=1e-4)
    assert metrics["perplexity.F32"] == pytest.approx(metrics["perplexity"], rel=1e-4)
    report = json.loads((judged.out / "report.json").read_text())
    assert report["files"]["Q4_0"]["protocol"].endswith("Q4_0 weights in llama.cpp, f32 cache")


def test_an_adapter_file_over_its_base_file_has_the_loss_of_the_adapter_folder(tmp_path: Path, base: Path) -> None:
    adapter = build_adapter(tmp_path / "adapter", base, lora_alpha=160)
    ctx = export_with(tmp_path / "export", base, {"one": adapter})
    kinds = {str(read_gguf(file).scalar("general.type", "model")): file.name for file in ctx.out.glob("*.gguf")}
    model, over = kinds["model"], kinds["adapter"]
    place = rows(tmp_path / "rows.jsonl")
    folder = loss_of_folder(load_model(adapter, "a"), data(place), warn, progress)
    bare = loss_of_folder(load_model(base, "b"), data(place), warn, progress)
    both = loss_of_file(LossFile(ctx.out / model, ctx.out / over, base, 1), data(place), warn, progress)
    assert both.loss == pytest.approx(folder.loss, abs=1e-3)
    assert abs(folder.loss - bare.loss) > 0.01


def test_an_adapter_is_scored_over_its_base_in_4_bits_and_in_16(tmp_path: Path, base: Path, adapter: Path) -> None:
    """By hand: each adapted model's linear layers replaced by the values that NF4 stands for."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    copy = copy_folder(adapter, tmp_path / "adapter")
    place = rows(tmp_path / "rows.jsonl")
    with pytest.raises(OperatorError, match="was trained over a 4-bit base"):
        load_model(copy, "a", load_in_4bit=True)
    (copy / "base.json").write_text(json.dumps({"path": str(base), "quantization": NF4}))
    over = loss_of_folder(load_model(copy, "a", load_in_4bit=True), data(place), warn, progress)
    assert over.protocol.endswith("float32 with 4-bit layers weights")
    loaded = load_model(copy, "a")
    wide = loss_of_folder(loaded, data(place), warn, progress)
    for name, weight in loaded.model.named_parameters():
        if "_proj" in name and "lora_" not in name:
            packed, state = quantize_4bit(weight.data, blocksize=64, quant_type="nf4")
            weight.data = dequantize_4bit(packed, state).to(torch.float32)
    rounded = loss_of_folder(loaded, data(place), warn, progress)
    assert over.loss == pytest.approx(rounded.loss, abs=1e-4)
    assert abs(over.loss - wide.loss) > 1e-3


def test_rows_of_preferences_are_refused_with_what_an_evaluation_can_do(tmp_path: Path, base: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "one", "chosen": "two", "rejected": "three"}) + "\n")
    with pytest.raises(OperatorError, match="a pair of answers") as caught:
        loss_of_folder(load_model(base, "b"), data(tmp_path / "p.jsonl"), warn, progress)
    assert caught.value.hint == SCORED_OF_PAIR
    assert "dpo" not in caught.value.hint


def test_a_file_of_another_vocabulary_is_refused(tmp_path: Path, base: Path) -> None:
    ctx, _ = export(tmp_path / "run", base, "F16", parity_positions=64)
    words = build_byte_level_tokenizer(tmp_path / "words")
    (words / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    file = ctx.out / "run-F16.gguf"
    with pytest.raises(OperatorError, match="another vocabulary than the model: its token"):
        loss_of_file(LossFile(file, None, words, 1), data(rows(tmp_path / "r.jsonl")), warn, progress)
    with pytest.raises(OperatorError, match="can divide into other tokens"):
        loss_of_file(LossFile(file, None, None, 1), data(rows(tmp_path / "r.jsonl")), warn, progress)
