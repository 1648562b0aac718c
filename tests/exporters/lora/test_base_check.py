"""An adapter is refused for another base model, another revision of it, and another tokenizer; nothing is trained or
loaded to find out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exporters.lora.base_check import check_base, refuse_quantized_name
from recipes.problems import OperatorError
from tests.exporters.small_models import copy_folder, edit_json

ONE, OTHER = "a" * 40, "b" * 40
WORDS = {"the": 0, "model": 1, "answers": 2, "</s>": 3}


def folder(path: Path, tokens: dict[str, int] | None = None, added: dict[str, int] | None = None) -> Path:
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text("{}")
    if tokens is not None:
        items = [{"id": index, "content": token} for token, index in (added or {}).items()]
        (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokens}, "added_tokens": items}))
    return path


def settings(adapter: Path, **fields: Any) -> Path:
    edit_json(adapter / "adapter_config.json", **fields)
    return adapter


def test_a_revision_that_peft_recorded_is_compared_with_that_of_the_cache(tmp_path: Path) -> None:
    base = folder(tmp_path / "models--org--name" / "snapshots" / ONE)
    adapter = settings(folder(tmp_path / "adapter"), revision=ONE)
    assert not [text for text in check_base(base, None, adapter) if "revision" in text]
    settings(adapter, revision=OTHER)
    words = f"was trained on revision {OTHER} .*, but the base model is revision {ONE[:10]}"
    with pytest.raises(OperatorError, match=words) as caught:
        check_base(base, None, adapter)
    assert f"cockpit pull org/name@{OTHER}" in caught.value.hint
    settings(adapter, revision="main", base_model_name_or_path="org/name")
    check_base(base, None, adapter)
    (base.parents[1] / "refs").mkdir()
    (base.parents[1] / "refs" / "main").write_text(OTHER)
    with pytest.raises(OperatorError, match="was trained on revision main"):
        check_base(base, None, adapter)
    settings(adapter, base_model_name_or_path="elsewhere/name")
    check_base(base, None, adapter)


def test_a_quantized_copy_is_named_with_what_to_use_instead(tmp_path: Path) -> None:
    base, adapter = folder(tmp_path / "base"), folder(tmp_path / "adapter")
    for name, whole in {
        "unsloth/Qwen2.5-7B-Instruct-bnb-4bit": "unsloth/Qwen2.5-7B-Instruct",
        "unsloth/Llama-3.1-8B-unsloth-bnb-4bit": "unsloth/Llama-3.1-8B",
        "org/Name-GPTQ": "org/Name",
        "org/name-AWQ": "org/name",
    }.items():
        settings(adapter, base_model_name_or_path=name)
        (words,) = [text for text in check_base(base, None, adapter) if "quantized copy" in text]
        assert name in words
        with pytest.raises(OperatorError, match="quantized copy") as caught:
            refuse_quantized_name(name, adapter)
        assert f"--model {whole}," in caught.value.hint
        refuse_quantized_name(whole, adapter)
    settings(adapter, base_model_name_or_path="org/name-7B")
    assert not [text for text in check_base(base, None, adapter) if "quantized" in text]
    refuse_quantized_name("org/name-7B", adapter)


def test_a_token_that_means_another_text_is_refused_and_a_renamed_mark_is_said(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", WORDS, {"</s>": 3})
    wider = folder(tmp_path / "wider", WORDS, {"</s>": 3, "<tool>": 4})
    assert not [text for text in check_base(base, None, wider) if "token " in text]
    renamed = folder(tmp_path / "renamed", {**{k: v for k, v in WORDS.items() if v != 3}, "<|im_end|>": 3}, {})
    (words,) = [text for text in check_base(base, None, renamed) if "token " in text]
    assert "token 3 is '<|im_end|>'" in words
    assert "'</s>'" in words
    another = folder(tmp_path / "another", {"the": 1, "model": 0, "answers": 2, "</s>": 3}, {"</s>": 3})
    with pytest.raises(OperatorError, match=r"token 0 is 'model' .* \(2 tokens differ\)") as caught:
        check_base(base, None, another)
    assert "base model" in caught.value.hint


def test_a_unigram_vocabulary_is_compared_too_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    base, adapter = folder(tmp_path / "base"), folder(tmp_path / "adapter")
    for path, first in ((base, "a"), (adapter, "b")):
        (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [[first, -1.0], ["c", -2.0]]}}))
    with pytest.raises(OperatorError, match="token 0 is 'b'"):
        check_base(base, None, adapter)
    (adapter / "tokenizer.json").write_text('{"model": {"vocab": [1, 2]}}')
    with pytest.raises(OperatorError, match=r"adapter/tokenizer\.json is not a tokenizer"):
        check_base(base, None, adapter)


def test_a_copy_of_the_folder_is_the_same_base_model(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", WORDS)
    adapter = folder(tmp_path / "adapter", WORDS)
    assert check_base(copy_folder(base, tmp_path / "copy"), None, adapter) == [
        "the adapter does not name the content of its base model: could not check that the adapter was trained on this "
        "base model"
    ]


def test_a_merge_that_rounds_the_base_as_in_training_is_not_warned_of_that_rounding(tmp_path: Path) -> None:
    base, adapter = folder(tmp_path / "base"), folder(tmp_path / "adapter")

    def said(base_rounding: str | None) -> list[str]:
        return [text for text in check_base(base, None, adapter, base_rounding=base_rounding) if "4 bits" in text]

    quantization = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False}
    (adapter / "base.json").write_text(json.dumps({"quantization": quantization}))
    assert said("nf4") == []
    assert "; base_rounding = nf4 rounds the base as in training" in said("none")[0]
    assert "weights rounded to nf4-double, which differ" in said("nf4-double")[0]
    assert "; a merge stage with base_rounding = nf4" in said(None)[0], "an export has no such field"
    (adapter / "base.json").write_text(json.dumps({"quantization": quantization | {"bnb_4bit_use_double_quant": True}}))
    assert said("nf4-double") == []
    assert "; base_rounding = nf4-double rounds" in said("nf4")[0]


def test_a_base_that_is_rounded_for_an_adapter_of_whole_weights_is_said(tmp_path: Path) -> None:
    base, adapter = folder(tmp_path / "base"), folder(tmp_path / "adapter")
    (adapter / "base.json").write_text(json.dumps({"path": str(base)}))
    assert not [text for text in check_base(base, None, adapter, base_rounding="none") if "base_rounding" in text]
    found = [text for text in check_base(base, None, adapter, base_rounding="nf4") if "base_rounding" in text]
    assert found[0].startswith("base_rounding = nf4 rounds a base over which the adapter was not trained in 4 bits")
