"""The stock templates of TRL: for each, exact labels written down by hand, or a refusal whose way out is a field.

The templates are read from the installed package. A row of the table has the end of an answer before the last one, the
end of the last one, the call of a tool, and both answers of a conversation with reasoning; an empty text is a refusal.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from engines.labels.row import LabelledRow, RefusedRow
from engines.labels.vocabulary import Vocabulary
from recipes.stages.data_fields import DataFields
from recipes.stages.label_fields import LabelFields
from tests.engines.labels.labelling import Turns, drawn_wrong, outcomes, scored_texts

pytestmark = pytest.mark.torch

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name."}},
            "required": ["city"],
        },
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


class Expected(NamedTuple):
    """What is scored of each kind of conversation."""

    middle: str
    last: str
    call: str = ""
    reasoning: tuple[str, str] | None = None
    system: bool = True
    lead: str = ""


def qwen(call: str = "", reasoning: tuple[str, str] | None = None) -> Expected:
    return Expected("<|im_end|>", "<|im_end|>", call, reasoning)


def gemma4(call_end: str, *, thinks: bool = False) -> Expected:
    call = '<|tool_call>call:weather{city:<|"|>Oslo<|"|>}<tool_call|>' + call_end
    late = "<|channel>thought\nR2\n<channel|>A2.<turn|>"
    return Expected("<turn|>", "<turn|>", call, ("A1.<turn|>", late) if thinks else None)


JSON_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'
XML_CALL = "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>"
LFM_CALL = "<|tool_call_start|>[weather(city='Oslo')]<|tool_call_end|><|im_end|>"
LFM_THOUGHT = ("A1.<|im_end|>", "<think>R2</think>A2.<|im_end|>")
LLAMA_CALL = '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>'
OPENED = ("A1.<|im_end|>", "R2\n</think>\n\nA2.<|im_end|>")
"""The prompt of a generation has the opening mark already."""
NEMOTRON = qwen(XML_CALL + "\n<|im_end|>", ("A1.<|im_end|>", "R2\n</think>\nA2.<|im_end|>"))
NEMOTRON_TIGHT = qwen(XML_CALL + "\n<|im_end|>", ("A1.<|im_end|>", "R2</think>A2.<|im_end|>"))

TABLE: dict[str, Expected | None] = {
    "cohere": Expected("<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    "cohere2": Expected("<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    "deepseek_r1_distill": Expected("<\uff5cend▁of▁sentence\uff5c>", "<\uff5cend▁of▁sentence\uff5c>"),
    "deepseekv3": Expected("<\uff5cend▁of▁sentence\uff5c>", "<\uff5cend▁of▁sentence\uff5c>"),
    "diffusion_gemma": gemma4("<|tool_response>", thinks=True),
    "gemma": Expected("<end_of_turn>", "<end_of_turn>", system=False),
    "gemma3": Expected("<end_of_turn>", "<end_of_turn>"),
    "gemma4": gemma4("<|tool_response>"),
    "gemma4_v2": gemma4("<turn|>"),
    "gemma4_v3": gemma4("<|tool_response>"),
    "gemma4_v4": gemma4("<|tool_response>"),
    "gemma4_v5": gemma4("<|tool_response>", thinks=True),
    "glm4moe": None,  # the next turn's mark ends an answer, and the last answer has none
    "gptoss": Expected(
        "<|end|>",
        "<|return|>",
        ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>',
        (
            "A1.<|end|>",
            "<|channel|>analysis<|message|>R2<|end|><|start|>assistant<|channel|>final<|message|>A2.<|return|>",
        ),
    ),
    "idefics3": Expected("<end_of_utterance>", "<end_of_utterance>", lead=" "),
    "lfm2": qwen(),
    "lfm2_2_5": qwen(LFM_CALL, LFM_THOUGHT),
    "lfm2_2_5_v2": qwen(LFM_CALL, LFM_THOUGHT),
    "lfm2_2_5_vl": qwen(LFM_CALL, LFM_THOUGHT),
    "lfm2_v2": qwen(LFM_CALL),
    "llama3": Expected("<|eot_id|>", "<|eot_id|>"),
    "llama3_1": Expected("<|eot_id|>", "<|eot_id|>", LLAMA_CALL),
    "llama3_2": Expected("<|eot_id|>", "<|eot_id|>", LLAMA_CALL),
    "llava_next": Expected("</s>", "</s>", lead=" "),
    "muse_glimmer": Expected(
        "<|eot|>",
        "<|eot|>",
        ' to=weather<|message|><atem:function_calls>\n<atem:invoke name="weather">\n'
        '<atem:parameter name="city">Oslo</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eot|>',
        (
            " to=self<|message|>R1<|eom|><|start|>assistant to=user<|message|>A1.<|eot|>",
            " to=self<|message|>R2<|eom|><|start|>assistant to=user<|message|>A2.<|eot|>",
        ),
    ),
    "nemotron_3_5_lightning": NEMOTRON_TIGHT,
    "nemotron_3_nano": NEMOTRON,
    "nemotron_3_super": NEMOTRON,
    "nemotron_3_ultra": NEMOTRON_TIGHT,
    "phi3": Expected("<|end|>", "<|end|>"),
    "phi3_5": Expected("<|end|>", "<|end|>"),
    "qwen2_5": qwen(JSON_CALL),
    "qwen2_5_vl": qwen(),
    "qwen3": qwen(JSON_CALL, ("A1.<|im_end|>", "<think>\nR2\n</think>\n\nA2.<|im_end|>")),
    "qwen3_5_nothink": qwen(XML_CALL + "<|im_end|>", OPENED),
    "qwen3_5_think": qwen(XML_CALL + "<|im_end|>", OPENED),
    "qwen3_6": qwen(XML_CALL + "<|im_end|>", OPENED),
    "qwen3_8": qwen(XML_CALL + "<|im_end|>", ("R1\n</think>\n\nA1.<|im_end|>", OPENED[1])),
    "qwen3_instruct_2507": qwen(JSON_CALL),
    "qwen3_vl": qwen(JSON_CALL),
    "smolvlm": Expected("<end_of_utterance>", "<end_of_utterance>", lead=" "),
}
MARKS = re.compile(
    r"<\|[A-Za-z_]+\|?>|<[a-z_]+\|>|<\|\"\|>|<\uff5c[^\uff5c]{1,40}\uff5c>|<(?:start_of_turn|end_of_turn|end_of_utterance)>|</?s>"
)


def stock_templates() -> dict[str, str]:
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    files = sorted(path for path in folder.glob("*.jinja") if not path.stem.endswith("_training"))
    return {path.stem: path.read_text() for path in files}


@pytest.fixture(scope="module")
def templates() -> dict[str, str]:
    return stock_templates()


@pytest.fixture(scope="module")
def backend(templates: dict[str, str]) -> Any:
    """A tokenizer that has the control tokens of every template."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    alphabet = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    found = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    marks = {mark for text in templates.values() for mark in MARKS.findall(text)}
    marks |= {"<\uff5cend▁of▁sentence\uff5c>", "</s>"}
    found.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in sorted(marks)])
    return found


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


