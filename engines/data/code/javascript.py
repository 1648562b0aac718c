"""Definitions of JavaScript and TypeScript files: classes, interfaces, enumerations, functions and methods.

A file is a module of its own, so a name is complete only with its file.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from engines.data.code.definition import IMPLEMENTS, INHERITS, Definition
from engines.data.code.syntax import Node, Source, comments_above, described, lines_of, parse

_TYPES = {
    "class_declaration": "class",
    "abstract_class_declaration": "class",
    "class": "class",
    "interface_declaration": "interface",
    "enum_declaration": "enum",
}
_FUNCTIONS = ("function_declaration", "generator_function_declaration")
_VALUES = ("arrow_function", "function_expression", "function", "generator_function")
_METHODS = ("method_definition", "abstract_method_signature", "method_signature")
_WRAPPERS = ("export_statement", "ambient_declaration", "lexical_declaration", "variable_declaration",
             "expression_statement")  # fmt: skip
_OPEN = (*_WRAPPERS, "statement_block", "ERROR")
_MODULES = ("internal_module", "module")
_ASSIGNED = re.compile(
    r"^(?:module\.exports\.|exports\.|this\.|window\.)?([A-Za-z_$][\w$]*(?:\.[A-Za-z_$][\w$]*){0,4})$"
)
_PLAIN = re.compile(r"^#?[A-Za-z_$][\w$]*$")


@dataclass(frozen=True)
class _Open:
    """A node to look into, the name around it, whether that is a type, and the outermost node that wraps it."""

    node: Node
    prefix: str
    in_type: bool
    outer: Node


def script_definitions(path: str, text: str, grammar: str) -> tuple[list[Definition], bool]:
    """The definitions of a file in file order, and whether the parser found errors in it.

    Args:
        path: the file.
        text: its text.
        grammar: javascript, typescript or tsx.

    Raises:
        ParseError: the text cannot be parsed within the bound of work.
    """
    source = parse(grammar, path, text)
    return list(_walk(source)), source.root.has_error


def _walk(source: Source) -> Iterator[Definition]:
    waiting = [_Open(source.root, "", in_type=False, outer=source.root)]
    while waiting:
        at = waiting.pop()
        inner: list[_Open] = []
        for child in at.node.children:
            outer = at.outer if at.node.type in _WRAPPERS else child
            if child.type in _TYPES and child.is_named:
                inner += yield from _type(source, child, at.prefix, outer)
            elif child.type in _FUNCTIONS or (child.type in _METHODS and at.in_type):
                yield from _function(source, child, at, outer)
            elif child.type in ("variable_declarator", "assignment_expression"):
                inner += yield from _assigned(source, child, at.prefix, outer)
            elif child.type in _MODULES and child.is_named:
                inner += _module(source, child, at.prefix)
            elif child.type in _OPEN and (child.type != "statement_block" or at.node.type in _MODULES):
                inner.append(_Open(child, at.prefix, at.in_type, outer))
        waiting.extend(reversed(inner))


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _module(source: Source, node: Node, prefix: str) -> list[_Open]:
    """The body of a TypeScript namespace; a module that is named by a string has no name of its own."""
    body = node.child_by_field_name("body")
    name = source.name(node.child_by_field_name("name"))
    inside = prefix if name[:1] in "'\"" else _joined(prefix, name)
    return [] if body is None else [_Open(body, inside, in_type=False, outer=body)]


def _type(
    source: Source, node: Node, prefix: str, outer: Node, named: str = ""
) -> Generator[Definition, None, list[_Open]]:
    name = named or source.name(node.child_by_field_name("name"))
    if not name:
        return []
    definition = Definition(
        noun=_TYPES[node.type],
        name=_joined(prefix, name),
        path=source.path,
        lines=lines_of(outer),
        is_type=True,
        scope=source.path,
        bases=tuple(_bases(source, node)),
        methods=tuple(dict.fromkeys(_method_names(source, node))),
        doc=_doc(source, outer),
    )
    yield definition
    body = node.child_by_field_name("body")
    return [] if body is None else [_Open(body, definition.name, in_type=True, outer=body)]


def _bases(source: Source, node: Node) -> Iterator[tuple[str, str]]:
    for child in node.children:
        if child.type == "class_heritage":
            clauses = [one for one in child.named_children if one.type in ("extends_clause", "implements_clause")]
            if not clauses:
                found = [one for one in child.named_children if "comment" not in one.type]
                yield from ((INHERITS, source.name(one)) for one in found)
            for clause in clauses:
                yield from _clause(source, clause)
        elif child.type in ("extends_type_clause", "extends_clause"):
            yield from _clause(source, child)


def _clause(source: Source, clause: Node) -> Iterator[tuple[str, str]]:
    relation = IMPLEMENTS if clause.type == "implements_clause" else INHERITS
    children = [one for one in clause.named_children if "comment" not in one.type]
    for at, child in enumerate(children):
        if child.type == "type_arguments":
            continue
        generic = children[at + 1] if at + 1 < len(children) and children[at + 1].type == "type_arguments" else None
        yield relation, source.name(child) + source.name(generic)


def _method_names(source: Source, node: Node) -> Iterator[str]:
    body = node.child_by_field_name("body")
    for child in [] if body is None else body.named_children:
        if child.type in _METHODS:
            name = source.name(child.child_by_field_name("name"))
            if name != "constructor" and _PLAIN.match(name):
                yield name


def _function(source: Source, node: Node, at: _Open, outer: Node) -> Iterator[Definition]:
    name = source.name(node.child_by_field_name("name"))
    if not _PLAIN.match(name):
        return
    body = node.child_by_field_name("body")
    yield Definition(
        noun="method" if at.in_type else "function",
        name=_joined(at.prefix, name),
        path=source.path,
        lines=lines_of(outer),
        is_type=False,
        scope=source.path,
        signature=source.head(outer, node.end_byte if body is None else body.start_byte, ("decorator",)).rstrip("; "),
        doc=_doc(source, outer),
    )


def _assigned(source: Source, node: Node, prefix: str, outer: Node) -> Generator[Definition, None, list[_Open]]:
    """A function or class that a variable or a property is set to, such as `const f = () => …` and
    `exports.f = function () {…}`."""
    target, value = ("name", "value") if node.type == "variable_declarator" else ("left", "right")
    held = node.child_by_field_name(value)
    found = _ASSIGNED.match(source.name(node.child_by_field_name(target)))
    if held is None or found is None:
        return []
    name = found[1].replace(".prototype.", ".")
    if held.type == "class":
        return (yield from _type(source, held, prefix, outer, name))
    body = held.child_by_field_name("body")
    if held.type not in _VALUES or body is None:
        return []
    beside = [one for one in node.parent.named_children if one.type == node.type]
    signature = source.head(outer if len(beside) == 1 else node, body.start_byte)
    yield Definition(
        noun="method" if ".prototype." in found[1] else "function",
        name=_joined(prefix, name),
        path=source.path,
        lines=lines_of(outer),
        is_type=False,
        scope=source.path,
        signature=signature.removesuffix("=>").rstrip(),
        doc=_doc(source, outer),
    )
    return []


def _doc(source: Source, outer: Node) -> str:
    return described(source, comments_above(outer, ("decorator",)), ("/**",))
