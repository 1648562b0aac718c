"""The lines between a chat's process and the one that asks: requests on stdin, events on stdout, a JSON object each."""

from __future__ import annotations

from typing import Any

import msgspec

DEFAULT_LIMIT = 512
END, LIMIT, STOPPED, FULL = "end", "limit", "operator", "full"
"""How an answer ended: by the model, at `max_new_tokens`, by the operator, at the end of the model's context."""
SLOWER = "slower: a run uses these cores"
"""What an operator reads while `Slowed` holds."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the likeliest token each time; other settings but the penalty then have no effect.
        top_p: the likeliest tokens with this share of the probability.
        top_k: number of likeliest tokens; 0 for all.
        repetition_penalty: divides the logits of tokens that the conversation has; 1 for none.
        max_new_tokens: most tokens of an answer.
        seed: of the random numbers.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int = DEFAULT_LIMIT
    seed: int = 0


BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (0.001, 1.0),
    "top_k": (0, 1_000_000),
    "repetition_penalty": (0.1, 10.0),
    "max_new_tokens": (1, 1_000_000),
    "seed": (0, 2**32 - 1),
}
"""Smallest and largest value of each setting."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The first line: the model to load.

    Attributes:
        model: a folder, a GGUF file or a hub id.
        adapter: a GGUF adapter over a GGUF file.
        template: the text of a chat template; empty for the model's own.
        plain: prompts are texts to continue.
        threads: CPU threads; None for half of the free cores.
    """

    model: str
    adapter: str | None = None
    template: str = ""
    plain: bool = False
    threads: int | None = None


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag="ask", tag_field="k"):
    """Answer a conversation.

    Attributes:
        id: of this request; greater than those before.
        messages: the turns, the last one not the assistant's.
        sampling: how.
        adapter: with the adapter, if the model has one.
    """

    id: int
    messages: list[dict[str, Any]]
    sampling: Sampling = Sampling()
    adapter: bool = True


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop", tag_field="k"):
    """Stop the answer to a request, whether it has begun or not."""

    id: int


class Loading(msgspec.Struct, frozen=True, kw_only=True, tag="loading", tag_field="k"):
    """What the process does before it can answer. `done` and `total` are bytes of the weights; 0 if unknown."""

    phase: str
    done: int = 0
    total: int = 0


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready", tag_field="k"):
    """The model can answer.

    Attributes:
        runtime: transformers or llama.cpp.
        dtype: number format of the weights.
        plain: prompts are texts to continue.
        adapter: it has an adapter, which can be switched off.
        context: most tokens of a conversation.
        threads: CPU threads.
        load_s: seconds until now.
    """

    runtime: str
    dtype: str
    plain: bool
    adapter: bool
    context: int
    threads: int
    load_s: float


class Warned(msgspec.Struct, frozen=True, kw_only=True, tag="warned", tag_field="k"):
    """What the operator should know about the model."""

    text: str


class Slowed(msgspec.Struct, frozen=True, kw_only=True, tag="slowed", tag_field="k"):
    """Whether answers are slower from now on, because a run computes on the cores."""

    slow: bool


class Begun(msgspec.Struct, frozen=True, kw_only=True, tag="begun", tag_field="k"):
    """The process reads the prompt of a request."""

    id: int
    prompt_tokens: int


class Piece(msgspec.Struct, frozen=True, kw_only=True, tag="piece", tag_field="k"):
    """More of an answer's text, after so many tokens of it."""

    id: int
    text: str
    tokens: int


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done", tag_field="k"):
    """An answer is complete.

    Attributes:
        id: of the request.
        text: the whole answer, without control tokens.
        ended: one of `END`, `LIMIT`, `STOPPED`, `FULL`.
        prompt_tokens: tokens of the conversation before it.
        tokens: new tokens, the one that ended the answer included.
        first_token_s: seconds from the request to the first new token.
        latency_s: seconds from the request to the last one.
    """

    id: int
    text: str
    ended: str
    prompt_tokens: int
    tokens: int
    first_token_s: float
    latency_s: float

    @property
    def tokens_per_second(self) -> float | None:
        """Speed after the first token; None for fewer than two tokens."""
        spent_s = self.latency_s - self.first_token_s
        return (self.tokens - 1) / spent_s if self.tokens > 1 and spent_s > 0 else None


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed", tag_field="k"):
    """A request failed; without an `id`, the process cannot answer and ends."""

    error: str
    hint: str = ""
    id: int | None = None


Request = Ask | Stop
Event = Loading | Ready | Warned | Slowed | Begun | Piece | Done | Failed


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One of two models that are compared.

    Attributes:
        title: as the operator named it.
        model: a folder, a GGUF file or a hub id; empty with `answers`.
        answers: a file with the answers of an evaluation.
    """

    title: str
    model: str = ""
    answers: str = ""


class PairsJob(msgspec.Struct, frozen=True, kw_only=True):
    """Answers of two sides to the same prompts.

    Attributes:
        sides: both.
        prompts: a test file; its checks are not used.
        output: the file of pairs to write; answers of models are kept beside it.
        limit: most new tokens of an answer.
        threads: CPU threads; None for those that torch finds.
        template: the text of a chat template; empty for each model's own.
        plain: prompts are texts to continue.
    """

    sides: tuple[Side, Side]
    prompts: str
    output: str
    limit: int = DEFAULT_LIMIT
    threads: int | None = None
    template: str = ""
    plain: bool = False
