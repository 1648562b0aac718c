"""Facts about code bases compared with truths that do not come from Cockpit's parsers: Python's import system, libclang
and Node.

    python -m bench.code_facts [--cpp TREE --include FOLDER… --libclang FOLDER] [--javascript PACKAGE]

Each truth is of the definitions that a file contains. A definition counts as wrong when its name is missing on either
side, or when its bases, methods or parameters differ.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.data.code.c_family import c_definitions
from engines.data.code.definition import Definition
from engines.data.code.extract import language_of
from engines.data.code.javascript import script_definitions
from engines.data.code.python_source import module_name, python_definitions

PACKAGES = (
    "json",
    "email",
    "asyncio",
    "unittest",
    "xml",
    "http",
    "logging",
    "importlib",
    "concurrent",
    "multiprocessing",
)
LEFT_OUT = {"antigravity", "this", "turtle", "__main__"}
"""Modules that act when they are imported."""


def python() -> Counter[str]:
    """Classes and functions of the standard library: what its modules contain once they are imported."""
    found: Counter[str] = Counter()
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [
        *sorted(library.glob("*.py")),
        *(file for name in PACKAGES for file in sorted((library / name).rglob("*.py"))),
    ]
    for file in files:
        path = file.relative_to(library).as_posix()
        module = module_name(path)
        if not LEFT_OUT.isdisjoint(module.split(".")):
            continue
        try:
            real = importlib.import_module(module)
        except Exception:  # noqa: BLE001 - modules of other systems cannot be imported here
            continue
        by_name = {one.name: one for one in python_definitions(path, file.read_text("utf-8"))}
        for name, value in vars(real).items():
            own = getattr(value, "__module__", "") == module and getattr(value, "__qualname__", "") == name
            written = own and name in _names_of(file)
            one = by_name.get(f"{module}.{name}")
            if inspect.isclass(value) and written:
                found["types"] += 1
                found["types found"] += one is not None
                found["methods right"] += one is not None and _methods(value) <= set(one.methods)
            elif inspect.isfunction(value) and written and not hasattr(value, "__wrapped__"):
                found["functions"] += 1
                found["functions found"] += one is not None
                found["signatures right"] += one is not None and _parameters(one) == list(
                    inspect.signature(value).parameters
                )
    return found


def _names_of(file: Path) -> set[str]:
    """Names after `class` and `def`, by their spelling."""
    return set(re.findall(r"^\s*(?:class|(?:async )?def) (\w+)", file.read_text("utf-8"), re.MULTILINE))


def _methods(owner: type) -> set[str]:
    """Names of the functions that a `def` in the body of a class made."""
    names = set()
    for name, value in vars(owner).items():
        function: Any = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        made = inspect.isfunction(function) and not function.__code__.co_filename.startswith("<")
        if made and function.__qualname__ == f"{owner.__qualname__}.{name}":
            names.add(name)
    return names


def _parameters(one: Definition) -> list[str]:
    function = ast.parse(one.signature + ": pass").body[0]
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args)]
    names += [given.vararg.arg] if given.vararg else []
    names += [one.arg for one in given.kwonlyargs]
    return names + ([given.kwarg.arg] if given.kwarg else [])


def javascript(package: Path) -> Counter[str]:
    """Classes of a package's CommonJS modules: what Node has once it has loaded them."""
    found: Counter[str] = Counter()
    shown = subprocess.run(["node", "-e", _NODE, str(package)], check=True, capture_output=True, text=True).stdout
    for key, (methods, base) in json.loads(shown).items():
        path, _, name = key.rpartition(":")
        definitions, _ = script_definitions(path, (package / path).read_text("utf-8"), "javascript")
        one = next((one for one in definitions if one.is_type and one.name == name), None)
        found["types"] += 1
        found["types found"] += one is not None
        found["methods right"] += one is not None and set(methods) == {name for name in one.methods if name[0] != "#"}
        found["bases right"] += one is not None and bool(one.bases) == bool(base)
    return found


_NODE = r"""
const fs = require('fs'), path = require('path'), root = process.argv[1], out = {}
const named = (f) => (f.toString().match(/^class (\w+)/) || [])[1]
const own = (o) => Object.getOwnPropertyNames(o).filter((k) => {
  const d = Object.getOwnPropertyDescriptor(o, k); return typeof d.value === 'function' || d.get || d.set })
function walk (folder) {
  for (const e of fs.readdirSync(folder, { withFileTypes: true })) {
    const p = path.join(folder, e.name)
    if (e.isDirectory()) { if (e.name !== 'node_modules') walk(p); continue }
    if (!p.endsWith('.js')) continue
    let m; try { m = require(p) } catch { continue }
    for (const c of [m, ...Object.values(m && typeof m === 'object' ? m : {})]) {
      if (typeof c !== 'function' || !named(c) || !fs.readFileSync(p, 'utf8').includes('class ' + named(c))) continue
      const statics = own(c).filter((k) => !['prototype', 'length', 'name'].includes(k))
      const methods = [...new Set([...own(c.prototype).filter((k) => k !== 'constructor'), ...statics])]
      const base = Object.getPrototypeOf(c)
      out[path.relative(root, p) + ':' + named(c)] = [methods, base === Function.prototype ? '' : 'a class']
    }
  }
}
walk(path.join(root, 'lib')); console.log(JSON.stringify(out)); process.exit(0)
"""