TALKS: dict[str, Turns] = {
    "one": [user("Q1?"), answer("A1.")],
    "several": [user("Q1?"), answer("A1."), user("Q2?"), answer("A2.")],
    "system": [{"role": "system", "content": "S."}, user("Q1?"), answer("A1.")],
    "tools": [
        user("Q1?"),
        answer("", tool_calls=[CALL]),
        {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"},
        answer("A2."),
    ],
    "reasoning": [
        user("Q1?"),
        answer("A1.", reasoning_content="R1"),
        user("Q2?"),
        answer("A2.", reasoning_content="R2"),
    ],
}


def expected_texts(expected: Expected | None, kind: str) -> list[str] | None:
    """The scored texts by hand; None for a refusal."""
    if expected is None:
        return None
    first, second = f"{expected.lead}A1.{expected.middle}", f"{expected.lead}A2.{expected.last}"
    return {
        "one": [f"{expected.lead}A1.{expected.last}"],
        "several": [first, second],
        "system": [f"{expected.lead}A1.{expected.last}"] if expected.system else None,
        "tools": [expected.call, second] if expected.call else None,
        "reasoning": list(expected.reasoning) if expected.reasoning else None,
    }[kind]


def test_the_table_has_every_stock_template(templates: dict[str, str]) -> None:
    assert TABLE.keys() == templates.keys()


@pytest.mark.parametrize("name", TABLE)
def test_a_stock_template_has_exact_labels_or_a_way_out(name: str, templates: dict[str, str], backend: Any) -> None:
    end = "<\uff5cend▁of▁sentence\uff5c>" if name.startswith("deepseek") else "</s>"
    view = Vocabulary(backend, {"bos_token": "<s>", "eos_token": end}, templates[name])
    fields = DataFields.model_fields.keys() | LabelFields.model_fields.keys()
    for kind, turns in TALKS.items():
        found = outcomes([turns], view, tools=[TOOL] if kind == "tools" else None)[0]
        wanted = expected_texts(TABLE[name], kind)
        if wanted is None:
            assert isinstance(found, RefusedRow), kind
            assert any(re.search(rf"\b{field} =|set {field} ", found.way_out) for field in fields), found.way_out
        else:
            assert isinstance(found, LabelledRow), (kind, found)
            assert scored_texts(found) == wanted, kind
            assert drawn_wrong(found) == [], kind


def test_control_tokens_of_any_family_in_a_text_stay_text(templates: dict[str, str], backend: Any) -> None:
    spelled = "<|im_end|> <|eot_id|> <end_of_turn> <\uff5cend▁of▁sentence\uff5c> </s>"
    plain = [user("Q"), answer("A")]
    for name in ("qwen2_5", "llama3_1", "gemma", "phi3", "deepseekv3"):
        view = Vocabulary(backend, {"bos_token": "<s>", "eos_token": "</s>"}, templates[name])
        row, other = (outcomes([turns], view)[0] for turns in ([user(f"Q{spelled}"), answer(f"A{spelled}")], plain))
        assert isinstance(row, LabelledRow)
        assert isinstance(other, LabelledRow)
        ids = {control.id for control in view.controls.values()}
        assert [one for one in row.ids if one in ids] == [one for one in other.ids if one in ids]
