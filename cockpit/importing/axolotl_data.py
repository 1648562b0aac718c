"""Axolotl's `datasets:`: one entry as the source of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cockpit.importing.draft import TUNED, Draft, is_off, plain
from cockpit.importing.meanings import METHOD_PART, WHOLE_PAIR
from cockpit.importing.sources import Source, find_path, place
from recipes.toml_scan import KeyPath

_ALPACA_PROMPT = "rows are read as Alpaca's, and the chat template writes the turns instead of Alpaca's own prompt"
_IGNORED = {
    "ds_type": "the format of a file is found by its content",
    "trust_remote_code": "code from a data set is never executed",
    "preprocess_shards": "rows are read in a stream",
    "train_on_eos": "the token that ends an answer is scored",
    "conversation": "the chat template writes the turns",
}
_LEFT_OUT = {
    "name": "the reader takes the files that the cache has; check which",
    "revision": "the reader takes the newest snapshot in the cache",
    "shards": "all rows are read",
    "shards_idx": "all rows are read",
    "data_files": "give the file or the folder in data",
    "chat_template": "chat_template of the stage decides",
    "chat_template_jinja": "chat_template of the stage decides",
    "roles": "roles are read by the names of OpenAI and ShareGPT; the reader refuses other names by row",
    "drop_system_message": "system turns are kept",
    "message_field_training": "a turn's weight (0 or 1) decides whether it is scored",
    "message_field_training_detail": "a turn is scored whole, or not at all",
    "field_thinking": "reasoning is read from reasoning_content",
    "split_thinking": "reasoning is read from reasoning_content",
    "template_thinking_key": "reasoning is read from reasoning_content",
    "input_transform": "code from a configuration is never executed",
    "input_format": "the chat template writes the turns",
    "logprobs_field": "no stage kind trains on another model's probabilities",
    "max_completion_length": WHOLE_PAIR,
    **dict.fromkeys(("step_separator", "train_on_last_step_only"), METHOD_PART),
    "temperature": "no stage kind trains on another model's probabilities",
}
_SPREAD = ("field", "field_human", "field_model", "field_messages", "field_tools", "message_field_role",
           "message_field_content", "message_property_mappings", "roles_to_train", "split", "path", "type")  # fmt: skip
KEYS = (*_IGNORED, *_LEFT_OUT, *_SPREAD)
_PARTS = {"field_prompt": "prompt", "field_chosen": "chosen", "field_rejected": "rejected", "field_system": "system"}
"""Keys that name the columns of a pair of answers."""
_PAIR_FORMS = {
    "intel": {"prompt": "question"},
    "icr": {"prompt": "input"},
    "argilla_chat": {},
    "ultra": {},
    "prompt_pairs": {},
    "default": {},
}
"""Forms of pairs by what stands after the dot of a type, with the columns that have other names."""
_ROLE_KEYS = {"role": ("role", "from"), "content": ("content", "value")}


class EntryError(ValueError):
    """A data set that no stage reads."""


def source_of(draft: Draft, path: KeyPath, entry: Any) -> Source:
    """The source of an entry; keys that it cannot follow are reported under `path`.

    Raises:
        EntryError: no stage reads such data.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("path") or entry.get("data_files"), str | list):
        raise EntryError("an entry needs a path")
    source = Source(_place_of(draft, path, entry))
    kind = entry.get("type")
    if draft.on_pairs:
        _pairs(draft, path, entry, source)
    elif isinstance(kind, dict):
        _own_prompt(draft, (*path, "type"), kind, source)
    elif kind is None or isinstance(kind, str):
        _named(draft, path, str(kind or ""), entry, source)
    else:
        raise EntryError(f"type: got {plain(kind)}; allowed: a name or a table")
    _rest(draft, path, entry)
    return source


def _pairs(draft: Draft, path: KeyPath, entry: Mapping[str, Any], source: Source) -> None:
    """Rows with a better and a worse answer, by a type's name, or by the columns that an entry or its type names."""
    kind = entry.get("type")
    own = kind if isinstance(kind, dict) else {}
    name = kind if isinstance(kind, str) else ""
    template, _, form = name.partition(".")
    source.format, source.columns = "preference", dict(_PAIR_FORMS.get(form, {}))
    if template == "chat_template" and form in ("", "default"):
        source.columns["prompt"] = str(entry.get("field_messages") or "messages")
    for key, part in _PARTS.items():
        if isinstance(column := own.get(key, entry.get(key)), str):
            source.columns[part] = column
    source.columns = {part: column for part, column in source.columns.items() if part != column}
    for key, value in own.items():
        if key not in _PARTS and not is_off(value):
            draft.note_nested((*path, "type", key), value, "different", "the chat template writes the turns")
    if form and form not in _PAIR_FORMS:
        says = "pairs are read by the names prompt, chosen and rejected; name other ones in columns"
        draft.note_nested((*path, "type"), kind, "different", says)
    elif template not in ("", "chat_template", "user_defined", "passthrough"):
        draft.note_nested((*path, "type"), kind, "different", "the stage's chat template writes the turns")


def _place_of(draft: Draft, path: KeyPath, entry: Mapping[str, Any]) -> str:
    given, files = entry.get("path"), entry.get("data_files")
    only = files[0] if isinstance(files, list) and len(files) == 1 else files
    if isinstance(only, str) and (
        given in (None, "json", "csv", "parquet", "text") or find_path(draft, only) is not None
    ):
        return place(draft, only)
    if not isinstance(given, str):
        raise EntryError("data_files: " + _LEFT_OUT["data_files"])
    if files is not None:
        draft.note_nested((*path, "data_files"), files, "different", _LEFT_OUT["data_files"])
    if "://" in given:
        raise EntryError(f"path: got {plain(given)}; files in a cloud are not read; copy them here")
    return place(draft, given)


