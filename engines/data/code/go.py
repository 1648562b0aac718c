"""Definitions of Go files: types, functions and methods."""

from __future__ import annotations

from collections.abc import Iterator

from engines.data.code.definition import EMBEDS, Definition
from engines.data.code.syntax import Node, Source, comments_above, described, lines_of, parse

_NOUNS = {"struct_type": "struct", "interface_type": "interface"}


def go_definitions(path: str, text: str) -> tuple[list[Definition], bool]:
    """The definitions of a file in file order, and whether the parser found errors in it.

    The methods of a type may be in any file of its package, so a type has only those of this file.

    Raises:
        ParseError: the text cannot be parsed within the bound of work.
    """
    source = parse("go", path, text)
    clause = next((child for child in source.root.children if child.type == "package_clause"), None)
    package = source.name(clause.named_children[0]) if clause is not None and clause.named_children else ""
    return list(_walk(source, package)), source.root.has_error


def _walk(source: Source, package: str) -> Iterator[Definition]:
    methods: dict[str, dict[str, None]] = {}
    for node in source.root.children:
        if node.type == "method_declaration":
            methods.setdefault(_receiver(source, node), {})[source.name(node.child_by_field_name("name"))] = None
    for node in source.root.children:
        if node.type == "type_declaration":
            specs = [child for child in node.named_children if child.type in ("type_spec", "type_alias")]
            outer = node if len(specs) == 1 else None
            for spec in specs:
                yield _type(source, spec, outer if outer is not None else spec, package, methods)
        elif node.type in ("function_declaration", "method_declaration"):
            yield _function(source, node, package)


def _receiver(source: Source, node: Node) -> str:
    """The name of the type of a method's receiver, without pointer and type parameters."""
    receiver = node.child_by_field_name("receiver")
    waiting = [] if receiver is None else [receiver]
    while waiting:
        found = waiting.pop(0)
        if found.type == "type_identifier":
            return source.name(found)
        if found.type == "parameter_declaration":
            found = found.child_by_field_name("type")
            waiting = [] if found is None else [found]
        else:
            waiting.extend(found.named_children)
    return ""


def _type(source: Source, spec: Node, outer: Node, package: str, methods: dict[str, dict[str, None]]) -> Definition:
    name = source.name(spec.child_by_field_name("name"))
    body = spec.child_by_field_name("type")
    kind = "" if body is None else body.type
    declared = [] if body is None or kind != "interface_type" else body.named_children
    own = [
        source.name(one.child_by_field_name("name")) for one in declared if one.type in ("method_elem", "method_spec")
    ]
    return Definition(
        noun=_NOUNS.get(kind, "type"),
        name=f"{package}.{name}",
        path=source.path,
        lines=lines_of(outer),
        is_type=True,
        bases=tuple((EMBEDS, base) for base in _embedded(source, body)),
        methods=tuple(own) if kind == "interface_type" else tuple(methods.get(name, ())),
        all_methods=kind == "interface_type",
        doc=_doc(source, outer),
    )


def _embedded(source: Source, body: Node | None) -> Iterator[str]:
    if body is None:
        return
    if body.type == "interface_type":
        for child in body.named_children:
            if child.type in ("type_elem", "constraint_elem", "interface_type_name"):
                yield source.name(child)
    elif body.type == "struct_type":
        for fields in (child for child in body.named_children if child.type == "field_declaration_list"):
            for child in fields.named_children:
                if child.type == "field_declaration" and child.child_by_field_name("name") is None:
                    yield source.name(child.child_by_field_name("type")).removeprefix("*")


def _function(source: Source, node: Node, package: str) -> Definition:
    name = source.name(node.child_by_field_name("name"))
    body = node.child_by_field_name("body")
    receiver = _receiver(source, node) if node.type == "method_declaration" else ""
    return Definition(
        noun="method" if receiver else "function",
        name=".".join(filter(None, (package, receiver, name))),
        path=source.path,
        lines=lines_of(node),
        is_type=False,
        signature=source.head(node, node.end_byte if body is None else body.start_byte),
        doc=_doc(source, node),
    )


def _doc(source: Source, node: Node) -> str:
    comments = [
        one for one in comments_above(node) if not source.text(one).startswith(("//go:", "//line ", "//export "))
    ]
    return described(source, comments, ("/*", "//"))
