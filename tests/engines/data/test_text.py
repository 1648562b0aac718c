"""Documents come from hostile trees, every file is counted, and splits are stable."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from engines.context import StopRequested
from engines.data.documents import read_documents
from engines.data.sources.documents import SourceFields
from engines.data.sources.report import what_to_know
from engines.data.split import SPLITS
from engines.data.text import prepare_text
from engines.events.attempts import Phase, Progress
from recipes.problems import OperatorError
from tests.engines.small_corpora import fresh, write_tree
from tests.stage_context import make_context


def prepared(source: Path, out: Path, **fields: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """All documents by path, and the metadata. Fields that say which files are read are those of `SourceFields`."""
    which = {name: fields.pop(name) for name in list(fields) if name in SourceFields.__dataclass_fields__}
    metadata = prepare_text(str(source), fresh(out), fields=SourceFields(**which), **fields)
    taken = {document.path: document.text for split in SPLITS for document, _ in read_documents(out, split)}
    return taken, metadata


def test_a_small_tree_gives_exactly_these_documents_and_counts(tmp_path: Path) -> None:
    source = write_tree(
        tmp_path / "src",
        {
            "a.py": "x = 1\r\n",
            "b/c.py": "y = 2\n",
            "b/same.py": "x = 1\r\n",
            "empty.py": " \n",
            "binary.py": b"x = 1\0\n",
            "wrong.py": b"x = '\xff'\n",
            "latin.py": b"# coding: latin-1\nx = '\xe9'\n",
            "bom.py": b"\xef\xbb\xbfz = 3\n",
            "no_such_codec.py": b"# coding: nope\n",
            "not_text_codec.py": b"# coding: zlib\n",
            "surrogates.py": b"# coding: utf-7\nx = '+2AA-'\n",
            "large.py": "x" * 2000,
            "out/left.py": "left = 1\n",
            "readme.md": "not asked for\n",
            ".git/hook.py": "hidden = 1\n",
            "site-packages/theirs.py": "theirs = 1\n",
            "__pycache__/c.py": "cache = 1\n",
        },
    )
    taken, metadata = prepared(source, tmp_path / "out", include=["*.py"], exclude=["out/*"], max_file_bytes=1000)
    assert taken == {
        "a.py": "x = 1\r\n",
        "b/c.py": "y = 2\n",
        "latin.py": "# coding: latin-1\nx = 'é'\n",
        "bom.py": "z = 3\n",
    }
    assert metadata["dropped"] == {
        "binary": 1,
        "duplicate": 1,
        "empty": 1,
        "excluded": 1,
        "not_utf8": 4,
        "too_large": 1,
    }
    assert sum(split["documents"] for split in metadata["splits"].values()) == 4
    assert sum(split["bytes"] for split in metadata["splits"].values()) == sum(len(t.encode()) for t in taken.values())


def test_links_loops_sockets_and_odd_names_are_counted_and_never_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_tree(tmp_path / "src", {"a.py": "a = 1\n", "in/b.py": "b = 1\n", "new\nline.py": "n = 1\n"})
    write_tree(tmp_path / "outside", {"secret.py": "secret = 1\n"})
    (source / "in" / "loop").symlink_to(source)
    (source / "away").symlink_to(tmp_path / "outside")
    (source / "link.py").symlink_to(tmp_path / "outside" / "secret.py")
    (source / "dangling.py").symlink_to(tmp_path / "nowhere")
    os.mkfifo(source / "fifo.py")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(source)  # the name of a socket is short
        listener.bind("socket.py")
    with open(os.fsencode(source) + b"/bad\xff.py", "w") as odd:
        odd.write("odd = 1\n")
    taken, metadata = prepared(source, tmp_path / "out", val_fraction=0, test_fraction=0)
    assert sorted(taken) == ["a.py", "in/b.py", "new\nline.py"]
    assert metadata["dropped"] == {"not_a_file": 2, "path_not_utf8": 1, "symbolic_link": 2}
    assert "2 file(s) were left out: not a file" in what_to_know(metadata)


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path) -> None:
    names = [f"{name}.py" for name in "qwertyuiopasdfgh"]
    one = write_tree(tmp_path / "one", {name: f"{name} = 1\n" for name in names})
    two = write_tree(tmp_path / "two", {name: f"{name} = 1\n" for name in reversed(names)})
    prepared(one, tmp_path / "a")
    prepared(two, tmp_path / "b")
    for split in SPLITS:
        assert (tmp_path / "a" / f"{split}.jsonl").read_bytes() == (tmp_path / "b" / f"{split}.jsonl").read_bytes()


def test_adding_files_to_the_tree_moves_no_document(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "src", {f"f{number}.py": f"x = {number}\n" for number in range(60)})
    prepared(source, tmp_path / "before", val_fraction=0.2, test_fraction=0.2)
    write_tree(source, {f"more/g{number}.py": f"y = {number}\n" for number in range(40)})
    prepared(source, tmp_path / "after", val_fraction=0.2, test_fraction=0.2)
    for split in SPLITS:
        before = {document.path for document, _ in read_documents(tmp_path / "before", split)}
        assert before <= {document.path for document, _ in read_documents(tmp_path / "after", split)}


@pytest.mark.parametrize("files", [{}, {"a.py": ""}, {"a.png": "words"}])
def test_a_source_without_usable_files_is_reported(tmp_path: Path, files: dict[str, str]) -> None:
    source = write_tree(fresh(tmp_path / "src"), files)
    with pytest.raises(OperatorError, match="no usable document"):
        prepared(source, tmp_path / "out")


def test_a_source_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="is not a file or a folder"):
        prepared(tmp_path / "nowhere", tmp_path / "out")


def test_a_tiny_corpus_fills_every_split_and_names_what_was_moved(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "src", {"a.py": "a = 1\n", "b.py": "b = 1\n", "c.py": "c = 1\n"})
    _, metadata = prepared(source, tmp_path / "out")
    assert [metadata["splits"][split]["documents"] for split in SPLITS] == [1, 1, 1]
    assert set(metadata["moved_to_fill_a_split"].values()) == {"val", "test"}


def test_max_bytes_takes_files_in_the_order_of_their_hash_and_keeps_every_share(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "src", {f"f{number:03}.py": f"x = {number:03}\n" for number in range(300)})
    small, metadata = prepared(source, tmp_path / "small", max_bytes=800, val_fraction=0.2, test_fraction=0.2)
    large, _ = prepared(source, tmp_path / "large", max_bytes=1600, val_fraction=0.2, test_fraction=0.2)
    assert len(small) == 100
    assert metadata["dropped"] == {"over_max_bytes": 200}
    assert small.keys() < large.keys()
    assert sorted(small) != sorted(f"f{number:03}.py" for number in range(100))
    assert metadata["splits"]["train"]["documents"] > 40


STAGE = {"name": "text", "kind": "prepare", "output": "text"}
TREE = {f"p/f{number}.py": f"x = {number}\n" for number in range(30)} | {"q/g.md": "words\n", "q/long.py": "#" * 5000}
TREE |= {"r/rows.jsonl": '{"text": "one", "body": "first"}\n{"text": "two", "body": "second"}\n'}


def stage_output(tmp_path: Path, name: str, **fields: Any) -> dict[str, bytes]:
    from engines.data.stage import run

    if not (tmp_path / "src").exists():
        write_tree(tmp_path / "src", TREE)
    context = make_context(tmp_path / name, {"source": str(tmp_path / "src"), **STAGE, **fields})
    result = run(context)
    assert [artifact.kind for artifact in result.artifacts] == ["text"]
    return {split: (context.out / f"{split}.jsonl").read_bytes() for split in SPLITS}


@pytest.mark.parametrize(
    "fields",
    [
        {"include": ["*.py", "*.jsonl"]},
        {"exclude": ["p/f1*"]},
        {"format": "raw"},
        {"columns": {"text": "body"}},
        {"max_file_bytes": 1000},
        {"max_document_bytes": 1000},
        {"max_bytes": 60},
        {"val_fraction": 0.3},
        {"test_fraction": 0.3},
        {"seed": 7},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_every_field_of_the_recipe_reaches_the_documents(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert stage_output(tmp_path, "changed", **fields) != stage_output(tmp_path, "default")


def test_the_stage_counts_its_progress_against_a_total(tmp_path: Path) -> None:
    from engines.data.stage import run

    write_tree(tmp_path / "src", TREE)
    context = make_context(tmp_path, {"source": str(tmp_path / "src"), **STAGE})
    result = run(context)
    last = {e.unit: (e.done, e.total) for e in context.events() if isinstance(e, Progress)}
    assert last == {"files": (33, 33), "documents": (34, 34)}
    assert result.metrics["documents"] == 34
    assert [e.name for e in context.events() if isinstance(e, Phase)] == ["reading sources", "writing documents"]


def test_a_stop_during_the_work_ends_it(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "src", TREE)

    def report(done: float, total: float | None, unit: str) -> None:
        raise StopRequested

    with pytest.raises(StopRequested):
        prepared(source, tmp_path / "out", report=report)


def test_the_standard_library_is_a_source(tmp_path: Path) -> None:
    out = fresh(tmp_path / "out")
    metadata = prepare_text(
        "python-stdlib",
        out,
        fields=SourceFields(include=["decoder.py", "encoder.py", "scanner.py"], exclude=["test/*"]),
    )
    paths = {document.path for split in SPLITS for document, _ in read_documents(out, split)}
    assert {"json/decoder.py", "json/encoder.py", "json/scanner.py"} <= paths
    assert not any("site-packages" in path for path in paths)
    assert metadata["python"]
    assert json.loads((out / "metadata.json").read_text()) == metadata


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("Grüße aus Köln\n".encode("latin-1") * 20, "set encoding if the files are text in another encoding"),
        (b"some words\n" * 20 + b"\0\0", "give files of text"),
        (b" \n\n", "give files with text"),
    ],
)
def test_a_source_of_unreadable_files_says_what_to_do_about_them(tmp_path: Path, content: bytes, hint: str) -> None:
    source = write_tree(tmp_path / "source", {"a.txt": content, "b.txt": content + b"\n"})
    with pytest.raises(OperatorError, match="has no usable documents") as raised:
        prepare_text(str(source), fresh(tmp_path / "out"))
    assert hint in (raised.value.hint or "")


def test_one_document_cannot_fill_three_splits_and_the_error_says_how_it_can(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {"a.txt": "one document only\n"})
    with pytest.raises(OperatorError, match=r"cannot divide 1 document\(s\) into train, val, test") as raised:
        prepare_text(str(source), fresh(tmp_path / "out"))
    assert "set val_fraction = 0 and test_fraction = 0" in (raised.value.hint or "")
    assert [one.name for one in (tmp_path / "out").iterdir()] == []
