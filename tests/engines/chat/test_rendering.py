"""A chat template renders as in transformers, and a hostile one ends its own process and nothing else."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from engines.chat import rendering
from engines.chat.rendering import (
    Chat,
    TemplateLimitError,
    TemplateRefusedError,
    render,
    render_each,
)
from tests.engines.training.tiny import CHATML, write_tokenizer

pytestmark = pytest.mark.torch
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "\ud800 <b> 'x'"},
    {"role": "user", "content": "a\n", "tool_calls": None},
    {"role": "assistant", "content": "b"},
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
PLAIN = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content | trim }}{% endfor %}"
JSON = "{% for m in messages %}{{ m | tojson }}{% if 'tool_calls' in m %}!{% endif %}{% endfor %}{{ tools | tojson }}"
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
GROWS = "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(write_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


@pytest.mark.parametrize("template", [CHATML, PLAIN, JSON])
@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_the_text_is_the_one_of_transformers(tokenizer: Any, template: str, opened: bool, tools: Any) -> None:
    tokenizer.chat_template = template
    wanted = tokenizer.apply_chat_template(TALK, tools=tools, tokenize=False, add_generation_prompt=opened)
    assert render(tokenizer, [Chat(TALK[:1]), Chat(TALK, opened)], tools=tools)[1] == wanted


def test_the_spans_of_answers_are_those_that_the_template_marks(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    _, marked = render_each(CHATML, {}, [Chat(TALK[:1]), Chat(TALK)], marked=True)
    assert [marked.text[start:end] for start, end in marked.spans] == ["b<|im_end|>"]


def test_a_conversation_that_is_refused_does_not_stop_the_others() -> None:
    picky = "{% if messages | length == 1 %}{{ raise_exception('too short') }}{% endif %}" + CHATML
    refused, whole = render_each(picky, {}, [Chat(TALK[:1]), Chat(TALK)], marked=False)
    assert "too short" in (refused.refused or "")
    assert whole.refused is None
    assert "b<|im_end|>" in whole.text


def test_a_template_sees_the_moment_that_is_given_and_else_the_present_one(tokenizer: Any) -> None:
    dated = "{{ strftime_now('%d %b %Y %H:%M') }}"
    (found,) = render_each(dated, {}, [Chat(TALK)], marked=False, moment="2020-02-29T23:59:30")
    assert found.text == "29 Feb 2020 23:59"
    tokenizer.chat_template = dated
    assert int(render(tokenizer, [Chat(TALK)])[0].split()[2]) > 2020


def test_named_templates_are_chosen_as_transformers_chooses(tokenizer: Any) -> None:
    tokenizer.chat_template = {"default": "d", "tool_use": "t"}
    assert render(tokenizer, [Chat(TALK)]) == ["d"]
    assert render(tokenizer, [Chat(TALK)], tools=[TOOL]) == ["t"]
    tokenizer.chat_template = {"rag": "r"}
    with pytest.raises(TemplateRefusedError, match="no chat template to use"):
        render(tokenizer, [Chat(TALK)])


def test_a_template_that_refuses_is_quoted(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(TemplateRefusedError, match="roles must alternate"):
        render(tokenizer, [Chat(TALK)])


@pytest.mark.parametrize(
    ("template", "seconds", "why"),
    [(LOOPS, 0.2, "took more than"), (GROWS, 5.0, "of memory"), ("{{ 'x' * 20000000 }}", 5.0, "characters")],
    ids=["loops", "grows", "long"],
)
def test_a_template_has_limits_and_is_not_tried_twice(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, template: str, seconds: float, why: str
) -> None:
    monkeypatch.setattr(rendering, "CPU_SECONDS", seconds)
    monkeypatch.setattr(rendering._RENDERER, "_failed", {})
    tokenizer.chat_template = template
    with pytest.raises(TemplateLimitError, match=why):
        render(tokenizer, [Chat(TALK)])
    monkeypatch.setattr(rendering._RENDERER, "_running", lambda: pytest.fail("the template was tried again"))
    with pytest.raises(TemplateLimitError, match="was stopped"):
        render(tokenizer, [Chat(TALK)])
    monkeypatch.undo()
    tokenizer.chat_template = PLAIN
    assert render(tokenizer, [Chat(TALK[1:])]) == ["<s>user:aassistant:b"], "the next template renders"


class Stopped(Exception):  # noqa: N818 - an outcome
    pass


def test_a_stop_ends_the_wait_for_a_template(tokenizer: Any) -> None:
    looks = 0

    def stop() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise Stopped

    tokenizer.chat_template = LOOPS
    with pytest.raises(Stopped):
        render(tokenizer, [Chat(TALK)], waiting=stop)
    tokenizer.chat_template = PLAIN
    assert render(tokenizer, [Chat(TALK[1:])]) == ["<s>user:aassistant:b"], "not the late answer to the stopped request"


def test_a_worker_that_was_killed_is_replaced(tokenizer: Any) -> None:
    tokenizer.chat_template = PLAIN
    wanted = render(tokenizer, [Chat(TALK[1:])])
    worker = rendering._RENDERER._worker
    assert worker is not None
    os.kill(worker.pid, signal.SIGKILL)
    assert render(tokenizer, [Chat(TALK[1:])]) == wanted


def test_a_forked_process_has_a_worker_of_its_own(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = PLAIN
    wanted = render(tokenizer, [Chat(TALK[1:])])
    mine = rendering._RENDERER._worker
    child = os.fork()
    if child == 0:
        try:
            same = render(tokenizer, [Chat(TALK[1:])]) == wanted and rendering._RENDERER._worker is not mine
            os._exit(0 if same else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert render(tokenizer, [Chat(TALK[1:])]) == wanted
