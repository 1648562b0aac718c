"""LLaMA-Factory's registry of data sets, `dataset_info.json`: one entry as the source of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cockpit.importing.draft import Draft, is_off, plain
from cockpit.importing.sources import NO_IMAGES, Source, place
from recipes.toml_scan import KeyPath

REGISTRY = "dataset_info.json"
PLACES = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
"""Keys that say where a data set is, in the order in which LLaMA-Factory looks at them."""
KEYS = (*PLACES, "formatting", "ranking", "subset", "split", "folder", "num_samples", "revision", "columns", "tags")
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
SHAREGPT_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "system_tag": "system",
}


class EntryError(ValueError):
    """A data set that no stage reads."""


def source_of(
    draft: Draft, path: KeyPath, entry: Mapping[str, Any], folder: str, *, pairs: bool | None = None
) -> Source:
    """The source of an entry; keys that it cannot follow are reported under `path`.

    Args:
        draft: the recipe in the making.
        path: the keys that lead to the entry, for reports.
        entry: the entry.
        folder: the registry's folder.
        pairs: whether rows with two answers are needed; None takes both kinds.

    Raises:
        EntryError: no stage reads such data.
    """
    source = Source(_place_of(draft, path, entry, folder))
    columns = _table(entry, "columns")
    for name in ("images", "videos", "audios"):
        if not is_off(columns.get(name)):
            raise EntryError(f"{name}: {NO_IMAGES}")
    if not is_off(columns.get("kto_tag")):
        raise EntryError("kto_tag: rows that are judged good or bad need KTO, which no stage kind has")
    ranked = not is_off(entry.get("ranking"))
    if ranked and pairs is False:
        raise EntryError("ranking: rows with a better and a worse answer are for stage: dpo")
    if pairs and not ranked:
        raise EntryError("ranking: stage: dpo needs rows with a better and a worse answer")
    formatting = entry.get("formatting") or "alpaca"
    if ranked and formatting in ("alpaca", "sharegpt", "openai"):
        _ranked(draft, path, source, columns, _table(entry, "tags"), str(formatting))
    elif formatting == "alpaca":
        _alpaca(source, columns)
    elif formatting in ("sharegpt", "openai"):
        _conversations(draft, path, source, columns, _table(entry, "tags"), str(formatting))
    else:
        raise EntryError(f"formatting: got {plain(formatting)}; allowed: alpaca, sharegpt")
    _rest(draft, path, entry)
    return source


def _table(entry: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = entry.get(key) or {}
    if not isinstance(table, dict):
        raise EntryError(f"{key}: got {plain(table)}; allowed: a table")
    return table


def _place_of(draft: Draft, path: KeyPath, entry: Mapping[str, Any], folder: str) -> str:
    key = next((key for key in PLACES if isinstance(entry.get(key), str)), "")
    if key in ("hf_hub_url", "file_name"):
        for other in PLACES:
            if other != key and other in entry:
                draft.note_nested((*path, other), entry[other], "unneeded", f"{key} counts before it")
        return place(draft, entry[key]) if key == "hf_hub_url" else place(draft, entry[key], folder)
    if not key:
        raise EntryError(f"the entry says nowhere where its data is; allowed: {', '.join(PLACES)}")
    reasons = {
        "script_url": "code from a data set is never executed",
        "cloud_file_name": "files in a cloud are not read; copy them here",
    }
    raise EntryError(f"{key}: {reasons.get(key, 'only the local cache of Hugging Face is read')}")


def _alpaca(source: Source, columns: dict[str, Any]) -> None:
    """Rows with named parts. Where an entry has `columns`, parts that it does not name are not read."""
    here = {name: column for name, column in columns.items() if isinstance(column, str) and column}
    if set(here) <= {"prompt"} and here:
        source.format, source.columns = "text", _renamed({"text": here["prompt"]})
        return
    standard = {**ALPACA, "history": "history", "system": "system", "tools": "tools"}
    if all(standard.get(name) == column for name, column in here.items()) and (not here or set(ALPACA) <= set(here)):
        source.format = "alpaca"
        return
    if "query" in here or "history" in here:
        source.format, source.columns = "alpaca", _renamed(_alpaca_parts(here))
        if "query" not in here:
            source.ignore_keys = ["input"]
        return
    parts = {"user": here.get("prompt", ALPACA["prompt"]), "assistant": here.get("response", ALPACA["response"])}
    source.columns = parts | {name: here[name] for name in ("system", "tools") if name in here}
    if parts["user"] == ALPACA["prompt"]:
        source.ignore_keys = ["input"]


def _alpaca_parts(here: Mapping[str, str]) -> dict[str, str]:
    """The columns of the parts of an Alpaca row, by the names that the reader has for them."""
    found = {ALPACA[name]: here.get(name, ALPACA[name]) for name in ALPACA if name != "query" or name in here}
    return found | {name: here[name] for name in ("history", "system", "tools") if name in here}


def _ranked(
    draft: Draft, path: KeyPath, source: Source, columns: dict[str, Any], tags: dict[str, Any], formatting: str
) -> None:
    """Rows with a better and a worse answer to one prompt."""
    here = {name: column for name, column in columns.items() if isinstance(column, str) and column}
    if not {"chosen", "rejected"} <= set(here):
        raise EntryError("columns: ranking needs the names of chosen and rejected")
    parts: dict[str, str] = {name: here[name] for name in ("chosen", "rejected", "system", "tools") if name in here}
    if formatting != "alpaca":
        turns = Source("")
        _conversations(draft, path, turns, columns, tags, formatting)
        parts["conversations"] = here.get("messages") or ("messages" if formatting == "openai" else "conversations")
    elif "query" in here or "history" in here:
        parts |= {name: column for name, column in _alpaca_parts(here).items() if name != "output"}
    else:
        parts["prompt"] = here.get("prompt", ALPACA["prompt"])
    source.format, source.columns = "preference", _renamed(parts)
    if formatting == "alpaca" and "query" not in here:
        source.ignore_keys = [ALPACA["query"]]


def _conversations(
    draft: Draft, path: KeyPath, source: Source, columns: dict[str, Any], tags: dict[str, Any], formatting: str
) -> None:
    """Rows with a list of turns, whose roles and keys may have other names."""
    known = OPENAI_TAGS if tags.get("role_tag", "from") == "role" or formatting == "openai" else SHAREGPT_TAGS
    for name, tag in tags.items():
        if name not in SHAREGPT_TAGS:
            draft.note_nested((*path, "tags", name), tag, "unknown", "not a tag of LLaMA-Factory that is known here")
        elif tag != known.get(name) and not (name == "function_tag" and tag == "function_call"):
            says = (
                f"turns are read with {plain(known.get(name, 'no such role'))}; the reader refuses other names by row"
            )
            draft.note_nested((*path, "tags", name), tag, "different", says)
    column = columns.get("messages") or ("messages" if formatting == "openai" else "conversations")
    standard = "messages" if known is OPENAI_TAGS else "conversations"
    source.format = "messages" if known is OPENAI_TAGS or column != standard else "sharegpt"
    if source.format == "messages":
        source.columns = _renamed({"messages": column})
    for name in ("system", "tools"):
        if columns.get(name) not in (None, "", name):
            source.columns[name] = columns[name]


def _renamed(columns: dict[str, str]) -> dict[str, str]:
    """The columns that have other names than a reader expects."""
    return {name: column for name, column in columns.items() if name != column}


def _rest(draft: Draft, path: KeyPath, entry: Mapping[str, Any]) -> None:
    reasons = {
        "subset": "the reader takes the files that the cache has; check which",
        "folder": "the reader takes the files that the cache has; check which",
        "revision": "the reader takes the newest snapshot in the cache",
        "num_samples": "all rows are read",
    }
    for key, value in entry.items():
        if key in reasons and value is not None:
            draft.note_nested((*path, key), value, "different", reasons[key])
        elif key == "split" and value not in (None, "train"):
            draft.note_nested(
                (*path, key), value, "different", "the reader finds train, val and test by their file names"
            )
        elif key not in KEYS:
            draft.note_nested((*path, key), value, "unknown", "not a key of LLaMA-Factory that is known here")
