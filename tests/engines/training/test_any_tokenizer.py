"""A text, the tokenizer of any model, and a model that is trained from scratch on both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engines.data.stage import run as prepare
from engines.evaluate.stage import run as evaluate
from engines.events.results import SampledText
from recipes.problems import OperatorError
from tests.engines.small_corpora import write_tree
from tests.engines.training.attempts import context, of_kind, run_stage
from tests.engines.training.tiny import PRETRAIN, write_tokenizer
from tests.exporters.small_models import copy_folder, edit_json
from tests.stage_context import make_context

pytestmark = pytest.mark.torch


def _further(tmp_path: Path, model: Path, tokens: Path) -> None:
    """A model with more rows than its tokenizer has tokens is trained further; one of another tokenizer is refused."""
    padded, other = copy_folder(model, tmp_path / "padded"), copy_folder(model, tmp_path / "other-tokenizer")
    weights = load_file(padded / "model.safetensors")
    rows = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = torch.cat([rows, rows[:3]])
    save_file(weights, padded / "model.safetensors", metadata={"format": "pt"})
    edit_json(padded / "config.json", vocab_size=264)
    stage = {**PRETRAIN, "max_steps": 1, "start_from": "x"}
    warm = context(tmp_path / "warm", stage, {"data": tokens, "start_from": padded})
    assert run_stage(warm) is not None
    assert json.loads((warm.out / "config.json").read_text())["vocab_size"] == 264
    content = json.loads((other / "tokenizer.json").read_text())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<|im_end|>"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(OperatorError, match=r"not those of the tokenizer .* tokenizer\.json differs"):
        run_stage(context(tmp_path / "wrong", stage, {"data": tokens, "start_from": other}))


def test_a_model_is_trained_and_judged_on_a_text_in_the_tokens_of_another_model(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "their-model")
    (tokenizer / "tokenizer.model").unlink()
    book = write_tree(tmp_path, {"book.txt": "".join(f"This is line {n} of it.\n" for n in range(400))}) / "book.txt"
    text = make_context(tmp_path / "text", {"name": "text", "kind": "prepare", "output": "text", "source": str(book)})
    prepare(text)
    tokens = make_context(
        tmp_path / "tokens",
        {"name": "tokens", "kind": "prepare", "output": "tokens", "data": "text", "tokenizer": "their-model"},
        inputs={"data": text.out, "tokenizer": tokenizer},
    )
    prepare(tokens)
    base = context(
        tmp_path / "base",
        {**PRETRAIN, "max_steps": 2, "sample_steps": 2, "sample_prompts": ["This"], "sample_max_new_tokens": 2},
        {"data": tokens.out},
    )
    result = run_stage(base)
    assert result is not None
    assert of_kind(base, SampledText)
    config = json.loads((base.out / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"]) == (261, 2)
    _further(tmp_path, base.out, tokens.out)
    judged = {"name": "judged", "kind": "evaluate", "model": "base", "data": "tokens", "max_length": 16}
    ctx = make_context(tmp_path / "judged", judged, inputs={"model": base.out, "data": tokens.out})
    assert evaluate(ctx).metrics["loss"] > 0
    file = base.out / "tokenizer.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "padding": None}, indent=2))
    evaluate(make_context(tmp_path / "again", judged, inputs={"model": base.out, "data": tokens.out}))
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<|im_end|>"]
    file.write_text(json.dumps(content))
    with pytest.raises(OperatorError, match="encoded with another tokenizer"):
        evaluate(make_context(tmp_path / "other", judged, inputs={"model": base.out, "data": tokens.out}))
