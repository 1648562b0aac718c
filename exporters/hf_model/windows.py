"""Sliding windows: which layers of a model see only the last tokens, and how many."""

from __future__ import annotations

from exporters.hf_model.family import Settings

SLIDING = "sliding_attention"
"""transformers' name in `layer_types` of a layer with a window."""


def window_of(settings: Settings) -> int | None:
    """How many tokens the layers with a window see, the present one included; None if no layer has one."""
    window = settings.get("sliding_window")
    if not window or not settings.get("use_sliding_window", True):
        return None
    kinds = settings.get("layer_types")
    if isinstance(kinds, list) and SLIDING not in kinds:
        return None
    return int(window)


def windowed_layers(settings: Settings, period: int) -> list[bool]:
    """Which layers have a window: by `layer_types`, else all but every `period`-th."""
    layers, kinds = int(settings["num_hidden_layers"]), settings.get("layer_types")
    if isinstance(kinds, list):
        return [kind == SLIDING for kind in kinds]
    given = settings.get("sliding_window_pattern", settings.get("_sliding_window_pattern", period))
    return [bool((layer + 1) % int(given or period)) for layer in range(layers)]


def window_pattern(settings: Settings, period: int) -> list[bool] | None:
    """Which layers have a window, for a file's key; None if it is the family's usual pattern, or there is no window."""
    found = windowed_layers(settings, period)
    usual = [bool((layer + 1) % period) for layer in range(len(found))]
    return None if window_of(settings) is None or found == usual else found
