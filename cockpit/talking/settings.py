"""The settings of a chat's sampling, as text that an operator types."""

from __future__ import annotations

from engines.chatting.lines import BOUNDS, Sampling
from recipes import quantities

DEFAULT = Sampling()


def setting_value(name: str, text: str) -> float | int:
    """The value of a setting.

    Raises:
        ValueError: it is not a number within its bounds; the text says which are allowed.
    """
    low, high = BOUNDS[name]
    whole = isinstance(getattr(DEFAULT, name), int)
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"must be {kind} from {quantities.exact(low)} to {quantities.exact(high)}; got {text!r}")
    return value


def setting_text(sampling: Sampling, name: str) -> str:
    """The text of a setting's value."""
    return quantities.exact(getattr(sampling, name))
