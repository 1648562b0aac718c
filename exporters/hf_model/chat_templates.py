"""The chat templates of a model folder, by name, as transformers reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.data.tokenizer_files import CHAT_TEMPLATE_FILE, NAMED_TEMPLATES
from engines.files import read_regular_text

DEFAULT = "default"
"""The name of the template that is used when a program names none."""


def read_chat_templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Every template by its name, the default one first.

    Files come before tokenizer_config.json: if the folder has one, the templates there count for nothing.

    Args:
        folder: the model's folder.
        settings: its tokenizer_config.json; values that are not templates are left out.
    """
    found = {}
    if (folder / CHAT_TEMPLATE_FILE).is_file():
        found[DEFAULT] = read_regular_text(folder / CHAT_TEMPLATE_FILE)
    for path in sorted((folder / NAMED_TEMPLATES).glob("*.jinja")):
        found.setdefault(path.stem, read_regular_text(path))
    if not found:
        found = _in_settings(settings.get("chat_template"))
    return dict(sorted(found.items(), key=lambda item: (item[0] != DEFAULT, item[0])))


def _in_settings(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
    pairs = value.items() if isinstance(value, dict) else ()
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
