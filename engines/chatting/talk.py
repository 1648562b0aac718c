"""A model that answers conversations token by token, and may be stopped at each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from engines.chatting.lines import Sampling
from engines.judging.task import Message

Show = Callable[[int], None]
"""Takes each new token."""
Stopped = Callable[[], bool]
"""Whether the operator stopped the answer. It is called between any two parts of the work, and may rest there."""


class Talk(Protocol):
    """A loaded model.

    Attributes:
        runtime: transformers or llama.cpp.
        dtype: number format of its weights.
        plain: prompts are texts to continue.
        has_adapter: it has an adapter, which can be switched off.
        context: most tokens of a conversation.
        ends: tokens that end an answer.
        workers: ids of the processes that compute.
    """

    runtime: str
    dtype: str
    plain: bool
    has_adapter: bool
    context: int
    ends: list[int]

    @property
    def workers(self) -> tuple[int, ...]: ...

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the answer begins.

        Raises:
            OperatorError: the chat template does not render it.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without control tokens."""
        ...

    def generate(self, ids: list[int], sampling: Sampling, *, adapter: bool, show: Show, stopped: Stopped) -> None:
        """Show at most `max_new_tokens` new tokens; the last one may be one of `ends`."""
        ...

    def close(self) -> None:
        """End its processes; safe to call twice."""
        ...
