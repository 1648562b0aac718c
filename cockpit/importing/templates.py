"""Chat templates by the names of other programs."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cockpit.importing.draft import TUNED, Draft, plain, text
from cockpit.importing.meanings import OTHER_TEMPLATE
from cockpit.importing.sources import find_path

CHATML, LLAMA_3, MISTRAL, GEMMA, PHI_3, ZEPHYR = "chatml", "llama-3", "mistral", "gemma", "phi-3", "zephyr"
LLAMA_FACTORY_TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA_3,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "phi": PHI_3,
    "zephyr": ZEPHYR,
}
"""LLaMA-Factory's names of the formats that recipes have by name."""
AXOLOTL_TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA_3,
    "mistral_v1": MISTRAL,
    "gemma": GEMMA,
    "phi_3": PHI_3,
}
"""Axolotl's names of the same."""
OWN = "tokenizer_default"
"""Axolotl's name of the template that the model has."""
_FAMILY = re.compile(r"[a-z]+")


def chat_template(draft: Draft, key: str, known: Mapping[str, str]) -> None:
    """A template by name: one that recipes have by that name, or the model's own if the name is the model's family.

    Args:
        draft: the recipe in the making, with its model.
        key: the key with the name.
        known: the program's names of the templates that recipes have.
    """
    read = draft.read(key, text)
    if read is None:
        return
    entry, name = read
    own = name == OWN or name.startswith(f"{OWN}_fallback_")
    if name in known:
        draft.set(entry, f"{TUNED}.chat_template", known[name])
    elif own or is_family(name, str(draft.get(f"{TUNED}.model") or "")):
        draft.note(entry, "unneeded", says="the model's own chat template is used, as a recipe does anyway")
    else:
        draft.note(entry, "different", says=OTHER_TEMPLATE)


def template_file(draft: Draft, key: str) -> None:
    """A template in Jinja: a file is named, an inline text is not written into the recipe."""
    read = draft.read(key, text)
    if read is None:
        return
    entry, value = read
    found = find_path(draft, value) if "{" not in value and "\n" not in value and len(value) < 1000 else None
    if found is None:
        says = f"got {plain(value)}; write the template into a file, and name the file in chat_template"
        draft.note(entry, "different", says=says)
    else:
        draft.set(entry, f"{TUNED}.chat_template", str(found))


def is_family(template: str, model: str) -> bool:
    """Whether a template's name begins with the family of a model (qwen3_nothink and Qwen/Qwen3-4B)."""
    family = _FAMILY.match(template.lower())
    words = _FAMILY.findall(model.lower().rpartition("/")[2])
    return family is not None and len(family[0]) > 2 and family[0] in words
