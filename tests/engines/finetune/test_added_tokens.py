"""A base model without a chat template learns ChatML: its control tokens are added, trained, merged and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.labels.templates import TEMPLATES
from recipes.problems import OperatorError
from tests.engines.training.attempts import context, resume_point, run_stage
from tests.engines.training.tiny import FINETUNE, SHAPE, write_messages, write_model
from tests.exporters.exporting import export, merge

pytestmark = pytest.mark.torch

START, END = 258, 259
"""Ids of the added tokens: behind the alphabet, one merge and the base model's only control token."""


def write_base(folder: Path, *, tied: bool, free_rows: int) -> Path:
    """A base model whose end token is `<|endoftext|>`, without a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    pieces = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "xx"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("x", "x")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    fast.save_pretrained(str(folder))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(pieces) + free_rows,
        tie_word_embeddings=tied,
        eos_token_id=0,
        bos_token_id=0,
        max_position_embeddings=128,
        **SHAPE,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize(
    ("tied", "free_rows"),
    [
        (True, 0),
        pytest.param(False, 7, marks=pytest.mark.thorough),
        pytest.param(True, 7, marks=pytest.mark.thorough),
        pytest.param(False, 0, marks=pytest.mark.thorough),
    ],
)
def test_a_base_without_template_is_trained_merged_and_exported_with_real_tokens(
    tmp_path: Path, tied: bool, free_rows: int
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from engines.evaluate.model import load_model

    base = write_base(tmp_path / "base", tied=tied, free_rows=free_rows)
    stage = {**FINETUNE, "max_steps": 2, "max_length": 64, "learning_rate": 0.05, "chat_template": "chatml"}
    ctx = context(tmp_path / "run", stage, {"model": base, "data": write_messages(tmp_path / "data", val=0)})
    assert run_stage(ctx) is not None
    merged = merge(tmp_path / "merged", base, ctx.out)[0].out

    adapted = load_model(ctx.out, "").model
    whole: Any = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    ids = torch.tensor([[START, 50, 60, END, START, 70, END]])
    assert torch.allclose(adapted(ids).logits, whole(ids).logits, atol=1e-4)

    rows = whole.get_input_embeddings().weight
    assert rows.shape[0] == 258 + max(free_rows, 2)
    others = rows[:258].float().mean(dim=0)
    assert all((rows[token] - others).abs().max() > 0.01 for token in (START, END)), "they began there and were trained"
    settings = json.loads((merged / "config.json").read_text())
    assert settings["tie_word_embeddings"] is tied
    assert json.loads((merged / "generation_config.json").read_text())["eos_token_id"] == [0, END]
    tokenizer = AutoTokenizer.from_pretrained(str(merged))
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [START, END]
    assert tokenizer.chat_template == TEMPLATES["chatml"].text
    assert tokenizer.eos_token == "<|im_end|>"
    if free_rows:
        gguf, _ = export(tmp_path / "gguf", merged, "f16")
        assert list(gguf.out.glob("*.gguf"))


def test_a_tokenizer_that_has_the_marks_keeps_its_vocabulary(tmp_path: Path) -> None:
    inputs: dict[str, Path | str] = {
        "model": write_model(tmp_path / "model"),
        "data": write_messages(tmp_path / "data", val=0),
    }
    ctx = context(tmp_path / "run", {**FINETUNE, "max_steps": 1, "chat_template": "chatml"}, inputs)
    assert run_stage(ctx) is not None
    assert json.loads((ctx.out / "adapter_config.json").read_text())["trainable_token_indices"] is None
    assert (ctx.out / "chat_template.jinja").read_text() == TEMPLATES["chatml"].text


def test_a_template_file_that_changed_since_a_checkpoint_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(TEMPLATES["chatml"].text)
    inputs: dict[str, Path | str] = {
        "model": write_model(tmp_path / "model"),
        "data": write_messages(tmp_path / "data", val=0),
    }
    stage = {**FINETUNE, "max_steps": 2, "save_steps": 1, "chat_template": str(file)}
    ctx = context(tmp_path / "run", stage, inputs)
    assert run_stage(ctx) is not None
    point = resume_point(ctx, 1)
    file.write_text(TEMPLATES["chatml"].text + "{# changed #}")
    with pytest.raises(OperatorError, match="step 1 was trained with"):
        run_stage(context(tmp_path / "run", stage, inputs, attempt=2, resume=point))
    file.write_text(TEMPLATES["chatml"].text)
    assert run_stage(context(tmp_path / "run", stage, inputs, attempt=2, resume=point)) is not None
