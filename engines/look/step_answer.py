"""What a process is asked about the steps of trainings, and its answer."""

from __future__ import annotations

from typing import Any

import msgspec


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """Steps that one attempt did, from `first` to `last`, with the fields that it had and the places of its inputs."""

    stage: dict[str, Any]
    data: str
    model: str | None
    first_start: str
    first: int
    last: int


class StepRow(msgspec.Struct, frozen=True, kw_only=True):
    """A document or a row that a step read: its micro-batch, its name or place, its tokens in the example, a beginning
    of the text; `number` is that of the example."""

    micro_batch: int
    number: int
    name: str
    first_token: int
    tokens: int
    text: str = ""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Where two streams of tokens differ first: the step and, of each stream, the document and the place of the token.

    `files` and `bytes` are the shard and the byte in it; empty for rows.
    """

    step: int
    why: str
    names: list[str] = []
    files: list[str] = []
    bytes: list[int] = []


class StepsRequest(msgspec.Struct, kw_only=True):
    """The rows of a step; or, with `other`, the first difference of two trainings."""

    segments: list[Segment]
    step: int = 0
    other: list[Segment] = []


class StepsAnswer(msgspec.Struct, kw_only=True):
    """`error` and `hint`, or the answer."""

    rows: list[StepRow] = []
    difference: Difference | None = None
    error: str = ""
    hint: str = ""
