"""A tokenizer class that changes ids is named, with a way out that works, before any stage tokenizes with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engines.data.tokenizer_class import check_tokenizer_class
from engines.evaluate.model import load_model
from engines.events.writers import Warned
from engines.finetune.model import load_base
from recipes.problems import OperatorError
from tests.exporters.exporting import export
from tests.exporters.small_models import build_byte_level_tokenizer, build_model, edit_json
from tests.stage_context import make_context

pytestmark = pytest.mark.torch


def mislabelled(folder: Path) -> Path:
    """GPT-2's class splits words by its own pattern, and not by the one in tokenizer.json."""
    words = build_byte_level_tokenizer(folder / "words")
    fields = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 1}
    model = build_model(folder / "model", words, **fields)  # type: ignore[arg-type]
    edit_json(model / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    return model


def test_every_stage_that_tokenizes_refuses_a_class_that_changes_ids(tmp_path: Path) -> None:
    model = mislabelled(tmp_path)
    for stage in (
        lambda: load_base(model),
        lambda: load_model(model, "model"),
        lambda: export(tmp_path, model, "F16"),
    ):
        with pytest.raises(OperatorError, match=r"tokenizer_class — with GPT2Tokenizer, .* has \d+ tokens") as caught:
            stage()
        assert '"tokenizer_class": "PreTrainedTokenizerFast"' in caught.value.hint
    assert not list(tmp_path.rglob("*.gguf"))
    edit_json(model / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert load_model(model, "model")
    assert export(tmp_path / "fixed", model, "F16", parity_positions=60)


def test_a_difference_in_unusual_texts_alone_is_a_warning(tmp_path: Path) -> None:
    """A space before every text, which the class puts there and tokenizer.json does not."""
    from transformers import AutoTokenizer

    words = build_byte_level_tokenizer(tmp_path, individual_digits=True)
    tokenizer = AutoTokenizer.from_pretrained(words)
    assert check_tokenizer_class(words, tokenizer) == []

    class Spaced:
        def __call__(self, text: str, **flags: bool) -> dict[str, list[int]]:
            return {"input_ids": tokenizer(text if text.strip() else text + " ", **flags)["input_ids"]}

    found = check_tokenizer_class(words, Spaced())
    assert len(found) == 1
    assert "with Spaced, transformers gives" in found[0]
    assert "unusual texts other token ids" in found[0]
    assert '"tokenizer_class": "PreTrainedTokenizerFast"' in found[0]
    with pytest.raises(OperatorError, match="with Spaced, transformers does not follow"):
        check_tokenizer_class(words, Spaced(), exact=True)


def test_a_folder_without_the_file_has_nothing_to_compare(tmp_path: Path) -> None:
    assert check_tokenizer_class(tmp_path, None) == []
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(OperatorError, match="is not a tokenizer"):
        check_tokenizer_class(tmp_path, None)


def test_a_class_that_only_normalizes_is_a_warning_for_an_export_too(tmp_path: Path) -> None:
    """llama.cpp normalizes no text, whichever of the two is right."""
    import unicodedata

    from transformers import AutoTokenizer

    words = build_byte_level_tokenizer(tmp_path, individual_digits=True)
    tokenizer = AutoTokenizer.from_pretrained(words)

    class Normalized:
        def __call__(self, text: str, **flags: bool) -> dict[str, list[int]]:
            return {"input_ids": tokenizer(unicodedata.normalize("NFC", text), **flags)["input_ids"]}

    (found,) = check_tokenizer_class(words, Normalized(), exact=True)
    assert "unusual texts other token ids" in found


def test_a_run_warns_of_a_tokenizer_where_it_comes_in_and_not_again_of_what_it_made(tmp_path: Path) -> None:
    fields = {"name": "e", "kind": "export", "model": "m", "file_types": ["F16"]}
    ctx = make_context(tmp_path, fields, inputs={"model": tmp_path})
    given = ctx.inputs["model"]
    for origin in ("path", "stage"):
        ctx.inputs = {"model": replace(given, origin=origin)}
        ctx.warn_of("model")(f"from a {origin}")
    assert [event.message for event in ctx.events() if isinstance(event, Warned)] == ["from a path"]