def cpp(tree: Path, include: list[Path], libclang: Path) -> Counter[str]:
    """Types and functions with a body in the C and C++ files of a tree: what clang finds in them."""
    sys.path.insert(0, str(libclang))
    clang = importlib.import_module("clang.cindex")
    found: Counter[str] = Counter()
    index = clang.Index.create()
    words = ["-w", *(f"-I{folder}" for folder in include)]
    for file in sorted(path for path in tree.rglob("*") if path.suffix in (".c", ".cpp", ".cc", ".h", ".hpp")):
        text = file.read_text("utf-8", "replace")
        language = language_of(file.name, text)
        standard = ["-x", "c", "-std=c11"] if language == "c" else ["-x", "c++", "-std=c++17"]
        unit = index.parse(str(file), args=[*words, *standard])
        if sum(one.severity >= clang.Diagnostic.Error for one in unit.diagnostics):
            found["files that clang cannot read"] += 1
            continue
        types, functions = _truth(clang, unit.cursor, str(file))
        definitions, _ = c_definitions(file.name, text, language)
        ours = {_plain(one.name): one for one in definitions if one.is_type}
        named = {_plain(one.name) for one in definitions if not one.is_type and "= default" not in one.signature}
        both = types.keys() & ours.keys()
        found["files"] += 1
        found["types"] += len(types)
        found["types found"] += len(both)
        found["types that are not there"] += len(ours.keys() - types.keys())
        found["functions"] += len(functions)
        found["functions found"] += len(functions & named)
        found["functions that are not there"] += len(named - functions)
        found["bases right"] += sum(_bases(ours[name]) == types[name][0] for name in both)
        found["methods right"] += sum({_plain(one) for one in ours[name].methods} == types[name][1] for name in both)
    return found


Types = dict[str, tuple[list[str], set[str]]]


def _truth(clang: Any, root: Any, file: str) -> tuple[Types, set[str]]:
    """The types of a file with their bases and methods, and its functions, by qualified name."""
    kinds = clang.CursorKind
    types: Types = {}
    functions: set[str] = set()
    for node in _inside(clang, root, file):
        if node.kind in (kinds.CLASS_DECL, kinds.STRUCT_DECL, kinds.UNION_DECL, kinds.ENUM_DECL, kinds.CLASS_TEMPLATE):
            if node.is_definition() and node.spelling and not node.is_anonymous() and "(" not in node.spelling:
                bases = [
                    _last(one.type.spelling) for one in node.get_children() if one.kind == kinds.CXX_BASE_SPECIFIER
                ]
                types[_qualified(clang, node)] = (bases, set(_declared(clang, node)))
        elif node.is_definition() and not node.is_default_method():
            functions.add(_qualified(clang, node))
    return types, functions


def _inside(clang: Any, node: Any, file: str) -> Iterator[Any]:
    """The types and functions of a file, outside of functions."""
    kinds = clang.CursorKind
    wraps = (kinds.NAMESPACE, kinds.LINKAGE_SPEC, kinds.UNEXPOSED_DECL)
    types = (kinds.CLASS_DECL, kinds.STRUCT_DECL, kinds.UNION_DECL, kinds.ENUM_DECL, kinds.CLASS_TEMPLATE)
    functions = (kinds.FUNCTION_DECL, kinds.CXX_METHOD, kinds.CONSTRUCTOR, kinds.DESTRUCTOR, kinds.FUNCTION_TEMPLATE)
    for child in node.get_children():
        if child.kind in wraps:
            yield from _inside(clang, child, file)
        elif child.location.file is None or child.location.file.name != file:
            continue
        elif child.kind in types:
            yield child
            yield from _inside(clang, child, file)
        elif child.kind in functions:
            yield child


def _declared(clang: Any, node: Any) -> Iterator[str]:
    kinds = clang.CursorKind
    for one in node.get_children():
        constructor = one.spelling.partition("<")[0] == node.spelling.partition("<")[0]
        if one.kind in (kinds.CXX_METHOD, kinds.FUNCTION_TEMPLATE) and not constructor and not one.is_deleted_method():
            yield _plain(one.spelling)


def _qualified(clang: Any, node: Any) -> str:
    parts: list[str] = []
    while node is not None and node.kind != clang.CursorKind.TRANSLATION_UNIT:
        if node.kind != clang.CursorKind.LINKAGE_SPEC and node.spelling and not node.is_anonymous():
            parts.append(node.spelling)
        node = node.semantic_parent
    return _plain("::".join(reversed(parts)))


def _plain(name: str) -> str:
    """A name without template arguments and spaces; an operator keeps its signs."""
    before, word, signs = name.partition("operator")
    for _ in range(3):
        before = re.sub(r"<[^<>]*>", "", before)
    return (before + word + signs).replace(" ", "")


def _last(name: str) -> str:
    return _plain(name).rpartition("::")[2]


def _bases(one: Definition) -> list[str]:
    return [_last(name) for _, name in one.bases]


def main(words: list[str]) -> int:
    """Compare what can be compared here, and print one table."""
    parser = argparse.ArgumentParser(prog="bench.code_facts")
    parser.add_argument("--cpp", type=Path)
    parser.add_argument("--include", type=Path, nargs="*", default=[])
    parser.add_argument("--libclang", type=Path)
    parser.add_argument("--javascript", type=Path)
    given = parser.parse_args(words)
    warnings.simplefilter("ignore")
    tables = {"Python's standard library": python()}
    if given.cpp and given.libclang:
        tables[f"C++: {given.cpp.name}"] = cpp(given.cpp, given.include, given.libclang)
    if given.javascript:
        tables[f"JavaScript: {given.javascript.name}"] = javascript(given.javascript)
    print("| tree | of | number |\n|---|---|---|")
    for name, counts in tables.items():
        for what, number in counts.items():
            print(f"| {name} | {what} | {number} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
