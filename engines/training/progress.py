"""Training progress: counters that continue across resumes, and the means that the result reports."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RECENT_STEPS = 10
"""Number of last steps whose mean loss the stage reports."""


@dataclass
class Counters:
    """Counters, cumulative over the stage's lineage; those with the prefix `attempt_` cover this attempt only."""

    tokens: int = 0
    loss_tokens: int = 0
    recent_losses: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    recent_metrics: dict[str, deque[float]] = field(default_factory=dict)
    attempt_tokens: int = 0
    attempt_step_s: float = 0.0
    attempt_rows: int = 0
    all_finite: bool = True
    """every step since the last committed checkpoint was finite"""
    suspect: bool = False
    """the newest loss may be the begin of a spike, so a checkpoint of it is not healthy"""

    def add_step(
        self,
        loss: float,
        tokens: int,
        loss_tokens: int,
        step_s: float,
        metrics: Mapping[str, float] = {},
        rows: int = 0,
    ) -> None:
        """Count a step that the optimizer applied to so many rows; `metrics` are those of its method."""
        self.tokens += tokens
        self.loss_tokens += loss_tokens
        self.attempt_tokens += tokens
        self.attempt_step_s += step_s
        self.attempt_rows += rows
        self.recent_losses.append(loss)
        for name, value in metrics.items():
            self.recent_metrics.setdefault(name, deque(maxlen=RECENT_STEPS)).append(value)

    @property
    def mean_recent_loss(self) -> float | None:
        """Mean loss of the last steps, in nats per loss token."""
        return sum(self.recent_losses) / len(self.recent_losses) if self.recent_losses else None

    @property
    def mean_recent_metrics(self) -> dict[str, float]:
        """Means of what the method measured in the last steps."""
        return {name: sum(values) / len(values) for name, values in self.recent_metrics.items()}

    @property
    def tokens_per_second(self) -> float | None:
        """Real tokens per second of this attempt's steps, without evaluations and saves."""
        return self.attempt_tokens / self.attempt_step_s if self.attempt_step_s > 0 else None

    @property
    def samples_per_second(self) -> float | None:
        """Rows per second of this attempt's steps, without evaluations and saves."""
        return self.attempt_rows / self.attempt_step_s if self.attempt_step_s > 0 and self.attempt_rows else None

    def saved(self) -> dict[str, Any]:
        """The counters that a checkpoint's `position` keeps."""
        saved: dict[str, Any] = {"loss_tokens": self.loss_tokens, "recent_losses": list(self.recent_losses)}
        if self.recent_metrics:
            saved["recent_metrics"] = {name: list(values) for name, values in self.recent_metrics.items()}
        return saved

    def restore(self, manifest: Mapping[str, Any]) -> None:
        """Set the counters from a checkpoint's manifest."""
        position = manifest.get("position") or {}
        self.tokens = int(manifest.get("tokens", 0))
        self.loss_tokens = int(position.get("loss_tokens", 0))
        self.recent_losses.extend(float(loss) for loss in position.get("recent_losses", []))
        for name, values in (position.get("recent_metrics") or {}).items():
            self.recent_metrics[name] = deque(map(float, values), maxlen=RECENT_STEPS)
