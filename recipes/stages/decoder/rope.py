"""Rotary positions of a decoder, by the names of transformers' `rope_parameters`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from recipes.setting import setting
from recipes.stages.decoder.model_types import RopeType
from recipes.stages.fields import Strict

_READ: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}
"""What each kind of positions needs beside its base, `rope_theta`."""


class RopeParameters(Strict):
    """How positions are stretched beyond the context of a training (`[stage.rope_parameters]`)."""

    rope_type: RopeType = setting(
        "default",
        section="Positions",
        at_resume="arithmetic",
        help="Kind of rotary positions: default does not stretch them; linear divides all of them by factor; yarn and"
        " llama3 stretch slow frequencies only.",
    )
    factor: float | None = setting(
        None,
        section="Positions",
        at_resume="arithmetic",
        ge=1,
        help="How many times longer the context is than original_max_position_embeddings; for linear, yarn and llama3.",
    )
    original_max_position_embeddings: int | None = setting(
        None,
        section="Positions",
        at_resume="arithmetic",
        ge=8,
        unit="tokens",
        help="Context before it was stretched; for yarn and llama3.",
    )
    low_freq_factor: float | None = setting(
        None,
        section="Positions",
        at_resume="arithmetic",
        gt=0,
        advanced=True,
        help="Turns per original context below which a frequency is stretched whole; for llama3, usually 1.",
    )
    high_freq_factor: float | None = setting(
        None,
        section="Positions",
        at_resume="arithmetic",
        gt=0,
        advanced=True,
        help="Turns per original context above which a frequency is kept; for llama3, usually 4.",
    )

    def problems(self) -> Iterator[str]:
        """What does not fit together, each as `key — what; got …; allowed …`."""
        needed = _READ[self.rope_type]
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name in needed and value is None:
                yield f"rope_parameters.{name} — needed for rope_type {self.rope_type}; got nothing; allowed a number"
            if name != "rope_type" and name not in needed and value is not None:
                yield (
                    f"rope_parameters.{name} — rope_type {self.rope_type} does not read it; got {value}; allowed: leave"
                    " it out"
                )
        low, high = self.low_freq_factor, self.high_freq_factor
        if self.rope_type == "llama3" and low is not None and high is not None and low >= high:
            yield f"rope_parameters.high_freq_factor — must be more than low_freq_factor; got {high} and {low}"

    def settings(self, rope_theta: float) -> dict[str, Any]:
        """transformers' `rope_parameters`: the base, the kind and what the kind needs."""
        given = {name: getattr(self, name) for name in _READ[self.rope_type]}
        return {"rope_theta": rope_theta, "rope_type": self.rope_type, **given}
