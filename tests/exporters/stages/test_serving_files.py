"""The Modelfile and llama.cpp's commands beside the files give the prompt text of the model's own template."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from exporters.prompts.chat_format import ChatFormat, chat_format
from exporters.stages.serving_files import Served, commands, modelfile, served, write_serving_files
from tests.exporters.exporting import export

pytestmark = pytest.mark.torch
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WITH_DEFAULT = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}" + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
ALPACA = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '### Instruction:\\n' + m.content + '\\n' }}"
    "{% elif m.role == 'system' %}{{ m.content + '\\n' }}{% else %}{{ '### Response:\\n' + m.content + '\\n' "
    "}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
INSIDE = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + messages[0].content + m.content + ' "
    "[/INST]' }}{% endif %}{% endfor %}"
)
RAISING = "{{ raise_exception('no') }}"


@pytest.fixture
def tokens(tokenizer: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)


TALK = [
    ("system", "S"),
    ("user", "a {{ b"),
    ("assistant", 'x """ y'),
    ("user", "c\n"),
    ("assistant", "d"),
    ("user", "e"),
]


@pytest.mark.parametrize("template", [CHATML, WITH_DEFAULT, LLAMA3.replace(" | trim", ""), ALPACA])
@pytest.mark.parametrize("start", [0, 1])
def test_the_parts_of_a_regular_template_render_what_the_template_renders(
    tokens: Any, template: str, start: int
) -> None:
    tokens.chat_template = template
    found = chat_format(tokens)
    assert found is not None
    messages = [{"role": role, "content": text} for role, text in TALK[start:]]
    wanted = tokens.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert found.render(messages) == wanted
    assert found.render(messages, begin=tokens.bos_token) == wanted.removeprefix(tokens.bos_token)


def test_a_system_message_that_the_template_adds_by_itself_is_found(tokens: Any) -> None:
    tokens.chat_template = WITH_DEFAULT
    found = chat_format(tokens)
    assert found is not None
    assert found.system == "Be kind."


@pytest.mark.parametrize("template", [INSIDE, RAISING, "constant", "{% for m in messages %}", None])
def test_a_template_that_is_not_regular_gives_no_form(tokens: Any, template: str | None) -> None:
    tokens.chat_template = template
    assert chat_format(tokens) is None


def go_render(template: str, messages: list[dict[str, str]]) -> str:
    """Render the constructs that Cockpit writes, as Go's text/template does."""
    start, body, opening = re.fullmatch(
        r"(.*)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)", template, re.DOTALL
    ).groups()
    branches = dict(re.findall(r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}(.*?)(?=\{\{ else if|\Z)', body, re.DOTALL))
    braces = "\0"
    text = start.replace('{{ "{{" }}', "{{")
    for message in messages:
        branch = branches[message["role"]].replace('{{ "{{" }}', braces)
        text += branch.replace("{{ .Content }}", message["content"].replace("{{", braces)).replace(braces, "{{")
    return text + opening.replace('{{ "{{" }}', "{{")


@pytest.mark.parametrize("template", [CHATML, ALPACA, CHATML.replace("im_start", "{{im")])
def test_the_modelfiles_template_gives_the_models_own_prompt(tokens: Any, template: str) -> None:
    tokens.chat_template = template.replace("{{ '<|{{im", "{{ '<|{' + '{im").replace("'<|{{im", "'<|{' + '{im")
    model = Served(chat_format(tokens), True, ("<|im_end|>",), 512, {})
    assert model.chat is not None
    text = modelfile(model, "m.gguf")
    go = re.search(r'TEMPLATE """(.*?)"""\n', text, re.DOTALL)
    assert go is not None
    messages = [{"role": role, "content": content} for role, content in TALK]
    wanted = tokens.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert go_render(go[1], messages) == wanted


def test_a_modelfile_has_the_stop_tokens_and_the_authors_sampling(tokens: Any, tmp_path: Path) -> None:
    tokens.chat_template = CHATML
    (tmp_path / "generation_config.json").write_text(
        '{"eos_token_id": [2, 1], "temperature": 0.7, "top_k": 20, "top_p": "x"}'
    )
    model = served(tmp_path, {"max_position_embeddings": 100_000, "eos_token_id": 2}, tokens)
    assert model.stops[0] in ("<|im_end|>", tokens.eos_token)
    assert tokens.eos_token in model.stops
    assert model.context == 8192
    text = modelfile(model, "m.gguf", adapters=["a.gguf"])
    assert text.startswith("FROM ./m.gguf\nADAPTER ./a.gguf\n")
    assert "PARAMETER temperature 0.7\n" in text
    assert "PARAMETER top_k 20\n" in text
    assert "top_p" not in text
    assert f'PARAMETER stop """{tokens.eos_token}"""\n' in text


def test_a_greedy_author_gets_temperature_zero(tokens: Any, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.7}')
    model = served(tmp_path, {"max_position_embeddings": 512}, tokens)
    assert model.sampling == {"temperature": 0.0}
    assert model.context == 512


def test_a_model_without_a_template_continues_text(tokens: Any, tmp_path: Path) -> None:
    tokens.chat_template = None
    text = modelfile(served(tmp_path, {"max_position_embeddings": 512}, tokens), "m.gguf")
    assert 'TEMPLATE """{{ .Prompt }}"""' in text
    assert "-no-cnv" in commands(served(tmp_path, {"max_position_embeddings": 512}, tokens), ["m.gguf"])


def test_hostile_text_stays_inside_its_quotes() -> None:
    chat = ChatFormat(
        {"system": "", "user": '"""\nFROM evil', "assistant": ""}, {"system": "", "user": "", "assistant": ""}, ""
    )
    text = modelfile(Served(chat, True, ('a"', '"""\nPARAMETER x'), 512, {}), "m.gguf")
    assert [line.split()[0] for line in text.splitlines()] == [
        "FROM",
        "TEMPLATE",
        "PARAMETER",
        "PARAMETER",
        "PARAMETER",
    ]


def test_commands_are_words_that_a_shell_reads_back(tmp_path: Path, tokens: Any) -> None:
    tokens.chat_template = CHATML
    model = served(tmp_path, {"max_position_embeddings": 512}, tokens)
    names = ["my model-F16.gguf", "it's.gguf"]
    text = commands(model, names, adapters=["a b.gguf", "c.gguf"])
    words = [shlex.split(line) for line in text.splitlines() if line.startswith("llama-")]
    assert [line[line.index("-m") + 1] for line in words] == [names[0], names[0], names[1], names[1]]
    assert all(line[line.index("--lora") + 1] == "a b.gguf" for line in words)
    assert "c.gguf" in text
    assert write_serving_files(tmp_path, model, names, ["a b.gguf"]) == ["Modelfile", "llama.cpp.txt", "Modelfile.a b"]


def test_an_export_leaves_them_beside_its_files(tmp_path: Path, base: Path) -> None:
    ctx, _ = export(tmp_path, base, "F16", "Q8_0", parity_positions=0)
    text = (ctx.out / "Modelfile").read_text()
    file = text.splitlines()[0].removeprefix("FROM ./")
    assert (ctx.out / file).is_file(), "the smallest of the files, which comes last"
    assert file.endswith("-Q8_0.gguf")
    listed = [
        shlex.split(line)[2]
        for line in (ctx.out / "llama.cpp.txt").read_text().splitlines()
        if line.startswith("llama-cli")
    ]
    assert all((ctx.out / name).is_file() for name in listed)
    assert len(listed) == 2
