"""Definitions of each language are those that a reader of the file sees; the expected ones are marked by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from engines.data.code.definition import Definition
from engines.data.code.extract import ParseCounts, definitions_of, language_of
from engines.data.code.questions import facts_of
from engines.data.code.syntax import ParseError, parse

CPP = """\
// Copyright: not documentation
#include <string>

namespace img {

/// Reads images.
/// From files.
///
/// Details.
class EXPORT_API Reader final : public Base<int>, private detail::Cache {
 public:
  Reader();
  explicit Reader(int size) : size_(size) {}
  ~Reader();
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  /** @brief Opens a file. @param path where */
  bool open(const std::string& path);
  int size() const { return size_; }
  template <typename T> T as() const;
  virtual void close() = 0;
  operator bool() const { return true; }
  int (*callback)(int);
  friend void swap(Reader&, Reader&);
#ifdef WITH_NET
  void fetch();
#endif
  struct Entry { int at; };
 private:
  int size_;
};

enum class Kind : int { A, B };
class Forward;
template <class T> class Box { T held; T get() const; };

bool Reader::open(const std::string& path) { return !path.empty(); }
Reader::~Reader() = default;
struct Reader::State { int at; void move(int /*by*/, int to) {} };
static inline int twice(int x) { /* plain */ return 2 * x; }
int declared_only(int);

}  // namespace img

extern "C" {
/*! Entry of the plug-in. */
int plugin_main(void) { return 0; }
}
"""

C = """\
/** A point. */
typedef struct { int x, y; } point;
struct node { struct node *next; };
union word { int i; float f; };
enum colour { RED };
/** Length of a list. */
static size_t length(const struct node *first)
{
    struct local { int n; } counter = {0};
    return counter.n;
}
int *find(int key) { return 0; }
struct node *global;
"""

JAVA = """\
package org.acme.io;

import java.util.List;

/**
 * Reads rows, see {@link Row}.
 *
 * @param <T> the type
 */
@Deprecated
public abstract class Reader<T> extends Base<T> implements Closeable, Iterable<Row> {
    public Reader(int size) {}
    /** Opens a file. */
    @Override
    public final boolean open(String path) throws IOException { return true; }
    protected abstract void close();
    enum Kind { A { void f() {} }, B; int code() { return 1; } }
    record Pair(int a, int b) {}
    interface Sink extends AutoCloseable { void put(Row row); }
}
@interface Marker {}
"""

JAVASCRIPT = """\
'use strict';
/** Reads rows. */
export default class Reader extends Base {
  constructor(size) { super(); }
  /** Opens a file. */
  async open(path, { retry = 1 } = {}) { return path; }
  get size() { return 1; }
  static of() {}
  #hidden() {}
}
/**
 * Adds.
 * @param {number} a
 */
export function add(a, b) { return a + b; }
export const twice = (x) => 2 * x, thrice = (x) => 3 * x;
const Inner = class extends mixin(Base) { run() {} };
module.exports.parse = function (text) { return text; };
Reader.prototype.close = function () {};
function* ids() {}
const value = 3;
"""

TYPESCRIPT = """\
/** A row. */
export interface Row extends Base, Named<string> { id: number; show(depth: number): string; }
export abstract class Store<T> extends Base<T> implements Row, Closeable {
  constructor(private readonly at: string) { super(); }
  abstract load(key: string): Promise<T>;
  /** Saves. */
  public save(value: T): void {}
}
export enum Kind { A = "a" }
namespace util { export function clamp(x: number): number { return x; } }
declare function external(x: number): void;
export const id = <T,>(x: T): T => x;
"""

GO = """\
// Package io reads.
package rows

// Reader reads rows.
type Reader struct {
\tBase
\t*bufio.Writer
\tsize int
}

type (
\t// Sink takes rows.
\tSink interface {
\t\tio.Closer
\t\tPut(row Row) error
\t}
\tID string
)