def _named(draft: Draft, path: KeyPath, kind: str, entry: Mapping[str, Any], source: Source) -> None:
    """A type by name; what stands after a dot or a colon selects the prompt's form."""
    name = kind.partition(".")[0].partition(":")[0]
    says = ""
    if name in ("chat_template", "sharegpt", "chatml"):
        _turns(draft, path, entry, source, sharegpt=name != "chat_template")
        return
    if name in ("completion", "pretrain", ""):
        if name == "" and not is_off(draft.value("datasets")):
            raise EntryError("type: rows of ready tokens are not read")
        column = entry.get("field") or "text"
        source.format = "text"
        source.columns = {} if column == "text" else {"text": str(column)}
        return
    if name in ("alpaca", "alpaca_chat", "gpteacher"):
        source.format, says = "alpaca", _ALPACA_PROMPT
    elif name == "alpaca_w_system" or kind.startswith(
        ("context_qa", "summarizetldr", "explainchoice", "concisechoice")
    ):
        columns = {
            "alpaca_w_system.load_open_orca": {"system": "system_prompt", "user": "question", "assistant": "response"},
            "alpaca_w_system.load_open_orca_chatml": {
                "system": "system_prompt", "user": "question", "assistant": "response"
            },
        }.get(kind)  # fmt: skip
        if columns is None:
            raise EntryError(f"type: rows of {plain(kind)} have no format here; describe them with columns")
        source.columns, says = columns, _ALPACA_PROMPT.replace("as Alpaca's", "by columns")
    elif name in ("synthetic", "input_output", "stepwise_supervised", "bradley_terry", "chat_template_strategy"):
        raise EntryError(f"type: rows of {plain(kind)} are not read")
    else:
        source.format, says = "auto", f"got {plain(kind)}; the format is found by the first row"
    draft.note_nested((*path, "type"), kind, "different", says)


def _turns(draft: Draft, path: KeyPath, entry: Mapping[str, Any], source: Source, *, sharegpt: bool) -> None:
    """Rows with a list of turns; the reader knows role and from, content and value."""
    mapping = entry.get("message_property_mappings")
    found = dict(mapping) if isinstance(mapping, dict) else {}
    for old, name in (("message_field_role", "role"), ("message_field_content", "content")):
        if isinstance(entry.get(old), str):
            found.setdefault(name, entry[old])
    for name, key in found.items():
        if key not in _ROLE_KEYS.get(str(name), (str(name),)):
            says = "turns are read by the names of OpenAI and ShareGPT; the reader refuses other names by row"
            draft.note_nested((*path, "message_property_mappings", str(name)), key, "different", says)
    column = str(entry.get("field_messages") or ("conversations" if sharegpt else "messages"))
    source.format = "sharegpt" if column == "conversations" else "messages"
    if column not in ("conversations", "messages"):
        source.columns["messages"] = column
    if isinstance(entry.get("field_tools"), str) and entry["field_tools"] != "tools":
        source.columns["tools"] = entry["field_tools"]
    roles = entry.get("roles_to_train", ["assistant"])
    if roles == ["user", "assistant"] or roles == ["assistant", "user"]:
        draft.put(f"{TUNED}.train_on", "all")
    elif roles is None or roles == []:
        says = "answers are scored; a turn's weight (0 or 1) decides for each turn"
        draft.note_nested((*path, "roles_to_train"), roles, "different", says)
    elif not set(map(str, roles)) <= {"assistant", "gpt"}:
        draft.note_nested((*path, "roles_to_train"), roles, "different", "only the assistant's turns can be scored")


def _own_prompt(draft: Draft, path: KeyPath, kind: Mapping[str, Any], source: Source) -> None:
    """A type that names the columns and writes its own prompt."""
    parts = {"user": "field_instruction", "assistant": "field_output", "system": "field_system"}
    default = {"field_instruction": "instruction", "field_output": "output"}
    found = {name: kind.get(key) or default.get(key) for name, key in parts.items()}
    source.columns = {name: column for name, column in found.items() if isinstance(column, str)}
    for key, value in kind.items():
        if is_off(value) or key in parts.values():
            continue
        if key == "field_input":
            says = "two columns cannot be joined into one turn by columns; the input is left out"
            draft.note_nested((*path, key), value, "different", says)
            source.ignore_keys.append(str(value))
        elif key in ("format", "no_input_format", "system_format", "system_prompt"):
            draft.note_nested((*path, key), value, "different", "the chat template writes the turns")
        else:
            draft.note_nested((*path, key), value, "unknown", "not a key of Axolotl's prompts that is known here")


def _rest(draft: Draft, path: KeyPath, entry: Mapping[str, Any]) -> None:
    split = entry.get("split")
    if split not in (None, "train"):
        says = "the reader finds train, val and test by their file names, and takes whole files"
        draft.note_nested((*path, "split"), split, "different", says)
    for key, value in entry.items():
        if is_off(value):
            continue
        if key in _PARTS and (draft.on_pairs or isinstance(entry.get("type"), dict)):
            continue
        if key in _PARTS:
            draft.note_nested((*path, key), value, "unneeded", "belongs to rl: dpo")
        elif key in _LEFT_OUT and key != "data_files":
            draft.note_nested((*path, key), value, "different", _LEFT_OUT[key])
        elif key not in KEYS:
            draft.note_nested((*path, key), value, "unknown", "not a key of Axolotl's data sets that is known here")
