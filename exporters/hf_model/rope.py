"""A model's rotary positions, read from its config, as the values that a GGUF file needs for the same result.

llama.cpp reads rope.scaling.attn_factor for every family, but the YaRN boundaries (beta_fast, beta_slow) only for a few
families, which Cockpit does not write. A model that changes them is refused, because llama.cpp would ignore the keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from recipes import quantities
from recipes.problems import OperatorError, shown

KINDS = ("default", "linear", "yarn", "llama3")
BETA_FAST, BETA_SLOW = 32.0, 1.0
LARGEST_CONTEXT = 2**31 - 1


@dataclass(frozen=True)
class Rope:
    """The rotary settings of all layers.

    Attributes:
        kind: "default", "linear", "yarn" or "llama3".
        theta: base of the frequencies.
        factor: extension of the context; 1 for the default kind.
        original_context: positions before the extension, for yarn and llama3; else 0.
        low, high: the two boundaries of llama3, in turns per original context.
        magnitude: transformers' factor of sine and cosine, divided by llama.cpp's 1 + 0.1 ln(factor), for yarn
            (https://arxiv.org/abs/2309.00071, equation 22); 1 unless the model sets it.
    """

    kind: str
    theta: float
    factor: float = 1.0
    original_context: int = 0
    low: float = 1.0
    high: float = 4.0
    magnitude: float = 1.0

    def frequency_divisors(self, width: int) -> list[float]:
        """Llama 3's divisors of the rotary frequencies, one per pair of a head's values; empty for other kinds.

        With wavelength L = 2 pi / f and original context O: L < O / high → 1; L > O / low → factor; between them
        1 / ((1 - s) / factor + s) with s = (O / L - low) / (high - low).
        """
        if self.kind != "llama3":
            return []
        wavelengths = [2 * math.pi * self.theta ** (pair / width) for pair in range(0, width, 2)]
        return [self._divisor(wavelength) for wavelength in wavelengths]

    def _divisor(self, wavelength: float) -> float:
        turns = self.original_context / wavelength
        if turns > self.high:
            return 1.0
        if turns < self.low:
            return self.factor
        smooth = (turns - self.low) / (self.high - self.low)
        return 1 / ((1 - smooth) / self.factor + smooth)


class _Fields:
    """The settings in the config, and the problems found in them."""

    def __init__(self, values: dict[str, Any], name: str) -> None:
        self.values, self.name = values, name
        self.problems: list[str] = []

    def wrong(self, key: str, allowed: str) -> None:
        got = shown(self.values[key]) if key in self.values else "nothing"
        self.problems.append(f"{self.name}.{key} — got {got}; allowed {allowed}")

    def number(self, key: str, default: float | None = None, *, most: float = 1e12) -> float:
        """A finite number above zero."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            self.wrong(key, f"a number above 0, at most {quantities.exact(most)}")
            return 1.0
        return float(value)


def read_rope(config: dict[str, Any], layers: str = "") -> Rope:
    """The rotary settings, from `rope_parameters` or from the older `rope_theta` and `rope_scaling`.

    Args:
        config: the language model's settings, whose `max_position_embeddings` is a whole number.
        layers: the kind of layer, for families with one table per kind; empty for the others.

    Raises:
        OperatorError: a setting is not allowed, or a GGUF file cannot express it; one line for each.
    """
    name = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    given = config.get(name) or {}
    if not isinstance(given, dict):
        raise OperatorError(f"{name} — got {shown(given)}; allowed a table")
    if layers and isinstance(given.get(layers), dict):
        name, given = f"{name}.{layers}", given[layers]
    if any(isinstance(value, dict) for value in given.values()):
        raise OperatorError(f"{name} — got one table per kind of layer; allowed one table for all layers")
    fields = _Fields({"rope_theta": config.get("rope_theta", 10000.0), **given}, name)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in KINDS:
        fields.values["rope_type"] = kind
        fields.wrong("rope_type", ", ".join(KINDS))
    part = given.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if part is not None and (isinstance(part, bool) or part != 1):
        fields.values["partial_rotary_factor"] = part
        fields.wrong("partial_rotary_factor", "1")
    rope = Rope(str(kind), fields.number("rope_theta"))
    if kind == "linear":
        rope = Rope("linear", rope.theta, fields.number("factor"))
    elif kind in ("yarn", "llama3"):
        rope = _extended(fields, str(kind), rope.theta, config)
    if fields.problems:
        raise OperatorError("\n".join(fields.problems))
    return rope


def _extended(fields: _Fields, kind: str, theta: float, config: dict[str, Any]) -> Rope:
    outside = config.get("original_max_position_embeddings")  # transformers reads this place first
    if outside is not None:
        fields.values["original_max_position_embeddings"] = outside
    context = config["max_position_embeddings"]
    original = int(fields.number("original_max_position_embeddings", context, most=LARGEST_CONTEXT))
    if kind == "llama3":
        low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
        if low >= high:
            fields.wrong("high_freq_factor", "more than low_freq_factor")
        return Rope("llama3", theta, fields.number("factor"), original, low, high)
    computed = "factor" in fields.values and fields.values["factor"] is None  # transformers computes a null factor
    factor = fields.number("factor", context / max(1, original) if computed else None)
    for key, only in (("beta_fast", BETA_FAST), ("beta_slow", BETA_SLOW)):
        if (fields.values.get(key) or only) != only:
            fields.wrong(key, f"{quantities.exact(only)}, the only value that llama.cpp supports for this family")
    if fields.values.get("truncate", True) is not True:
        fields.wrong("truncate", "true: llama.cpp always rounds the range between the boundaries")
    usual = _magnitude(factor)
    if fields.values.get("attention_factor") is not None:
        return Rope("yarn", theta, factor, original, magnitude=fields.number("attention_factor") / usual)
    if fields.values.get("mscale") and fields.values.get("mscale_all_dim"):
        above, below = fields.number("mscale"), fields.number("mscale_all_dim")
        magnitude = _magnitude(factor, above) / _magnitude(factor, below)
        return Rope("yarn", theta, factor, original, magnitude=magnitude / usual)
    return Rope("yarn", theta, factor, original)


def _magnitude(factor: float, scale: float = 1.0) -> float:
    """YaRN's factor of sine and cosine."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
