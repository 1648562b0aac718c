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
    attempt_tokens: int = 0
    attempt_step_s: float = 0.0
    all_finite: bool = True
    """every step since the last committed checkpoint was finite"""

    def add_step(self, loss: float, tokens: int, loss_tokens: int, step_s: float) -> None:
        """Count a step that the optimizer applied."""
        self.tokens += tokens
        self.loss_tokens += loss_tokens
        self.attempt_tokens += tokens
        self.attempt_step_s += step_s
        self.recent_losses.append(loss)

    @property
    def mean_recent_loss(self) -> float | None:
        """Mean loss of the last steps, in nats per loss token."""
        return sum(self.recent_losses) / len(self.recent_losses) if self.recent_losses else None

    @property
    def tokens_per_second(self) -> float | None:
        """Real tokens per second of this attempt's steps, without evaluations and saves."""
        return self.attempt_tokens / self.attempt_step_s if self.attempt_step_s > 0 else None

    def saved(self) -> dict[str, Any]:
        """The counters that a checkpoint's `position` keeps."""
        return {"loss_tokens": self.loss_tokens, "recent_losses": list(self.recent_losses)}

    def restore(self, manifest: Mapping[str, Any]) -> None:
        """Set the counters from a checkpoint's manifest."""
        position = manifest.get("position") or {}
        self.tokens = int(manifest.get("tokens", 0))
        self.loss_tokens = int(position.get("loss_tokens", 0))
        self.recent_losses.extend(float(loss) for loss in position.get("recent_losses", []))
