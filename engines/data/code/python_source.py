"""Definitions of a Python file, from its syntax tree."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Iterator
from pathlib import PurePosixPath

from engines.data.code.definition import INHERITS, Definition, first_paragraph

Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def module_name(path: str) -> str:
    """The dotted module name of a file, from its path inside the source; empty when no import can name it.

    >>> module_name("src/email/mime/__init__.py")
    'email.mime'
    """
    parts = list(PurePosixPath(path).with_suffix("").parts)
    if len(parts) > 1 and parts[0] == "src":
        parts = parts[1:]
    if len(parts) > 1 and parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts) if all(part.isidentifier() for part in parts) else ""


def python_definitions(path: str, text: str) -> list[Definition]:
    """The functions and classes of a file that have a qualified name, in file order.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: the text is not Python, or is nested too deeply.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are about the parsed code
        tree = ast.parse(text)
    return [_definition(path, name, noun, node) for name, noun, node in nodes_of(tree, module_name(path))]


def nodes_of(tree: ast.Module, module: str) -> Iterator[tuple[str, str, Node]]:
    """Functions and classes with a qualified name, as (qualified name, noun, node).

    Definitions under `if`, `try` and `with` count; definitions inside functions have no qualified name.
    """
    waiting: list[tuple[ast.AST, str, bool]] = [(tree, module, False)]
    while waiting:
        node, prefix, in_class = waiting.pop()
        inner: list[tuple[ast.AST, str, bool]] = []
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield f"{prefix}.{child.name}", "class", child
                inner.append((child, f"{prefix}.{child.name}", True))
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{prefix}.{child.name}", "method" if in_class else "function", child
            elif isinstance(child, ast.If | ast.Try | ast.TryStar | ast.With | ast.ExceptHandler):
                inner.append((child, prefix, in_class))
        waiting.extend(reversed(inner))


def _definition(path: str, name: str, noun: str, node: Node) -> Definition:
    doc = first_paragraph(inspect.cleandoc(ast.get_docstring(node, clean=False) or ""))
    lines = (min([node.lineno, *(one.lineno for one in node.decorator_list)]), node.end_lineno or node.lineno)
    if not isinstance(node, ast.ClassDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
        signature = f"{keyword} {node.name}({ast.unparse(node.args)}){returns}"
        return Definition(noun, name, path, lines, is_type=False, signature=signature, doc=doc)
    bases = tuple((INHERITS, ast.unparse(base)) for base in node.bases)
    return Definition(noun, name, path, lines, is_type=True, bases=bases, methods=_methods(node), doc=doc)


def _methods(node: ast.ClassDef) -> tuple[str, ...]:
    """The names of the functions in the body of a class, also under `if` and `try`, each once."""
    names: dict[str, None] = {}
    waiting: list[ast.AST] = [node]
    while waiting:
        inner: list[ast.AST] = []
        for child in ast.iter_child_nodes(waiting.pop()):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                names[child.name] = None
            elif isinstance(child, ast.If | ast.Try | ast.TryStar | ast.With | ast.ExceptHandler):
                inner.append(child)
        waiting.extend(reversed(inner))
    return tuple(names)