// Open opens a file.
func (r *Reader) Open(path string) (bool, error) { return true, nil }

//go:noinline
func add(a, b int) int { return a + b }

func Map[T any](in []T) []T { return in }
"""

RUST = """\
//! Rows.

/// Reads rows.
///
/// Slowly.
#[derive(Debug)]
pub struct Reader<T> { size: usize, at: T }

pub trait Source: Send + Sync { fn next(&mut self) -> Option<u8>; fn skip(&mut self) {} }

impl<T> Reader<T> {
    /// Opens a file.
    pub fn open(path: &str) -> Self where T: Default { todo!() }
}
impl<T> Source for Reader<T> { fn next(&mut self) -> Option<u8> { None } }
impl<T: Source> Named for T { fn name(&self) {} }
pub enum Kind { A }
mod inner { pub fn helper() {} }
pub const fn twice(x: u32) -> u32 { 2 * x }
"""


def definitions(text: str, path: str) -> list[Definition]:
    counts, dropped = ParseCounts(), Counter[str]()
    language = language_of(path, text)
    found = definitions_of(path, text, language, dropped, counts)
    assert not dropped
    assert counts.files == {language: 1}
    assert counts.with_errors[language] == 0
    return found


def types(found: list[Definition]) -> dict[str, tuple[str, tuple[str, ...], tuple[str, ...], str]]:
    """Noun, bases, methods and documentation of every type, by name."""
    return {
        one.name: (one.noun, tuple(f"{word} {name}" for word, name in one.bases), one.methods, one.doc)
        for one in found
        if one.is_type
    }


def functions(found: list[Definition]) -> dict[str, tuple[str, str, str]]:
    """Noun, signature and documentation of every function, by name."""
    return {one.name: (one.noun, one.signature, one.doc) for one in found if not one.is_type}


def test_definitions_of_cpp() -> None:
    found = definitions(CPP, "img/reader.h")
    assert types(found) == {
        "img::Reader": (
            "class",
            ("inherits from Base<int>", "inherits from detail::Cache"),
            ("open", "size", "as", "close", "operator bool", "fetch"),
            "Reads images. From files.",
        ),
        "img::Reader::Entry": ("struct", (), (), ""),
        "img::Reader::State": ("struct", (), ("move",), ""),
        "img::Kind": ("enum", (), (), ""),
        "img::Box": ("class", (), ("get",), ""),
    }
    assert functions(found) == {
        "img::Reader::Reader": ("method", "explicit Reader(int size)", ""),
        "img::Reader::size": ("method", "int size() const", ""),
        "img::Reader::operator bool": ("method", "operator bool() const", ""),
        "img::Reader::open": ("function", "bool Reader::open(const std::string& path)", ""),
        "img::Reader::~Reader": ("function", "Reader::~Reader() = default", ""),
        "img::Reader::State::move": ("method", "void move(int, int to)", ""),
        "img::twice": ("function", "static inline int twice(int x)", ""),
        "plugin_main": ("function", "int plugin_main(void)", "Entry of the plug-in."),
    }
    reader = next(one for one in found if one.name == "img::Reader")
    lines = CPP.splitlines()
    assert lines[reader.lines[0] - 1].startswith("class EXPORT_API Reader")
    assert lines[reader.lines[1] - 1] == "};"


def test_definitions_of_c() -> None:
    found = definitions(C, "list.c")
    assert types(found) == {
        "point": ("struct", (), (), "A point."),
        "node": ("struct", (), (), ""),
        "word": ("union", (), (), ""),
        "colour": ("enum", (), (), ""),
    }
    assert functions(found) == {
        "length": ("function", "static size_t length(const struct node *first)", "Length of a list."),
        "find": ("function", "int *find(int key)", ""),
    }


def test_definitions_of_java() -> None:
    found = definitions(JAVA, "src/Reader.java")
    name = "org.acme.io.Reader"
    assert types(found) == {
        name: (
            "class",
            ("inherits from Base<T>", "implements Closeable", "implements Iterable<Row>"),
            ("open", "close"),
            "Reads rows, see Row.",
        ),
        f"{name}.Kind": ("enum", (), ("code",), ""),
        f"{name}.Pair": ("record", (), (), ""),
        f"{name}.Sink": ("interface", ("inherits from AutoCloseable",), ("put",), ""),
        "org.acme.io.Marker": ("annotation", (), (), ""),
    }
    assert functions(found) == {
        f"{name}.open": ("method", "public final boolean open(String path) throws IOException", "Opens a file."),
        f"{name}.close": ("method", "protected abstract void close()", ""),
        f"{name}.Kind.code": ("method", "int code()", ""),
        f"{name}.Sink.put": ("method", "void put(Row row)", ""),
    }


def test_definitions_of_javascript() -> None:
    found = definitions(JAVASCRIPT, "src/reader.mjs")
    assert types(found) == {
        "Reader": ("class", ("inherits from Base",), ("open", "size", "of", "#hidden"), "Reads rows."),
        "Inner": ("class", ("inherits from mixin(Base)",), ("run",), ""),
    }
    assert functions(found) == {
        "Reader.constructor": ("method", "constructor(size)", ""),
        "Reader.open": ("method", "async open(path, { retry = 1 } = {})", "Opens a file."),
        "Reader.size": ("method", "get size()", ""),
        "Reader.of": ("method", "static of()", ""),
        "Reader.#hidden": ("method", "#hidden()", ""),
        "add": ("function", "export function add(a, b)", "Adds."),
        "twice": ("function", "twice = (x)", ""),
        "thrice": ("function", "thrice = (x)", ""),
        "Inner.run": ("method", "run()", ""),
        "parse": ("function", "module.exports.parse = function (text)", ""),
        "Reader.close": ("method", "Reader.prototype.close = function ()", ""),
        "ids": ("function", "function* ids()", ""),
    }
    assert {one.scope for one in found} == {"src/reader.mjs"}


def test_definitions_of_typescript() -> None:
    found = definitions(TYPESCRIPT, "src/store.ts")
    assert types(found) == {
        "Row": ("interface", ("inherits from Base", "inherits from Named<string>"), ("show",), "A row."),
        "Store": (
            "class",
            ("inherits from Base<T>", "implements Row", "implements Closeable"),
            ("load", "save"),
            "",
        ),
        "Kind": ("enum", (), (), ""),
    }
    assert functions(found) == {
        "Row.show": ("method", "show(depth: number): string", ""),
        "Store.constructor": ("method", "constructor(private readonly at: string)", ""),
        "Store.load": ("method", "abstract load(key: string): Promise<T>", ""),
        "Store.save": ("method", "public save(value: T): void", "Saves."),
        "util.clamp": ("function", "export function clamp(x: number): number", ""),
        "id": ("function", "export const id = <T,>(x: T): T", ""),
    }


def test_definitions_of_go() -> None:
    found = definitions(GO, "rows/reader.go")
    assert types(found) == {
        "rows.Reader": ("struct", ("embeds Base", "embeds bufio.Writer"), ("Open",), "Reader reads rows."),
        "rows.Sink": ("interface", ("embeds io.Closer",), ("Put",), "Sink takes rows."),
        "rows.ID": ("type", (), (), ""),
    }
    assert functions(found) == {
        "rows.Reader.Open": ("method", "func (r *Reader) Open(path string) (bool, error)", "Open opens a file."),
        "rows.add": ("function", "func add(a, b int) int", ""),
        "rows.Map": ("function", "func Map[T any](in []T) []T", ""),
    }
    assert [one.all_methods for one in found if one.is_type] == [False, True, False]


def test_definitions_of_rust() -> None:
    found = definitions(RUST, "crates/row-io/src/reader.rs")
    at = "row_io::reader"
    assert types(found) == {
        f"{at}::Reader": ("struct", ("implements Source",), ("open",), "Reads rows."),
        f"{at}::Source": ("trait", ("requires Send", "requires Sync"), ("next", "skip"), ""),
        f"{at}::Kind": ("enum", (), (), ""),
    }
    assert functions(found) == {
        f"{at}::Source::next": ("method", "fn next(&mut self) -> Option<u8>", ""),
        f"{at}::Source::skip": ("method", "fn skip(&mut self)", ""),
        f"{at}::Reader::open": ("method", "pub fn open(path: &str) -> Self where T: Default", "Opens a file."),
        f"<{at}::Reader as Source>::next": ("method", "fn next(&mut self) -> Option<u8>", ""),
        f"{at}::inner::helper": ("function", "pub fn helper()", ""),
        f"{at}::twice": ("function", "pub const fn twice(x: u32) -> u32", ""),
    }


def test_answers_about_a_type_that_other_files_may_extend_name_the_file() -> None:
    many = "".join(f"pub fn m{n}(&self) {{}} " for n in range(13))
    text = f"pub struct A {{}} impl Source for A {{}} impl A {{ {many} }}"
    text += " pub struct B {} impl B { pub fn one(&self) {} }"
    found = facts_of(definitions(text, "src/a.rs"), ("bases", "methods", "overview"), 400, Counter())
    at = "`src/a.rs`"
    names = [f"`m{n}`" for n in range(13)]
    assert [fact.answer for fact in found] == [
        f"{at} implements `Source` for `A`.",
        f"{at} defines 13 methods of `A`: {', '.join(names[:-1])} and {names[-1]}.",
        f"`A` is a struct in {at}. {at} implements `Source` for `A`. {at} defines 13 methods of it.",
        f"{at} defines the method of `B`: `one`.",
        f"`B` is a struct in {at}. {at} defines the method of `B`: `one`.",
    ]
    assert all(at in fact.question for fact in found if fact.kind != "overview")


@pytest.mark.parametrize(
    ("path", "text", "language"),
    [
        ("a.h", "struct a { int b; };\n", "c"),
        ("a.h", "namespace a { class b; }\n", "cpp"),
        ("a.h", "int f(std::string s);\n", "cpp"),
        ("a.hpp", "int a;", "cpp"),
        ("a.PY", "", "python"),
        ("a.tsx", "", "typescript"),
        ("a.txt", "", ""),
        ("Makefile", "", ""),
    ],
)
def test_the_language_follows_from_the_suffix_and_of_a_header_from_its_text(
    path: str, text: str, language: str
) -> None:
    assert language_of(path, text) == language


@pytest.mark.parametrize("path", ["a.cpp", "a.c", "A.java", "a.js", "a.ts", "a.go", "src/a.rs"])
@pytest.mark.parametrize(
    "text",
    ["{" * 5000, "((((" * 5000 + "))", "class A {" * 3000, "a<" * 1500, "\x01\ufffd\u2028;" * 3000, "if (x) " * 5000],
    ids=["braces", "parentheses", "classes", "angles", "odd characters", "conditions"],
)
def test_hostile_text_ends_within_a_bound_of_work(path: str, text: str) -> None:
    dropped: Counter[str] = Counter()
    counts = ParseCounts()
    found = definitions_of(path, text, language_of(path, text), dropped, counts)
    assert counts.files.total() + dropped["not_parsed"] == 1
    assert all(one.name for one in found)


def test_a_statement_of_open_angles_is_refused_before_the_parser_fills_the_memory() -> None:
    """Half a megabyte of it took more than 20 GiB."""
    with pytest.raises(ParseError, match="leaves more than 500 brackets open"):
        parse("java", "A.java", "class A { void f() { " + "a<" * 250_000 + " } }")
    ordinary = "class A { boolean f(int a) { " + "if (a < 3 && 4 < a) { return a < 9; } " * 2000 + " } }"
    assert parse("java", "A.java", ordinary).root.child_count == 1
