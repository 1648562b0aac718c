"""Events of what a stage measured and made: losses on held-out data, texts, gates, artifacts."""

from __future__ import annotations

from engines.events.event import Event
from engines.words import GateResult


class Evaluated(Event, frozen=True, kw_only=True, tag="evaluated"):
    """Loss and perplexity on held-out data, weighted by tokens. `protocol` names the method.

    `metrics` are what the method measured besides; during a training, with the names that its steps have.
    """

    stage: str
    attempt: int
    step: int | None
    loss: float | None
    perplexity: float | None
    tokens: int
    protocol: str
    metrics: dict[str, float | None] = {}


class SampledText(Event, frozen=True, kw_only=True, tag="sampled_text"):
    """Greedy text of the model: hostile until rendered safe. `expected` is the held-out answer, if there is one."""

    stage: str
    attempt: int
    step: int | None
    prompt: str
    text: str
    expected: str | None = None


class GateChecked(Event, frozen=True, kw_only=True, tag="gate_checked"):
    """The engine compared a gate of its stage with the measured value."""

    stage: str
    metric: str
    op: str
    limit: float
    value: float | None
    result: GateResult
    stretch: float | None = None
    stretch_met: bool | None = None


class ArtifactCommitted(Event, frozen=True, kw_only=True, tag="artifact_committed"):
    """A file or folder for use. `path` is relative to the run directory; `parents` are the SHA-256 of its sources."""

    stage: str
    attempt: int
    name: str
    kind: str
    path: str
    bytes: int
    sha256: str
    parents: list[str] = []
