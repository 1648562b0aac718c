"""Definitions of Rust files: structs, enumerations, unions, traits, functions and methods."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from engines.data.code.definition import IMPLEMENTS, REQUIRES, Definition
from engines.data.code.syntax import Node, Source, comments_above, descendants, described, lines_of, parse

_TYPES = {"struct_item": "struct", "enum_item": "enum", "union_item": "union", "trait_item": "trait"}
_FUNCTIONS = ("function_item", "function_signature_item")
_BETWEEN = ("attribute_item",)


def module_path(path: str) -> str:
    """The path of a file's module: the crate, then the modules that its place in `src` gives.

    >>> module_path("crates/parser/src/lexer/mod.rs")
    'parser::lexer'
    """
    parts = list(PurePosixPath(path).with_suffix("").parts)
    crate = "crate"
    if "src" in parts:
        at = parts.index("src")
        crate = parts[at - 1].replace("-", "_") if at else "crate"
        parts = parts[at + 1 :]
    if parts and parts[-1] in ("mod", "lib", "main"):
        parts = parts[:-1]
    return "::".join((crate, *parts))


def rust_definitions(path: str, text: str) -> tuple[list[Definition], bool]:
    """The definitions of a file in file order, and whether the parser found errors in it.

    What is implemented for a type may be in any file of its crate, so a type has only what this file implements.

    Raises:
        ParseError: the text cannot be parsed within the bound of work.
    """
    source = parse("rust", path, text)
    return list(_walk(source)), source.root.has_error


def _walk(source: Source) -> Iterator[Definition]:
    waiting: list[tuple[Node, str, bool]] = [(source.root, module_path(source.path), False)]
    while waiting:
        node, prefix, in_type = waiting.pop()
        inner: list[tuple[Node, str, bool]] = []
        implemented = _implemented(source, node)
        for child in node.children:
            body = child.child_by_field_name("body")
            if child.type in _TYPES:
                yield _type(source, child, prefix, implemented)
            if child.type in _FUNCTIONS:
                yield _function(source, child, prefix, in_type=in_type)
            elif child.type == "mod_item" and body is not None:
                inner.append((body, f"{prefix}::{source.name(child.child_by_field_name('name'))}", False))
            elif child.type == "trait_item" and body is not None:
                inner.append((body, f"{prefix}::{source.name(child.child_by_field_name('name'))}", True))
            elif child.type == "impl_item" and body is not None:
                inner += _implementation(source, child, body, prefix)
        waiting.extend(reversed(inner))


def _implementation(source: Source, node: Node, body: Node, prefix: str) -> list[tuple[Node, str, bool]]:
    """The methods of `impl Type`; those of `impl Trait for Type` have names of the trait and of the type."""
    name = _type_name(source, node)
    if not name:
        return []
    trait = node.child_by_field_name("trait")
    owner = f"{prefix}::{name}" if trait is None else f"<{prefix}::{name} as {source.name(trait)}>"
    return [(body, owner, True)]


def _type_name(source: Source, node: Node) -> str:
    """The name of the type that an `impl` is for, without type parameters; empty for a parameter and for a type that
    is no name."""
    named = node.child_by_field_name("type")
    if named is not None and named.type == "generic_type":
        named = named.child_by_field_name("type")
    name = source.name(named) if named is not None and named.type == "type_identifier" else ""
    parameters = node.child_by_field_name("type_parameters")
    declared = [] if parameters is None else list(descendants(parameters, parameters.end_byte))
    return "" if name in {source.name(one) for one in declared if one.type == "type_identifier"} else name


def _implemented(source: Source, node: Node) -> dict[str, tuple[list[str], list[str]]]:
    """The traits and the methods that the `impl` blocks of a module give to each type."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for child in (child for child in node.children if child.type == "impl_item"):
        traits, methods = found.setdefault(_type_name(source, child), ([], []))
        trait = child.child_by_field_name("trait")
        if trait is not None:
            traits.append(source.name(trait))
        else:
            methods += _function_names(source, child)
    return found


def _function_names(source: Source, node: Node) -> list[str]:
    body = node.child_by_field_name("body")
    children = [] if body is None else body.children
    return [source.name(child.child_by_field_name("name")) for child in children if child.type in _FUNCTIONS]


def _type(source: Source, node: Node, prefix: str, implemented: dict[str, tuple[list[str], list[str]]]) -> Definition:
    name = source.name(node.child_by_field_name("name"))
    traits, methods = implemented.get(name, ([], []))
    bases = [(IMPLEMENTS, trait) for trait in dict.fromkeys(traits)]
    is_trait = node.type == "trait_item"
    if is_trait:
        bounds = node.child_by_field_name("bounds")
        parts = [] if bounds is None else [one for one in bounds.named_children if "comment" not in one.type]
        bases = [(REQUIRES, source.name(part)) for part in parts]
        methods = _function_names(source, node)
    return Definition(
        noun=_TYPES[node.type],
        name=f"{prefix}::{name}",
        path=source.path,
        lines=lines_of(node),
        is_type=True,
        bases=tuple(bases),
        methods=tuple(dict.fromkeys(methods)),
        all_methods=is_trait,
        doc=_doc(source, node),
    )


def _function(source: Source, node: Node, prefix: str, *, in_type: bool) -> Definition:
    body = node.child_by_field_name("body")
    end = node.end_byte if body is None else body.start_byte
    return Definition(
        noun="method" if in_type else "function",
        name=f"{prefix}::{source.name(node.child_by_field_name('name'))}",
        path=source.path,
        lines=lines_of(node),
        is_type=False,
        signature=source.head(node, end).rstrip("; "),
        doc=_doc(source, node),
    )


def _doc(source: Source, node: Node) -> str:
    return described(source, comments_above(node, _BETWEEN), ("/**", "///"))
