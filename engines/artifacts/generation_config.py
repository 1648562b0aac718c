"""generation_config.json: the tokens at which an answer ends, in the folder of a model or of an adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engines.files import write_text
from engines.json_text import read_json

GENERATION_CONFIG = "generation_config.json"
_EOS = "eos_token_id"
_CARRIED = ("bos_token_id", _EOS, "pad_token_id")
"""What transformers takes from config.json for a model without generation_config.json."""


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The file's settings; empty without one, or if it cannot be read."""
    try:
        value = read_json(folder / GENERATION_CONFIG)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def end_ids(settings: Mapping[str, Any]) -> list[int]:
    """The end tokens of a config.json or a generation_config.json: one id, or several."""
    value = settings.get(_EOS)
    listed = value if isinstance(value, list) else [value]
    return [token for token in listed if isinstance(token, int) and not isinstance(token, bool) and token >= 0]


def write_generation_config(
    target: Path, base: Path, config: Mapping[str, Any], more_ends: Iterable[int] = ()
) -> list[int]:
    """Write a base model's settings with more end tokens; nothing if the base has no file and there is nothing to add.

    Args:
        target: the folder to write to.
        base: the folder whose settings are kept.
        config: the base model's config.json, for a base without the file.
        more_ends: tokens that end an answer too, for example the one that ends every answer in training.

    Returns:
        All end tokens, the base model's first.
    """
    settings = read_generation_config(base)
    old = end_ids(settings) or end_ids(config)
    ends = list(dict.fromkeys([*old, *more_ends]))
    if ends == old:
        if settings:
            shutil.copyfile(base / GENERATION_CONFIG, target / GENERATION_CONFIG)
        return ends
    kept = settings or {key: config[key] for key in _CARRIED if config.get(key) is not None}
    write_text(
        target / GENERATION_CONFIG, json.dumps({**kept, _EOS: ends[0] if len(ends) == 1 else ends}, indent=2) + "\n"
    )
    return ends
