"""The data that arguments of TRL and Unsloth name: a hub id, a path, or TRL's list of data sets."""

from __future__ import annotations

from cockpit.importing.config import Entry
from cockpit.importing.draft import DATA, TUNED, Draft, different, plain, text
from cockpit.importing.sources import ONE_SOURCE, Source, place, put_source
from cockpit.importing.training_arguments import held_out

CONTAINERS = ("json", "csv", "parquet", "text")
"""Names that `load_dataset` takes in place of a data set, for files of one kind."""


def put_data(draft: Draft) -> None:
    """Give the keys about data their outcomes, and put the first data set into its stage."""
    given = [read for key in ("dataset_name", "dataset", "data_files") if (read := draft.read(key, text)) is not None]
    script = draft.take("train_dataset")
    if script is not None:
        says = "code of a script is never executed: set data, format and columns yourself"
        draft.note(script, "different", says=says)
    for key, normal in (("dataset_train_split", ("train",)), ("dataset_test_split", ("test", "validation"))):
        entry = draft.take(key)
        if entry is not None:
            says = "the reader finds train, val and test by their file names, and takes whole files"
            draft.note(entry, "unneeded" if entry.value in normal else "different", says=says)
    draft.apply({"dataset_config": different("the reader takes the files that the cache has; check which")})
    held_out(draft, "test_split_size")
    mixture = draft.take("datasets")
    if mixture is not None and given:
        draft.note(mixture, "different", says=ONE_SOURCE)
    elif mixture is not None:
        _mixture(draft, mixture)
    column = draft.read("dataset_text_field", text)
    source = _named(draft, given, column[1] if column is not None else "text") if given else None
    if column is not None:
        _column(draft, column[0], column[1], source)


def _named(draft: Draft, given: list[tuple[Entry, str]], column: str) -> Source:
    """The data set of several keys: its name, or its file beside the name of a kind of file."""
    entry, value = given[-1] if given[0][1] in CONTAINERS else given[0]
    source = Source(place(draft, value), columns={"text": column} if column != "text" else {})
    for other, name in given:
        if other is not entry:
            says = "the format of a file is found by its content" if name in CONTAINERS else ONE_SOURCE
            draft.note(other, "unneeded" if name in CONTAINERS else "different", says=says)
    problem = put_source(draft, source)
    draft.note(entry, "different" if problem else "imported", _fields(draft, source), problem)
    return source


def _column(draft: Draft, entry: Entry, column: str, source: Source | None) -> None:
    if source is not None and source.columns:
        draft.note(entry, "imported", [f"{_stage(draft)}.columns"])
    elif column == "text":
        draft.note(entry, "unneeded", says="the format of a row is found by its keys")
    else:
        draft.note(entry, "different", says=f"name it in columns: {plain(column)}")


def _mixture(draft: Draft, entry: Entry) -> None:
    """TRL's list of data sets, of which the first is taken."""
    found = entry.value if isinstance(entry.value, list) else [entry.value]
    first = found[0] if found else None
    if not isinstance(first, dict) or not isinstance(first.get("path"), str):
        draft.note(entry, "different", says="a list of data sets with paths is needed; set data yourself")
        return
    for key, value in first.items():
        if key not in ("path", "split") or (key == "split" and value != "train"):
            draft.note_nested(("datasets", 0, key), value, "different", "all rows of all files are read")
    source = Source(place(draft, first["path"]))
    problem = put_source(draft, source)
    if len(found) > 1:
        problem = problem or ONE_SOURCE
    draft.note(entry, "different" if problem else "imported", _fields(draft, source), problem)


def _stage(draft: Draft) -> str:
    return DATA if DATA in draft.stages else TUNED


def _fields(draft: Draft, source: Source) -> list[str]:
    return [f"{_stage(draft)}.{name}" for name in source.fields()]
