"""The fields of a stage that turns conversations into labels."""

from __future__ import annotations

from typing import Literal

from recipes.setting import setting
from recipes.stages.fields import StageFields

TEMPLATE_NAMES = ("chatml", "llama-3", "mistral", "gemma", "phi-3", "zephyr")
"""The chat templates that have names."""
LABEL_METRICS = ("rows", "examples", "truncated_rows", "dropped_rows", "refused_rows", "tokens", "scored_tokens")
"""The counts of rows that a stage reports as metrics."""


class LabelFields(StageFields):
    """How conversations become tokens, and which of them the loss counts."""

    chat_template: str = setting(
        "",
        section="Labels",
        at_resume="order",
        file=True,
        suggests=TEMPLATE_NAMES,
        help="Chat template: a name, or the path of a file; by default, the model's own. Control tokens that the model"
        " does not have yet are added and trained.",
    )
    train_on: Literal["answers", "last-answer", "all"] = setting(
        "answers",
        section="Labels",
        at_resume="order",
        help="What the loss counts: every answer with its end token, only the last one, or every token.",
    )
    truncation: Literal["error", "drop", "left", "answer"] = setting(
        "drop",
        section="Labels",
        at_resume="order",
        help="What becomes of a row longer than max_length: error refuses it, drop leaves it out, left cuts off its"
        " beginning, answer cuts off its end. All are counted.",
    )
    fold_system: bool = setting(
        False,
        section="Labels",
        at_resume="order",
        help="Put the system turn's text before the first user turn, for a template without system turns.",
    )
    train_on_template: bool = setting(
        False,
        section="Labels",
        at_resume="order",
        advanced=True,
        help="Also count what the template adds inside an answer, such as an empty think block.",
    )
