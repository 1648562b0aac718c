"""A model's rotary positions, read from its config, as the values that a GGUF file needs for the same result.

llama.cpp reads rope.scaling.attn_factor for every family, but the YaRN boundaries (beta_fast, beta_slow) only for a few
families. A model of another one that changes them is refused, because llama.cpp would ignore the keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recipes import quantities
from recipes.problems import OperatorError, shown

KINDS = ("default", "linear", "yarn", "llama3")
_LONGROPE_BEFORE = ("su", "yarn")
"""Earlier names of longrope, in models that have its factors."""
BETA_FAST, BETA_SLOW = 32.0, 1.0
_BETAS = {"beta_fast": BETA_FAST, "beta_slow": BETA_SLOW}
LARGEST_CONTEXT = 2**31 - 1


@dataclass(frozen=True)
class Rope:
    """The rotary settings of all layers.

    Attributes:
        kind: "default", "linear", "yarn", "llama3" or "longrope".
        theta: base of the frequencies.
        factor: extension of the context; 1 for the default kind.
        original_context: positions before the extension, for yarn, llama3 and longrope; else 0.
        low, high: the two boundaries of llama3, in turns per original context.
        magnitude: transformers' factor of sine and cosine, divided by llama.cpp's 1 + 0.1 ln(factor), for yarn
            (https://arxiv.org/abs/2309.00071, equation 22); 1 unless the model sets it. For longrope it is
            transformers' own factor.
        beta_fast, beta_slow: the two boundaries of yarn.
        short_factor, long_factor: divisors of the rotary frequencies in texts up to the original context and in longer
            ones, for longrope, one per pair of values.
    """

    kind: str
    theta: float
    factor: float = 1.0
    original_context: int = 0
    low: float = 1.0
    high: float = 4.0
    magnitude: float = 1.0
    beta_fast: float = BETA_FAST
    beta_slow: float = BETA_SLOW
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

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


def rotary_width(config: Mapping[str, Any]) -> int:
    """How many values of a head are rotated: all, or the share `partial_rotary_factor`."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    share = given.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    width = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    return width if share is None else int(width * share)


def read_rope(
    config: dict[str, Any],
    layers: str = "",
    kinds: Sequence[str] = KINDS,
    *,
    partly: bool = False,
    boundaries: bool = False,
    rounded: bool = False,
) -> Rope:
    """The rotary settings, from `rope_parameters` or from the older `rope_theta` and `rope_scaling`.

    Args:
        config: the language model's settings, whose `max_position_embeddings` is a whole number.
        layers: the kind of layer, for families with one table per kind; empty for the others.
        kinds: the allowed kinds of rotary positions.
        partly: whether only a part of each head's values may be rotated.
        boundaries: whether llama.cpp reads YaRN's boundaries for the family.
        rounded: whether a range between the boundaries that is not rounded is allowed; llama.cpp rounds it.

    Raises:
        OperatorError: a setting is not allowed, or a GGUF file cannot express it; one line for each.
    """
    name, given = _table(config, layers)
    fields = _Fields({"rope_theta": config.get("rope_theta", 10000.0), **given}, name)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind in _LONGROPE_BEFORE and "longrope" in kinds and "short_factor" in given:
        kind = "longrope"
    if kind not in kinds:
        fields.values["rope_type"] = kind
        fields.wrong("rope_type", ", ".join(kinds))
    part = given.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    allowed = _is_share(part) if partly else part is None or (not isinstance(part, bool) and part == 1)
    if not allowed:
        fields.values["partial_rotary_factor"] = part
        fields.wrong("partial_rotary_factor", "a number above 0, at most 1" if partly else "1")
    rope = Rope(str(kind), fields.number("rope_theta"))
    if kind == "linear":
        rope = Rope("linear", rope.theta, fields.number("factor"))
    elif kind in ("yarn", "llama3"):
        rope = _extended(fields, str(kind), rope.theta, config, boundaries=boundaries, rounded=rounded)
    elif kind == "longrope" and allowed:
        rope = _longrope(fields, rope.theta, config)
    if fields.problems:
        raise OperatorError("\n".join(fields.problems))
    return rope


def _table(config: Mapping[str, Any], layers: str) -> tuple[str, dict[str, Any]]:
    """The table with the rotary settings, and its name. `layers`: as for `read_rope`."""
    name = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    given = config.get(name) or {}
    if not isinstance(given, dict):
        raise OperatorError(f"{name} — got {shown(given)}; allowed a table")
    if layers and isinstance(given.get(layers), dict):
        name, given = f"{name}.{layers}", given[layers]
    if any(isinstance(value, dict) for value in given.values()):
        raise OperatorError(f"{name} — got one table per kind of layer; allowed one table for all layers")
    return name, given


def _is_share(part: Any) -> bool:
    return part is None or (not isinstance(part, bool) and isinstance(part, int | float) and 0 < part <= 1)


def _longrope(fields: _Fields, theta: float, config: dict[str, Any]) -> Rope:
    """Source: transformers' `_compute_longrope_parameters` (https://arxiv.org/abs/2402.13753)."""
    outside = config.get("original_max_position_embeddings")
    if outside is not None:
        fields.values["original_max_position_embeddings"] = outside
    context, pairs = config["max_position_embeddings"], rotary_width(config) // 2
    original = int(fields.number("original_max_position_embeddings", context, most=LARGEST_CONTEXT))
    factors = []
    for key in ("short_factor", "long_factor"):
        given = fields.values.get(key)
        numbers = given if isinstance(given, list) else []
        if len(numbers) != pairs or not all(_is_positive(number) for number in numbers):
            fields.wrong(key, f"{pairs} numbers above 0")
        factors.append(tuple(float(number) for number in numbers if _is_positive(number)))
    factor = fields.number("factor", context / max(1, original))
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    magnitude = fields.number("attention_factor", usual)
    return Rope(
        "longrope", theta, factor, original, magnitude=magnitude, short_factor=factors[0], long_factor=factors[1]
    )


def _is_positive(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 < value < float("inf")


def _extended(
    fields: _Fields, kind: str, theta: float, config: dict[str, Any], *, boundaries: bool, rounded: bool
) -> Rope:
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
    betas = [fields.number(key, only) if fields.values.get(key) else only for key, only in _BETAS.items()]
    for beta, (key, only) in zip(betas, _BETAS.items(), strict=True):
        if beta != only and not boundaries:
            fields.wrong(key, f"{quantities.exact(only)}, the only value that llama.cpp supports for this family")
    if fields.values.get("truncate", True) not in ((True, False) if rounded else (True,)):
        fields.wrong("truncate", "true: llama.cpp always rounds the range between the boundaries")
    usual, shared = _magnitude(factor), Rope("yarn", theta, factor, original, beta_fast=betas[0], beta_slow=betas[1])
    if fields.values.get("attention_factor") is not None:
        return replace(shared, magnitude=fields.number("attention_factor") / usual)
    if fields.values.get("mscale") and fields.values.get("mscale_all_dim"):
        above, below = fields.number("mscale"), fields.number("mscale_all_dim")
        magnitude = _magnitude(factor, above) / _magnitude(factor, below)
        return replace(shared, magnitude=magnitude / usual)
    return shared


def _magnitude(factor: float, scale: float = 1.0) -> float:
    """YaRN's factor of sine and cosine."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
