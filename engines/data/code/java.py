"""Definitions of Java files: classes, interfaces, enumerations, records, annotations and methods."""

from __future__ import annotations

from collections.abc import Iterator

from engines.data.code.definition import IMPLEMENTS, INHERITS, Definition
from engines.data.code.syntax import Node, Source, comments_above, described, lines_of, parse

_TYPES = {
    "class_declaration": "class",
    "interface_declaration": "interface",
    "enum_declaration": "enum",
    "record_declaration": "record",
    "annotation_type_declaration": "annotation",
}
_METHODS = ("method_declaration", "annotation_type_element_declaration")
_ANNOTATIONS = ("marker_annotation", "annotation")


def java_definitions(path: str, text: str) -> tuple[list[Definition], bool]:
    """The definitions of a file in file order, and whether the parser found errors in it.

    Raises:
        ParseError: the text cannot be parsed within the bound of work.
    """
    source = parse("java", path, text)
    return list(_walk(source)), source.root.has_error


def _walk(source: Source) -> Iterator[Definition]:
    waiting: list[tuple[Node, str, str]] = [(source.root, _package(source), "")]
    while waiting:
        node, prefix, noun = waiting.pop()
        inner: list[tuple[Node, str, str]] = []
        for child in node.children:
            if child.type in _TYPES:
                definition = _type(source, child, prefix)
                yield definition
                body = child.child_by_field_name("body")
                if body is not None:
                    inner.append((body, definition.name, definition.noun))
            elif child.type in _METHODS and noun:
                yield _method(source, child, prefix)
            elif child.type == "enum_body_declarations":
                inner.append((child, prefix, noun))
        waiting.extend(reversed(inner))


def _package(source: Source) -> str:
    found = next((child for child in source.root.children if child.type == "package_declaration"), None)
    named = [] if found is None else [child for child in found.named_children if "identifier" in child.type]
    return source.name(named[0]) if named else ""


def _qualified(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _type(source: Source, node: Node, prefix: str) -> Definition:
    return Definition(
        noun=_TYPES[node.type],
        name=_qualified(prefix, source.name(node.child_by_field_name("name"))),
        path=source.path,
        lines=lines_of(node),
        is_type=True,
        bases=tuple(_bases(source, node)),
        methods=tuple(dict.fromkeys(_method_names(source, node.child_by_field_name("body")))),
        doc=_doc(source, node),
    )


def _bases(source: Source, node: Node) -> Iterator[tuple[str, str]]:
    for child in node.children:
        if child.type == "superclass":
            yield from ((INHERITS, source.name(one)) for one in child.named_children if "comment" not in one.type)
        elif child.type in ("super_interfaces", "extends_interfaces"):
            relation = IMPLEMENTS if child.type == "super_interfaces" else INHERITS
            lists = [one for one in child.named_children if one.type == "type_list"]
            found = [name for one in lists for name in one.named_children if "comment" not in name.type]
            yield from ((relation, source.name(name)) for name in found)


def _method_names(source: Source, body: Node | None) -> Iterator[str]:
    for child in [] if body is None else body.children:
        if child.type in _METHODS:
            yield source.name(child.child_by_field_name("name"))
        elif child.type == "enum_body_declarations":
            yield from _method_names(source, child)


def _method(source: Source, node: Node, prefix: str) -> Definition:
    body = node.child_by_field_name("body")
    end = node.end_byte if body is None else body.start_byte
    return Definition(
        noun="method",
        name=_qualified(prefix, source.name(node.child_by_field_name("name"))),
        path=source.path,
        lines=lines_of(node),
        is_type=False,
        signature=source.head(node, end, _ANNOTATIONS).rstrip("; "),
        doc=_doc(source, node),
    )


def _doc(source: Source, node: Node) -> str:
    return described(source, comments_above(node), ("/**",))
