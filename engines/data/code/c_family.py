"""Definitions of C and C++ files: classes, structs, unions, enumerations and functions that have a body."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from engines.data.code.definition import INHERITS, Definition
from engines.data.code.syntax import Node, Source, comments_above, described, lines_of, parse

_DOC_MARKS = ("/**", "/*!", "///", "//!")
_TYPES = {
    "class_specifier": "class",
    "struct_specifier": "struct",
    "union_specifier": "union",
    "enum_specifier": "enum",
}
_OPEN = frozenset({
    "translation_unit", "declaration_list", "linkage_specification", "preproc_if", "preproc_ifdef", "preproc_else",
    "preproc_elif", "preproc_elifdef", "template_declaration", "field_declaration_list", "ERROR",
    "declaration", "type_definition", "field_declaration",
})  # fmt: skip
"""Nodes that definitions may stand in, besides namespaces and types."""
_WRAPPERS = ("template_declaration", "type_definition", "declaration", "field_declaration", "linkage_specification")
"""Nodes that begin where the definition in them begins, with the comments above it."""
_DECLARATORS = ("pointer_declarator", "reference_declarator", "parenthesized_declarator", "attributed_declarator")
_CPP_WORDS = re.compile(
    r"^[ \t]*(?:class[ \t]|namespace\b|template[ \t]*<|public:|private:|protected:|using[ \t]|virtual[ \t])"
    r"|\w::\w|\bconstexpr\b|\bnullptr\b|\bstd::",
    re.MULTILINE,
)
_CLASS_MACRO = re.compile(
    r"\b(?:class|struct)[ \t]{1,8}([A-Z][A-Z0-9_]{2,60}(?:\([^()\n]{0,80}\))?)"
    r"(?=[ \t]{1,8}(?!final\b)[A-Za-z_][^;{}=()\n]{0,300}\s{0,40}\{)"
)
"""A macro between `class` and the name, such as one that exports symbols; the grammar reads it as the name."""


def dialect_of_header(text: str) -> str:
    """Whether a `.h` file is C++ or C, from its words."""
    return "cpp" if _CPP_WORDS.search(text) else "c"


def blanked(text: str) -> str:
    """The text with macros in the heads of classes replaced by spaces, so that every position stays."""
    return _CLASS_MACRO.sub(_spaces, text)


def _spaces(found: re.Match[str]) -> str:
    whole, macro = found[0], found[1]
    at = found.start(1) - found.start(0)
    return whole[:at] + " " * len(macro.encode()) + whole[at + len(macro) :]


def c_definitions(path: str, text: str, language: str) -> tuple[list[Definition], bool]:
    """The definitions of a file in file order, and whether the parser found errors in it.

    Raises:
        ParseError: the text cannot be parsed within the bound of work.
    """
    parsed = blanked(text) if language == "cpp" else text
    source = parse(language, path, parsed, text)
    return list(_walk(source)), source.root.has_error


@dataclass(frozen=True)
class _Open:
    """A node to look into, the names of the namespaces and types around it, and the node that wraps it."""

    node: Node
    names: tuple[str, ...]
    in_type: bool
    outer: Node


def _walk(source: Source) -> Iterator[Definition]:
    waiting = [_Open(source.root, (), in_type=False, outer=source.root)]
    while waiting:
        at = waiting.pop()
        inner: list[_Open] = []
        for child in at.node.children:
            outer = at.outer if at.node.type in _WRAPPERS else child
            if child.type == "namespace_definition":
                inner += _namespace(source, child, at)
            elif child.type in _TYPES:
                definition, body = _type(source, child, at, outer)
                if definition is not None:
                    yield definition
                    inner.append(_Open(body, (definition.name,), in_type=True, outer=body))
            elif child.type == "function_definition":
                if _has_type(child):
                    inner.append(_Open(child, at.names, at.in_type, outer))
                if definition := _function(source, child, at, outer):
                    yield definition
            elif child.type in _OPEN:
                inner.append(_Open(child, at.names, at.in_type, outer))
        waiting.extend(reversed(inner))


def _has_type(function: Node) -> bool:
    """Whether the head of a function contains a type with a body: `struct A {…} f() {…}`, or what looks like one."""
    return any(child.type in _TYPES and child.child_by_field_name("body") for child in function.children)


def _namespace(source: Source, node: Node, at: _Open) -> list[_Open]:
    body = node.child_by_field_name("body")
    name = source.name(node.child_by_field_name("name"))
    if body is None:
        return []
    return [_Open(body, (*at.names, *([name] if name else [])), in_type=False, outer=body)]


def _type(source: Source, node: Node, at: _Open, outer: Node) -> tuple[Definition | None, Node]:
    body = node.child_by_field_name("body")
    if body is None:
        return None, node
    name = source.name(node.child_by_field_name("name")) or _name_of_typedef(source, node)
    if not name:
        return None, body
    methods = (
        _methods(source, body, name.rpartition("::")[2].partition("<")[0]) if node.type != "enum_specifier" else ()
    )
    return Definition(
        noun=_TYPES[node.type],
        name="::".join((*at.names, name)),
        path=source.path,
        lines=lines_of(outer),
        is_type=True,
        bases=_bases(source, node),
        methods=tuple(methods),
        doc=_doc(source, outer),
    ), body


def _name_of_typedef(source: Source, node: Node) -> str:
    """`Name` of `typedef struct {…} Name;`."""
    above = node.parent
    if above is None or above.type != "type_definition":
        return ""
    names = [child for child in above.children_by_field_name("declarator") if child.type == "type_identifier"]
    return source.name(names[0]) if names else ""


def _bases(source: Source, node: Node) -> tuple[tuple[str, str], ...]:
    clause = next((child for child in node.children if child.type == "base_class_clause"), None)
    kinds = ("type_identifier", "qualified_identifier", "template_type", "dependent_type", "decltype")
    found = [] if clause is None else [child for child in clause.children if child.type in kinds]
    return tuple((INHERITS, source.name(child)) for child in found)


def _methods(source: Source, body: Node, type_name: str) -> list[str]:
    """Names of the methods that a type declares, without constructors, destructors, deleted ones and friends."""
    names: dict[str, None] = {}
    waiting = list(reversed(body.children))
    while waiting:
        node = waiting.pop()
        if node.type in ("field_declaration", "function_definition", "declaration"):
            name = _written_name(source, _function_name(node))
            deleted = any(child.type == "delete_method_clause" for child in node.children)
            if name and name != type_name and not name.startswith("~") and not deleted:
                names[name] = None
        elif node.type.startswith("preproc_") or node.type in ("template_declaration", "ERROR"):
            waiting.extend(reversed(node.children))
    return list(names)


def _function_name(node: Node) -> Node | None:
    """The node with the name that a function's declaration declares; None for a variable, also one of pointer type."""
    declarator = node.child_by_field_name("declarator")
    while declarator is not None and declarator.type in _DECLARATORS:
        inner = declarator.child_by_field_name("declarator")
        declarator = inner if inner is not None else next(iter(declarator.named_children[::-1]), None)
    if declarator is None:
        return None
    if declarator.type == "operator_cast":
        return declarator
    if declarator.type != "function_declarator":
        return None
    named = declarator.child_by_field_name("declarator")
    if named is not None and named.type == "parenthesized_declarator":
        return None  # a pointer to a function
    if named is not None and named.type == "function_declarator":
        return _inner_function(named)
    return named


