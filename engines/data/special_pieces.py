"""The special pieces and the chat template of a tokenizer trained from scratch."""

from __future__ import annotations

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
SPECIAL_PIECES = (UNKNOWN, BEGIN, END, TURN_START, TURN_END)
"""In the order of their ids, from 0. `END` ends a document, `TURN_END` ends a turn of a chat."""

SPACE_MARK = "\u2581"
"""SentencePiece's mark for a space inside pieces; it reads the mark in a text as a space."""

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML. The end of the assistant's turn is inside `generation`, so that the model learns to stop."""
