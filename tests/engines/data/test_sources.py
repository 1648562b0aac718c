"""Files of text become documents: rows, pages, packed files and long texts; what is left out is counted and said."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.data.documents import read_documents
from engines.data.sources.documents import SourceFields
from engines.data.sources.html import html_text
from engines.data.sources.pieces import pieces_of
from engines.data.sources.report import what_to_know
from engines.data.split import SPLITS
from engines.data.text import prepare_text
from engines.events.writers import Warned
from recipes.problems import OperatorError
from tests.engines.small_corpora import fresh, write_tree
from tests.stage_context import make_context


def documents(source: Path, out: Path, **fields: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """All documents in one split, by name, and the metadata."""
    metadata = prepare_text(str(source), fresh(out), fields=SourceFields(**fields), val_fraction=0, test_fraction=0)
    return {document.path: document.text for document, _ in read_documents(out, "train")}, metadata


ROWS = '{"text": "one"}\n\n{"text": "two", "id": 2}\n{"text": " "}\n{"text": "one"}\n'
PAGE = (
    "<html><head><title>Pages</title><script>var x = '<p>no</p>';</script></head><body><p>a &amp; b</p></body></html>"
)


def test_each_row_of_json_lines_is_a_document_and_the_markup_of_a_page_is_not(tmp_path: Path) -> None:
    source = write_tree(
        tmp_path / "src",
        {
            "rows.jsonl": ROWS,
            "packed.jsonl.gz": gzip.compress(b'{"text": "three"}\n'),
            "page.html": PAGE,
            "book.txt.gz": gzip.compress("größer\r\n".encode()),
            "notes.md": "# Notes\n",
            "wide.txt": "größer\n".encode("utf-16"),
            "photo.png": b"\x89PNG",
            "settings.json": "{}",
        },
    )
    taken, metadata = documents(source, tmp_path / "out")
    assert taken == {
        "rows.jsonl:1": "one",
        "rows.jsonl:3": "two",
        "packed.jsonl.gz:1": "three",
        "page.html": "Pages\n\na & b\n",
        "book.txt.gz": "größer\r\n",
        "notes.md": "# Notes\n",
        "wide.txt": "größer\n",
    }
    assert metadata["dropped"] == {"duplicate": 1, "empty": 1}
    assert metadata["other_kinds"] == {".json": 1, ".png": 1}
    assert "2 file(s) are no text by their suffix and were not read (.json 1, .png 1)" in what_to_know(metadata)[0]


def test_raw_files_are_each_one_text(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "src", {"rows.jsonl": ROWS, "page.html": PAGE})
    taken, _ = documents(source, tmp_path / "out", format="raw")
    assert taken == {"rows.jsonl": ROWS, "page.html": PAGE}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"content": "x", "id": 1}', "'text' is null or missing; the row has content, id"),
        ('{"text": null}', "'text' is null or missing; the row has text"),
        ('{"text": ["x"]}', "'text' is list, not a text"),
        ('{"text": "a\\u0000b"}', "'text' has a NUL character"),
        ('"x"', "'text' is null or missing"),
        ('{"text": "x"', "rows.jsonl:2: "),
    ],
)
def test_a_row_without_a_text_ends_the_stage_with_its_line_or_is_counted(tmp_path: Path, line: str, says: str) -> None:
    source = write_tree(tmp_path / "src", {"rows.jsonl": f'{{"text": "one"}}\n{line}\n{{"text": "two"}}\n'})
    with pytest.raises(OperatorError, match=r"rows\.jsonl:2: ") as caught:
        documents(source, tmp_path / "out")
    assert says in caught.value.message
    taken, metadata = documents(source, tmp_path / "skipped", on_bad_row="skip")
    assert list(taken.values()) == ["one", "two"]
    assert metadata["dropped"] == {"bad_row": 1}
    assert any("1 row(s) were left out: bad row" in sentence for sentence in what_to_know(metadata))


def test_tables_and_lists_are_documents_row_by_row_and_other_json_is_one_text(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    source = fresh(tmp_path / "src")
    parquet.write_table(pyarrow.table({"text": ["one", "", "two"]}), source / "a.parquet")
    files = {"b.json": '[{"text": "three"},\n {"text": "four"}]', "c.json": '{"a": [{"text": "no row"}]}'}
    write_tree(source, {**files, "d.csv": 'id,text\n1,"five, six"\n', "e.json": "[1, 2]"})
    taken, metadata = documents(source, tmp_path / "out", include=["*"])
    assert taken == {
        "a.parquet: row 1": "one",
        "a.parquet: row 3": "two",
        "b.json:1": "three",
        "b.json:2": "four",
        "c.json": files["c.json"],
        "d.csv:2": "five, six",
        "e.json": "[1, 2]",
    }
    assert metadata["dropped"] == {"empty": 1}


def test_the_recipe_may_name_the_encoding(tmp_path: Path) -> None:
    text = "größer\n"
    files = {
        "a.txt": text,
        "b.py": f"# {text}",
        "c.html": f"<p>A {text}</p>",
        "d.jsonl": json.dumps({"text": "für"}, ensure_ascii=False),
    }
    source = write_tree(tmp_path / "src", {name: content.encode("latin-1") for name, content in files.items()})
    taken, _ = documents(source, tmp_path / "named", encoding="latin-1")
    assert taken == {"a.txt": text, "b.py": f"# {text}", "c.html": f"A {text}", "d.jsonl:1": "für"}
    with pytest.raises(OperatorError, match=r"d\.jsonl:1: not a document: not UTF-8"):
        documents(source, tmp_path / "out")
    write_tree(source, {"e.txt": "e"})
    _, metadata = documents(source, tmp_path / "skipped", on_bad_row="skip")
    assert metadata["dropped"] == {"not_utf8": 3, "bad_row": 1}


def test_the_text_of_a_row_may_have_another_name_and_lie_inside_an_object(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "src", {"rows.jsonl": '{"doc": {"body": "inside"}, "text": "outside"}\n'})
    taken, _ = documents(source, tmp_path / "out", text_column="doc.body")
    assert taken == {"rows.jsonl:1": "inside"}


def test_one_long_file_fills_all_splits_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    text = "".join(f"Line {number} of a long text.\n" + "\n" * (number % 7 == 0) for number in range(2000))
    source = write_tree(tmp_path, {"book.txt": text}) / "book.txt"
    out = fresh(tmp_path / "out")
    metadata = prepare_text(str(source), out)
    taken = {document.path: document.text for split in SPLITS for document, _ in read_documents(out, split)}
    assert "".join(taken[f"book.txt#{number}"] for number in range(1, len(taken) + 1)) == text
    assert all(piece.endswith("\n") for piece in taken.values())
    held_out = sum(metadata["splits"][split]["bytes"] for split in ("val", "test"))
    assert 0.04 < held_out / len(text) < 0.25
    assert metadata["moved_to_fill_a_split"] == {}
    assert "1 long document(s) were divided" in what_to_know(metadata)[-1]


def test_a_few_books_are_divided_and_program_sources_stay_whole(tmp_path: Path) -> None:
    books = {f"{name}.txt": "".join(f"{name} {number}\n" for number in range(900)) for name in "abc"}
    source = write_tree(tmp_path / "src", {**books, "long.py": "".join(f"x = {number}\n" for number in range(900))})
    out = fresh(tmp_path / "out")
    metadata = prepare_text(str(source), out)
    names = [document.path for split in SPLITS for document, _ in read_documents(out, split)]
    assert metadata["divided"] == 3
    assert "long.py" in names
    assert len([name for name in names if name.startswith("a.txt#")]) > 5
    assert all(metadata["splits"][split]["documents"] for split in SPLITS)


def test_a_long_row_and_a_long_file_are_divided_and_a_short_one_is_not(tmp_path: Path) -> None:
    row = json.dumps({"text": "".join(f"{n:04} " for n in range(100))})
    source = write_tree(
        tmp_path / "src", {"a.txt": "".join(f"{n:04}\n" for n in range(100)), "b.jsonl": row, "c.txt": "short\n"}
    )
    taken, metadata = documents(source, tmp_path / "out", max_document_bytes=200)
    assert [len(text) for name, text in taken.items() if name.startswith("a.txt")] == [200, 200, 100]
    assert [name for name in taken if name.startswith("b.")] == ["b.jsonl:1#1", "b.jsonl:1#2", "b.jsonl:1#3"]
    assert taken["c.txt"] == "short\n"
    assert metadata["divided"] == 2


def test_a_file_that_is_no_text_in_its_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    pieces = b"first half\n" * 20
    files = {"a.txt": pieces + b"\xff\n", "b.txt": pieces + b"\0\n", "c.txt.gz": gzip.compress(pieces)[:-9]}
    source = write_tree(tmp_path / "src", {**files, "good.txt": pieces, "large.txt": b"x" * 3000})
    taken, metadata = documents(source, tmp_path / "out", max_document_bytes=100, max_file_bytes=2000)
    assert {name.partition("#")[0] for name in taken} == {"good.txt"}
    assert metadata["dropped"].items() >= {"not_utf8": 1, "binary": 1, "damaged_gzip": 1, "too_large": 1}.items()
    assert metadata["dropped_examples"]["too_large"] == ["large.txt"]
    assert any("raise max_file_bytes" in sentence for sentence in what_to_know(metadata))


def test_a_packed_file_is_measured_as_it_is_unpacked(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "src", {"bomb.txt.gz": gzip.compress(b"\n" * (8 << 20)), "a.txt": "a\n"})
    taken, metadata = documents(source, tmp_path / "out", max_file_bytes=1 << 20)
    assert (list(taken), metadata["dropped"]) == (["a.txt"], {"too_large": 1})


def test_the_stage_says_what_it_left_out(tmp_path: Path) -> None:
    from engines.data.stage import run

    source = write_tree(tmp_path / "src", {"a.txt": "a\n", "b.txt": b"\xff\xff", "c.jpg": b"x"})
    stage = {"name": "text", "kind": "prepare", "output": "text", "source": str(source)}
    context = make_context(tmp_path, {**stage, "val_fraction": 0.0, "test_fraction": 0.0})
    run(context)
    said = [event.message for event in context.events() if isinstance(event, Warned)]
    assert any("1 file(s) were left out: not utf8 (b.txt)" in sentence for sentence in said)
    assert any(".jpg 1" in sentence for sentence in said)


def test_a_snapshot_of_a_hubs_cache_is_read_through_its_links_and_no_other(tmp_path: Path) -> None:
    cache = write_tree(tmp_path / "datasets--org--name", {"blobs/abc": "one\n", "blobs/def": '{"text": "two"}\n'})
    write_tree(tmp_path / "outside", {"secret.txt": "secret\n"})
    snapshot = fresh(cache / "snapshots" / "0123" / "data").parent
    (snapshot / "data" / "a.txt").symlink_to(cache / "blobs" / "abc")
    (snapshot / "data" / "b.jsonl").symlink_to(Path("../../../blobs/def"))
    (snapshot / "c.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    for number, place in enumerate((snapshot, snapshot / "data")):
        taken, _ = documents(place, tmp_path / f"out{number}")
        assert list(taken.values()) == ["one\n", "two"]
    _, metadata = documents(snapshot, tmp_path / "again")
    assert "1 file(s) were left out: symbolic link" in " ".join(what_to_know(metadata))


def test_memory_is_flat_in_the_size_of_the_text(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    with (source / "long.txt").open("w") as file, (source / "rows.jsonl").open("w") as rows:
        for number in range(24):
            file.write("".join(f"{number} {line} of a long text\n" for line in range(40_000)))
            rows.writelines(json.dumps({"text": f"{number} {row} " * 100}) + "\n" for row in range(600))
    assert sum(file.stat().st_size for file in source.iterdir()) > 28 << 20
    tracemalloc.start()
    try:
        prepare_text(str(source), fresh(tmp_path / "out"))
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 16 << 20


def test_a_file_that_changes_while_it_is_read_ends_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_tree(tmp_path, {"book.txt": "a line\n" * 100}) / "book.txt"

    def pieces_of_a_file_that_grows(chunks: Iterator[bytes], limit: int) -> Iterator[bytes]:
        with file.open("a") as more:
            more.write("more\n")
        return pieces_of(chunks, limit)

    monkeypatch.setattr("engines.data.sources.documents.pieces_of", pieces_of_a_file_that_grows)
    with pytest.raises(OperatorError, match=r"book\.txt changed while it was read"):
        documents(file, tmp_path / "out")


# ---- pieces


@given(st.text(max_size=400), st.integers(4, 60), st.integers(1, 50))
def test_pieces_join_to_the_text_and_none_is_longer_than_the_limit(text: str, limit: int, chunk: int) -> None:
    data = text.encode("utf-8", "ignore")
    pieces = list(pieces_of((data[at : at + chunk] for at in range(0, len(data), chunk)), limit))
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= limit for piece in pieces)
    assert all(piece.decode() for piece in pieces)
    assert all(2 * len(piece) >= limit - 6 for piece in pieces[:-1])


def test_a_piece_ends_at_a_paragraph_before_a_line_before_a_word() -> None:
    text = b"one two\nthree four\n\nfive six\nseven"
    assert list(pieces_of([text], 24)) == [b"one two\nthree four\n\n", b"five six\nseven"]
    assert list(pieces_of([text], 18)) == [b"one two\nthree ", b"four\n\nfive six\n", b"seven"]


# ---- pages


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<p>one<p>two", "one\n\ntwo\n"),
        ("a<br>b<br/><br>c", "a\nb\n\nc\n"),
        ("<ul><li>one</li>\n <li>two</li></ul>", "one\ntwo\n"),
        ("<table><tr><td>1<td>2</tr><tr><td>3</td><td>4</td></tr></table>", "1\t2\n3\t4\n"),
        ("x <b>bold</b>\n and <i>so</i>on", "x bold and soon\n"),
        ("<pre>def f():\n    return 1\n</pre>after", "def f():\n    return 1\n\nafter\n"),
        ("a <!-- not <p> this --> b", "a b\n"),
        ("<!DOCTYPE html><?xml v?>a", "a\n"),
        ("<style>p {}</STYLE >a<SCRIPT>if (a < b) '</p>'</script>b", "ab\n"),
        ("1 < 2 && 3 > 2", "1 < 2 && 3 > 2\n"),
        ('<a title="x > y">link</a>', "link\n"),
        ("<p title=it's>a</p> b's", "a\n\nb's\n"),
        ("&lt;p&gt; &#228;&#xe4;&nbsp;&unknown;", "<p> ää\xa0&unknown;\n"),
        ("&#" + "9" * 5000 + ";", "&#" + "9" * 5000 + ";\n"),
        ("a <svg><path d='M0'/></svg>b <template>c", "a b c\n"),
        ("text <a href='", "text <a href='\n"),
        ("", ""),
        ("<p> \n </p>", ""),
    ],
)
def test_a_page_is_what_a_reader_sees(markup: str, text: str) -> None:
    assert html_text(markup) == text


@pytest.mark.parametrize(
    "fragment",
    ["<", "<a ", "<!--", "<script>", "<a href='", "</", "&#9", "<svg>", "<p>", "<pre>", "&", "<a x=\"<a x='", "<?"],
)
def test_a_page_takes_time_in_proportion_to_its_length(fragment: str) -> None:
    """One that took time in proportion to the square would not end within the patience of a test."""
    html_text(fragment * (400_000 // len(fragment)))


@given(st.text(max_size=200))
def test_any_text_is_a_page(markup: str) -> None:
    html_text(markup)
    assert all(word in html_text(f"<p>{escaped(markup)}</p>") for word in markup.split())


def escaped(text: str) -> str:
    return "".join(chain.from_iterable(f"&#{ord(c)};" if c in "<>&" else c for c in text))


def test_a_page_in_another_encoding_is_read_as_it_declares(tmp_path: Path) -> None:
    page = '<meta charset="{}"><p>größer</p>'
    files = {
        "latin.html": page.format("iso-8859-1").encode("latin-1"),
        "odd.html": page.format("punycode").encode("latin-1"),
        "none.html": "<p>größer</p>".encode("latin-1"),
    }
    taken, metadata = documents(write_tree(tmp_path / "src", files), tmp_path / "out")
    assert taken == {"latin.html": "größer\n"}
    assert metadata["dropped"] == {"not_utf8": 2}