def _written_name(source: Source, name: Node | None) -> str:
    """The name of a function as it is declared; `operator bool` of an operator that converts."""
    text = source.name(name)
    return text.partition("(")[0].strip() if name is not None and name.type == "operator_cast" else text


def _inner_function(node: Node) -> Node | None:
    named = node.child_by_field_name("declarator")
    return named if named is not None and named.type in ("identifier", "field_identifier") else None


def _function(source: Source, node: Node, at: _Open, outer: Node) -> Definition | None:
    name = _function_name(node)
    default = next((child for child in node.children if child.type == "default_method_clause"), None)
    body = node.child_by_field_name("body") or default
    kinds = ("identifier", "field_identifier", "qualified_identifier", "destructor_name", "operator_name",
             "template_function", "template_method", "operator_cast")  # fmt: skip
    if name is None or body is None or name.type not in kinds:
        return None
    written = _written_name(source, name)
    if not written or written in ("if", "while", "for", "switch", "return", "else", "defined"):
        return None  # what the grammar makes of statements between macros that it does not know
    initializers = next((child for child in node.children if child.type == "field_initializer_list"), body)
    end = default.end_byte if default is not None else min(initializers.start_byte, body.start_byte)
    return Definition(
        noun="method" if at.in_type else "function",
        name="::".join((*at.names, written)),
        path=source.path,
        lines=lines_of(outer),
        is_type=False,
        signature=source.head(outer, end).rstrip("; "),
        doc=_doc(source, outer),
    )


def _doc(source: Source, outer: Node) -> str:
    return described(source, comments_above(outer), _DOC_MARKS)
