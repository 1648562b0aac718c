"""What llama.cpp and Ollama feed a model, and where they end its answers, is what transformers does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.generation_config import end_ids, read_generation_config
from engines.events.writers import Warned
from engines.llama.gguf_file import read_gguf
from engines.llama.process import LlamaProcess
from exporters.gguf import write as gguf_write
from exporters.gguf.vocab import Vocabulary, read_vocabulary
from tests.exporters.exporting import export, failed_export, merge, parity
from tests.exporters.small_models import build_byte_level_tokenizer, build_model, copy_folder, edit_json

pytestmark = pytest.mark.torch
BEGIN, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
FIELDS: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_byte_level_tokenizer(tmp_path_factory.mktemp("words"), individual_digits=True)


def model_of(folder: Path, words: Path, template: str, *, begin: bool, bos: str = BEGIN, **generation: Any) -> Path:
    """A model whose tokenizer.json's post-processor alone says whether texts begin with the begin token."""
    build_model(folder, words, **FIELDS)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    ids = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
    token, text = {"SpecialToken": {"id": BEGIN, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": [token, text],
        "pair": [token, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BEGIN: {"id": BEGIN, "ids": [ids[BEGIN]], "tokens": [BEGIN]}},
    }
    tokenizer["post_processor"] = processor if begin else None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    edit_json(folder / "tokenizer_config.json", bos_token=bos, eos_token=BEGIN)
    (folder / "chat_template.jinja").write_text(template)
    edit_json(folder / "config.json", bos_token_id=ids[bos], eos_token_id=ids[BEGIN])
    edit_json(folder / "generation_config.json", **{"eos_token_id": ids[BEGIN], **generation})
    return folder


def warnings_of(ctx: Any) -> list[str]:
    return [event.message for event in ctx.events() if isinstance(event, Warned)]


def prompt_of(modelfile: str) -> str:
    return re.search(r'TEMPLATE """(.*?)"""\n', modelfile, re.DOTALL)[1]  # type: ignore[index]


def test_a_begin_token_that_only_the_post_processor_names_is_in_the_file_and_once_in_the_prompt(
    tmp_path: Path, words: Path
) -> None:
    folder = model_of(tmp_path / "m", words, "{{ bos_token }}" + CHATML, begin=True)
    ctx, _ = export(tmp_path, folder, "F16", parity_positions=60)
    file = read_gguf(ctx.out / "run-F16.gguf")
    assert file.scalar("tokenizer.ggml.add_bos_token") is True
    check = parity(ctx)["files"][0]["meaning"]["tokenizer"]
    assert check["different"] == []
    assert check["chats"] == check["prompts"] > 60, "the Modelfile's prompt has the ids of the chat template"
    assert BEGIN not in prompt_of((ctx.out / "Modelfile").read_text()), "the runtime adds it"
    assert warnings_of(ctx) == []


def test_a_begin_token_that_begins_every_message_is_in_the_prompt(tmp_path: Path, words: Path) -> None:
    folder = model_of(tmp_path / "m", words, CHATML, begin=False, bos=START)
    ctx, _ = export(tmp_path, folder, "F16", parity_positions=60)
    assert read_gguf(ctx.out / "run-F16.gguf").scalar("tokenizer.ggml.add_bos_token") is False
    check = parity(ctx)["files"][0]["meaning"]["tokenizer"]
    assert check["different"] == []
    assert check["chats"] == check["prompts"]
    prompt = prompt_of((ctx.out / "Modelfile").read_text())
    assert prompt.startswith("{{ range .Messages }}")
    assert prompt.count(START) == 4


def test_a_begin_token_that_the_template_leaves_out_is_named(tmp_path: Path, words: Path) -> None:
    folder = model_of(tmp_path / "m", words, CHATML, begin=True)
    ctx, _ = export(tmp_path, folder, "F16", "Q8_0", parity_positions=60)
    found = [text for text in warnings_of(ctx) if "before a conversation" in text]
    assert len(found) == 1
    assert f"llama.cpp and Ollama put {BEGIN} before a conversation" in found[0]


@pytest.mark.parametrize("flag", ["add_bos", "add_eos"])
def test_a_wrong_flag_fails_the_export(tmp_path: Path, words: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    def spoiled(folder: Path, config: dict[str, Any]) -> Vocabulary:
        vocabulary = read_vocabulary(folder, config)
        setattr(vocabulary, flag, not getattr(vocabulary, flag))
        return vocabulary

    folder = model_of(tmp_path / "m", words, "{{ bos_token }}" + CHATML, begin=True)
    monkeypatch.setattr(gguf_write, "read_vocabulary", spoiled)
    message = failed_export(tmp_path, folder, "F16", parity_positions=60)
    assert "token ids differ" in message
    assert f"tokenizer.ggml.{flag}_token" in message


def test_every_end_token_ends_an_answer_in_llama_cpp(tmp_path: Path, words: Path) -> None:
    """generation_config.json has two that no name gives away; the chat template writes one more."""
    folder = model_of(tmp_path / "m", words, CHATML.replace(END, START), begin=False, eos_token_id=[5, 9])
    ctx, _ = export(tmp_path, folder, "F16", parity_positions=0)
    start = {e["content"]: e["id"] for e in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]}[START]
    with LlamaProcess(ctx.out / "run-F16.gguf", 64, 1) as llama:
        assert {5, start} <= set(llama.ends())
    assert "llama.cpp does not end an answer at" in " ".join(warnings_of(ctx)), "a fourth has no place in the file"


def test_a_missing_end_token_fails_the_export(tmp_path: Path, words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(folder: Path, config: dict[str, Any]) -> Vocabulary:
        vocabulary = read_vocabulary(folder, config)
        vocabulary.special = {name: token for name, token in vocabulary.special.items() if token != 5}
        return vocabulary

    folder = model_of(tmp_path / "m", words, CHATML, begin=False, eos_token_id=[5])
    monkeypatch.setattr(gguf_write, "read_vocabulary", spoiled)
    assert "an answer does not end at" in failed_export(tmp_path, folder, "F16", parity_positions=60)


def test_named_templates_are_kept_by_name_and_the_default_one_is_the_files(
    tmp_path: Path, words: Path, adapter: Path
) -> None:
    folder = model_of(tmp_path / "m", words, CHATML, begin=False)
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": CHATML}, {"name": "tool use", "template": "t"}]
    edit_json(folder / "tokenizer_config.json", chat_template=named)
    ctx, _ = export(tmp_path, folder, "F16", parity_positions=0)
    file = read_gguf(ctx.out / "run-F16.gguf")
    assert file.scalar("tokenizer.chat_template") == CHATML
    assert file.scalar("tokenizer.chat_template.tool_use") == "t"
    assert parity(ctx)["problems"] == []
    edit_json(folder / "tokenizer_config.json", chat_template=named[1:])
    vocabulary = read_vocabulary(folder, json.loads((folder / "config.json").read_text()))
    assert list(vocabulary.templates) == ["tool use"]
    assert any("no chat template is named default" in text for text in vocabulary.warnings)


def test_a_merged_model_keeps_its_named_templates(tmp_path: Path, base: Path, adapter: Path) -> None:
    from transformers import AutoTokenizer

    folder = copy_folder(base, tmp_path / "m")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("r")
    ctx, _ = merge(tmp_path, folder, adapter)
    assert AutoTokenizer.from_pretrained(ctx.out).chat_template["rag"] == "r"


def test_the_token_that_training_ended_on_ends_every_artifact(tmp_path: Path, base: Path) -> None:
    """A base model that ends a text with </s>, trained on conversations whose turns end with <|im_end|>."""
    from engines.finetune.stage import run
    from tests.engines.training.tiny import FINETUNE, write_messages
    from tests.stage_context import make_context

    data = write_messages(tmp_path / "data", rows=3, val=0)
    fields = {**FINETUNE, "max_steps": 1, "gradient_accumulation_steps": 1}
    tuned = make_context(tmp_path / "tuned", fields, inputs={"model": base, "data": data})
    run(tuned)
    assert end_ids(read_generation_config(base)) == [2]
    assert end_ids(read_generation_config(tuned.out)) == [2, 4]
    merged, _ = merge(tmp_path / "merged", base, tuned.out, parity_positions=0)
    assert end_ids(read_generation_config(merged.out)) == [2, 4]
    exported, _ = export(tmp_path / "exported", merged.out, "F16", parity_positions=0)
    with LlamaProcess(exported.out / "run-F16.gguf", 64, 1) as llama:
        assert {2, 4} <= set(llama.ends())
    assert 'PARAMETER stop """<|im_end|>"""' in (exported.out / "Modelfile").read_text()
