"""Copy the files of a tokenizer byte for byte: a model folder needs them for merging, conversion and chat."""

from __future__ import annotations

import shutil
from pathlib import Path

from engines.json_text import read_json

CHAT_TEMPLATE_FILE = "chat_template.jinja"
NAMED_TEMPLATES = "additional_chat_templates"
"""The folder of the chat templates that have names, one file each."""
NAMES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE_FILE,
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files of one set. transformers lets special_tokens_map.json win over tokenizer_config.json, so that of another folder
would replace the end token of the tokenizer that training used."""


def copy_tokenizer(target: Path, *sources: Path) -> list[str]:
    """Copy the tokenizer's files into `target`, each from the first folder that has it; returns their names.

    Chat templates belong together: the first folder with any decides all of them. So do the settings: the first folder
    with a tokenizer_config.json decides them.
    """
    copied = []
    settings = [folder for folder in sources if (folder / _SETTINGS[0]).is_file()][:1] or list(sources)
    templates = next(([folder] for folder in sources if _has_templates(folder)), [])
    named = [f"{NAMED_TEMPLATES}/{path.name}" for folder in templates for path in _named(folder)]
    for name in [*NAMES, *named]:
        places = templates if name in (CHAT_TEMPLATE_FILE, *named) else settings if name in _SETTINGS else sources
        source = next((folder / name for folder in places if (folder / name).is_file()), None)
        if source is not None:
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target / name)
            copied.append(name)
    return copied


def _has_templates(folder: Path) -> bool:
    """Whether a folder has a chat template: as a file, under a name, or in tokenizer_config.json."""
    if (folder / CHAT_TEMPLATE_FILE).is_file() or _named(folder):
        return True
    try:
        settings = read_json(folder / "tokenizer_config.json")
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and bool(settings.get("chat_template"))


def _named(folder: Path) -> list[Path]:
    return [path for path in sorted((folder / NAMED_TEMPLATES).glob("*.jinja")) if path.is_file()]
