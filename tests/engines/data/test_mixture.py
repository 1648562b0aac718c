"""Several sources give a text in exactly their shares, and what they cannot give is said."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from engines.data.documents import read_documents
from engines.data.sources.report import what_to_know
from engines.data.split import SPLITS
from engines.data.stage import run
from engines.events.writers import Warned
from engines.inputs.files_read import files_read, sources_of
from engines.inputs.mixture import SourceShare, shares_of, targets_of
from recipes.problems import OperatorError
from recipes.quantities import size
from recipes.stages.registry import STAGE_TYPES
from tests.engines.small_corpora import write_tree
from tests.stage_context import TriedContext, make_context


def source(folder: Path, name: str, documents: int, size: int = 400) -> str:
    """A folder of texts of `size` bytes, no two of which are equal."""
    files = {f"{n:04}.txt": (f"{name} {n} " * size)[: size - 1] + "\n" for n in range(documents)}
    return str(write_tree(folder / name, files))


def prepared(tmp_path: Path, tables: list[dict[str, Any]], **fields: Any) -> tuple[TriedContext, dict[str, Any]]:
    stage = {"name": "text", "kind": "prepare", "output": "text", "source": tables, **fields}
    ctx = make_context(tmp_path / f"run{len(list(tmp_path.glob('run*')))}", stage)
    run(ctx)
    return ctx, json.loads((ctx.out / "metadata.json").read_text())


def names_in(out: Path, split: str) -> list[str]:
    return [document.path for document, _ in read_documents(out, split)]


def four(tmp_path: Path, *sizes: int) -> list[dict[str, Any]]:
    """Four sources with the weights 40, 30, 20 and 10, and these numbers of documents."""
    names = ("code", "hardware", "admin", "howto")
    return [
        {"path": source(tmp_path, name, count), "name": name, "weight": weight}
        for name, weight, count in zip(names, (40, 30, 20, 10), sizes, strict=True)
    ]


def test_four_sources_have_the_shares_40_30_20_10_in_every_split(tmp_path: Path) -> None:
    ctx, metadata = prepared(tmp_path, four(tmp_path, 400, 400, 400, 400), val_fraction=0.1, test_fraction=0.1)
    for split in SPLITS:
        sizes = [one["splits"][split]["bytes"] for one in metadata["sources"]]
        assert [size / sum(sizes) for size in sizes] == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.02)
        assert sum(sizes) == metadata["splits"][split]["bytes"]
        assert len(names_in(ctx.out, split)) == metadata["splits"][split]["documents"]
    first = metadata["sources"][0]
    assert (first["limits_the_mixture"], first["epochs"]) == (True, 1.0)
    assert [one["share"] for one in metadata["sources"]] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert all(len(set(names_in(ctx.out, split))) == len(names_in(ctx.out, split)) for split in SPLITS)


def test_a_small_source_is_repeated_only_as_often_as_epochs_allows_and_never_where_it_is_held_out(
    tmp_path: Path,
) -> None:
    tables = four(tmp_path, 400, 50, 400, 400)
    once, few = prepared(tmp_path, tables, val_fraction=0.1, test_fraction=0)
    tables[1]["epochs"] = 3
    thrice, more = prepared(tmp_path, tables, val_fraction=0.1, test_fraction=0)
    assert [few["sources"][1][key] for key in ("limits_the_mixture", "epochs")] == [True, 1.0]
    assert [more["sources"][1][key] for key in ("limits_the_mixture", "epochs")] == [True, 3.0]
    assert more["splits"]["train"]["bytes"] == pytest.approx(3 * few["splits"]["train"]["bytes"], rel=0.03)
    repeated = [name for name in names_in(thrice.out, "train") if "@" in name]
    assert {name.partition("/")[0] for name in repeated} == {"hardware"}
    assert {name.partition("@")[2] for name in repeated} == {"2", "3"}
    assert not [name for name in names_in(thrice.out, "val") + names_in(once.out, "train") if "@" in name]
    warnings = [event.message for event in once.events() if isinstance(event, Warned)]
    assert any("source hardware is too small for its weight: 30% of the text" in text for text in warnings)


def test_without_weights_all_text_is_taken_and_a_temperature_flattens_the_shares(tmp_path: Path) -> None:
    tables = [{"path": source(tmp_path, name, count)} for name, count in (("large", 300), ("small", 75))]
    _, plain = prepared(tmp_path, tables, val_fraction=0, test_fraction=0)
    _, flat = prepared(tmp_path, tables, val_fraction=0, test_fraction=0, mixture_temperature=2.0)
    assert plain["splits"]["train"]["documents"] == 375
    assert [one["share"] for one in plain["sources"]] == pytest.approx([0.8, 0.2])
    assert [one["share"] for one in flat["sources"]] == pytest.approx([2 / 3, 1 / 3])
    assert [one["mixed_share"] for one in flat["sources"]] == pytest.approx([2 / 3, 1 / 3], abs=0.01)


def test_shares_and_targets_are_as_large_as_the_smallest_source_allows() -> None:
    wanted = [SourceShare("a", 3.0, 1.0), SourceShare("b", 1.0, 2.0), SourceShare("empty", 5.0, 1.0)]
    shares = shares_of(wanted, [900, 100, 0], 1.0)
    assert shares == [0.75, 0.25, 0.0]
    assert targets_of(shares, [900, 100, 0], [1, 2, 1], float("inf")) == [600.0, 200.0, 0.0]
    assert targets_of(shares, [900, 100, 0], [1, 2, 1], 400) == [300.0, 100.0, 0.0]
    assert targets_of(shares, [900, 0, 0], [1, 2, 1], float("inf")) == [900.0, 0.0, 0.0]


def test_max_bytes_limits_the_mixture_and_not_its_shares(tmp_path: Path) -> None:
    tables = four(tmp_path, 400, 400, 400, 400)
    _, metadata = prepared(tmp_path, tables, val_fraction=0.1, test_fraction=0, max_bytes=100_000)
    assert sum(split["bytes"] for split in metadata["splits"].values()) == pytest.approx(100_000, rel=0.02)
    assert [one["mixed_share"] for one in metadata["sources"]] == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.02)


def test_a_text_in_two_sources_belongs_to_the_first_and_near_copies_stay_in_one_split_or_are_dropped(
    tmp_path: Path,
) -> None:
    words = [f"word{number}" for number in range(200)]
    near = {f"{n}.txt": " ".join([*words[:100], f"unique{n}", *words[100:]]) for n in range(40)}
    write_tree(tmp_path / "a", {"same.txt": "the same text\n", **near})
    write_tree(tmp_path / "b", {"same.txt": "the same text\n", "other.txt": "another text\n"})
    write_tree(tmp_path / "b", {f"b{n}.txt": " ".join([*words, f"end{n}"]) for n in range(40)})
    tables = [{"path": str(tmp_path / name)} for name in "ab"]
    _, plain = prepared(tmp_path, tables)
    assert [one["duplicates_of_earlier_sources"] for one in plain["sources"]] == [0, 1]
    kept, found = prepared(tmp_path, tables, near_duplicates="keep")
    splits = {split: {n for n in names_in(kept.out, split) if "same" not in n and "other" not in n} for split in SPLITS}
    assert len([split for split, names in splits.items() if names]) == 1
    assert found["near_duplicates"]["found"] == 79
    dropped, rest = prepared(tmp_path, tables, near_duplicates="drop", val_fraction=0, test_fraction=0)
    assert rest["splits"]["train"]["documents"] == 3
    assert rest["dropped"]["near_duplicate"] == 79
    assert min(names_in(dropped.out, "train")).startswith("a/")


@pytest.mark.parametrize(("split_by", "groups"), [("file", 12), ("folder", 3)])
def test_documents_of_one_group_are_in_one_split(tmp_path: Path, split_by: str, groups: int) -> None:
    rows = {
        f"{folder}/{n}.jsonl": "".join(json.dumps({"text": f"{folder} {n} {row}"}) + "\n" for row in range(20))
        for folder in "xyz"
        for n in range(4)
    }
    ctx = make_context(
        tmp_path,
        {
            "name": "text", "kind": "prepare", "output": "text", "split_by": split_by,
            "source": str(write_tree(tmp_path / "rows", rows)), "val_fraction": 0.3, "test_fraction": 0.3,
        },
    )  # fmt: skip
    run(ctx)
    of_group: dict[str, set[str]] = {}
    for split in SPLITS:
        for name in names_in(ctx.out, split):
            group = name.partition(":")[0] if split_by == "file" else name.partition("/")[0]
            of_group.setdefault(group, set()).add(split)
    assert len(of_group) == groups
    assert all(len(splits) == 1 for splits in of_group.values())
    assert len(set.union(*of_group.values())) == 3


def test_an_optional_source_that_is_missing_is_left_out_and_named(tmp_path: Path) -> None:
    tables = [*four(tmp_path, 50, 50, 50, 50), {"path": str(tmp_path / "nowhere"), "weight": 900, "optional": True}]
    ctx, metadata = prepared(tmp_path, tables)
    assert metadata["missing_sources"] == [{"name": "nowhere", "path": str(tmp_path / "nowhere")}]
    assert [one["share"] for one in metadata["sources"]] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert any("source nowhere was left out" in e.message for e in ctx.events() if isinstance(e, Warned))
    with pytest.raises(OperatorError, match="none of the sources exists"):
        prepared(tmp_path, tables[4:])


def test_every_source_is_an_input_with_its_own_files(tmp_path: Path) -> None:
    tables = [{"path": source(tmp_path, "one", 2)}, {"path": source(tmp_path, "two", 2), "include": ["0001.*"]}]
    tables.append({"path": str(tmp_path / "nowhere"), "optional": True})
    fields = {"name": "t", "kind": "prepare", "output": "text", "source": tables}
    stage = STAGE_TYPES["prepare-text"].model_validate(fields)
    places = sources_of(stage)
    assert places == {"source[0]": tmp_path / "one", "source[1]": tmp_path / "two"}
    assert [name for name, _ in files_read(stage, "source[1]", places["source[1]"])] == ["0001.txt"]


PAGE = r""".\" a comment
.TH DEMO 1 2024 "tools" "Manual"
.SH NAME
demo \- show \fBbold\fP and \(lqquoted\(rq text
.SH OPTIONS
.TP
.BR \-a ", " \-\-all
Take all
of it.
.IP "\fB-n\fR \fInumber\fR" 4
That many.
.nf
  keep   this
    shape
.fi
.de XX
never shown
..
.if t never shown either
.ie n shown
.el hidden
.TS
tab(;);
l l.
left;right
.TE
"""


def test_manual_pages_and_pages_of_html_become_text_and_cleaning_is_counted(tmp_path: Path) -> None:
    folder = write_tree(
        tmp_path / "doc",
        {
            "man1/demo.1.gz": gzip.compress(PAGE.encode()),
            "man1/link.1": ".so man1/demo.1\n",
            "lib/libdemo.so.1": b"\0\1\2",
            "page.html": "<p>one<p>two",
            "messy.txt": "a \x07 bell  \r\ncafe\u0301\r\n\r\n\r\n\r\n\r\nend\n",
        },
    )
    _, metadata = prepared(
        tmp_path,
        [{"path": str(folder)}],
        clean=["nfc", "control-characters", "line-ends", "trailing-spaces", "blank-lines"],
        val_fraction=0,
        test_fraction=0,
    )
    out = tmp_path / "run0/run/stages/text/1/out.tmp"
    texts = {document.path: document.text for document, _ in read_documents(out, "train")}
    assert texts == {
        "doc/man1/demo.1.gz": (
            "DEMO(1)\n\nNAME\ndemo - show bold and \u201cquoted\u201d text\n\nOPTIONS\n\n-a, --all\nTake all of it.\n\n"
            "-n number\nThat many.\n  keep   this\n    shape\nshown\n\nleft\tright\n"
        ),
        "doc/page.html": "one\n\ntwo\n",
        "doc/messy.txt": "a  bell\ncafé\n\n\nend\n",
    }
    changed = metadata["cleaned"]
    assert all(changed[name] == 1 for name in ("nfc", "control-characters", "line-ends", "trailing-spaces"))
    assert metadata["dropped"] == {"empty": 1}
    assert metadata["other_kinds"] == {".1": 1}


def test_each_source_is_said_to_be_divided_into_pieces_of_its_own_length(tmp_path: Path) -> None:
    books = {"book.txt": "".join(f"line {n} of a book\n" for n in range(4000)), "short.txt": "short\n"}
    tables = [
        {"path": str(write_tree(tmp_path / "books", books)), "name": "books"},
        {"path": source(tmp_path, "notes", 200), "name": "notes"},
    ]
    _, metadata = prepared(tmp_path, tables, val_fraction=0.1, test_fraction=0.1)
    limit = metadata["sources"][0]["max_document_bytes"]
    assert limit < metadata["max_document_bytes"] == metadata["sources"][1]["max_document_bytes"]
    [said] = [sentence for sentence in what_to_know(metadata) if "divided" in sentence]
    assert said.startswith(f"source books: 1 long document(s) were divided into pieces of at most {size(limit)}")
