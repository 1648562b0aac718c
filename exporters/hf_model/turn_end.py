"""The token at which the default chat template of a folder ends an answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.chat.ends import written_end
from engines.chat.rendering import TemplateError
from engines.json_text import read_json
from exporters.hf_model.chat_templates import DEFAULT, read_chat_templates


def end_of_turn(templates: Mapping[str, str], special: Mapping[str, str], controls: Mapping[str, int]) -> int | None:
    """The id of the control token that the default template writes after an answer; None without one.

    Args:
        templates: chat templates by name.
        special: the named special tokens, as the template sees them.
        controls: ids of all control tokens by name.

    Raises:
        TemplateError: the template cannot render a question and its answer.
    """
    template = templates.get(DEFAULT)
    name = written_end(template, special, controls) if template else None
    return controls[name] if name is not None else None


def written_ends(folder: Path) -> list[int]:
    """`end_of_turn` of a folder's tokenizer, as a list; empty if its files do not say it."""
    settings, tokenizer = _object(folder / "tokenizer_config.json"), _object(folder / "tokenizer.json")
    added = tokenizer.get("added_tokens")
    controls = {
        str(token["content"]): token["id"]
        for token in (added if isinstance(added, list) else [])
        if isinstance(token, dict) and token.get("special") and isinstance(token.get("id"), int) and "content" in token
    }
    try:
        found = end_of_turn(read_chat_templates(folder, settings), named_tokens(settings), controls)
    except (TemplateError, OSError, ValueError):
        return []
    return [found] if found is not None else []


def named_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that tokenizer_config.json names: `bos_token` and others, as texts."""
    found = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = settings.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
