"""Chat templates by name, in Cockpit's own form: for a base model without one, or instead of one that drops text.

They follow the formats that these families were trained with. Each scores the same text as any other template: the
answer and its end token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.files import read_regular_text
from recipes.problems import OperatorError, closest, printable

_CHATML = (
    "{% set ns = namespace(first=0) %}"
    "{% if tools %}"
    "{{ '<|im_start|>system\\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% set ns.first = 1 %}{% endif %}"
    "{{ 'To call a function, write a JSON object with its name and arguments between <tool_call> and </tool_call>.' }}"
    "{{ ' These functions exist:' }}"
    "{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endif %}"
    "{% for m in messages[ns.first:] %}"
    "{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content %}{{ '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}"
    "{{ ('\\n' if m.content or not loop.first else '') + '<tool_call>\\n'"
    " + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson) + '\\n</tool_call>' }}"
    "{% endfor %}"
    "{{ '<|im_end|>\\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LLAMA_3 = (
    "{{ bos_token }}"
    "{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + (m.content | trim) + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}"
    "{% set ns = namespace(system='') %}"
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\\n\\n' %}"
    "{% elif m.role == 'user' %}{{ '[INST] ' + ns.system + m.content + ' [/INST]' }}{% set ns.system = '' %}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ raise_exception('this template has no place for a turn of the role ' + m.role) }}{% endif %}"
    "{% endfor %}"
)
_GEMMA = (
    "{{ bos_token }}"
    "{% set ns = namespace(system='') %}"
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\\n\\n' %}"
    "{% elif m.role in ['user', 'assistant'] %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\\n' }}"
    "{{ (ns.system if m.role == 'user' else '') + (m.content | trim) + '<end_of_turn>\\n' }}"
    "{% if m.role == 'user' %}{% set ns.system = '' %}{% endif %}"
    "{% else %}{{ raise_exception('this template has no place for a turn of the role ' + m.role) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_PHI_3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
_ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class NamedTemplate:
    """A chat template of a family.

    Attributes:
        text: the template.
        marks: the control tokens that it writes, besides the tokenizer's own beginning and end.
        end: the one that ends a turn; empty where the tokenizer's end token does.
    """

    text: str
    marks: tuple[str, ...] = ()
    end: str = ""


TEMPLATES: Mapping[str, NamedTemplate] = {
    "chatml": NamedTemplate(_CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "llama-3": NamedTemplate(_LLAMA_3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
    "mistral": NamedTemplate(_MISTRAL),
    "gemma": NamedTemplate(_GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
    "phi-3": NamedTemplate(_PHI_3, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|end|>"),
    "zephyr": NamedTemplate(_ZEPHYR),
}
"""`chatml` has a place for everything: system, tools, calls, and reasoning of every turn."""


def chosen_template(given: str) -> NamedTemplate | None:
    """The template of the field `chat_template`: one of the names, or a file; None for an empty text.

    Raises:
        OperatorError: no template has this name, or the file cannot be read.
    """
    if not given:
        return None
    if given in TEMPLATES:
        return TEMPLATES[given]
    if "/" not in given:
        near = closest(given, TEMPLATES)
        raise OperatorError(
            f"chat_template — no such template; got {printable(given, 60)!r}; allowed: {', '.join(TEMPLATES)}, or a"
            " path such as ./chat_template.jinja",
            near or "set a name or a path",
        )
    path = Path(given)
    try:
        text = read_regular_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"{path}: cannot be read as a template: {error}", "give a file of Jinja text") from error
    if not text.strip():
        raise OperatorError(f"{path}: the template is empty", "give a file of Jinja text")
    return NamedTemplate(text)
