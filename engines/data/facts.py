"""Questions about Python code, answered only from the syntax tree: docstrings, signatures and bases."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import PurePosixPath

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

PHRASINGS = {
    "docstring": (
        "What does the {noun} `{name}` do?",
        "What is the purpose of the {noun} `{name}`?",
        "Describe the {noun} `{name}`.",
    ),
    "signature": (
        "What is the signature of the {noun} `{name}`?",
        "Which parameters does the {noun} `{name}` take?",
        "How is the {noun} `{name}` declared?",
    ),
    "bases": (
        "Which classes does the class `{name}` inherit from?",
        "What are the base classes of `{name}`?",
        "What does the class `{name}` derive from?",
    ),
}
QUESTIONS = tuple(PHRASINGS)

CONTROL_STRING = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|<unk>|<pad>")
"""Text that tokenizers read as a control token; an example must not contain it."""
CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Characters that are not text, or that reverse the reading direction."""


@dataclass(frozen=True)
class Fact:
    """One question with its answer. `kind` is docstring, signature or bases."""

    kind: str
    question: str
    answer: str


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


def facts_of(path: str, text: str, kinds: Sequence[str], max_answer_chars: int, dropped: Counter[str]) -> list[Fact]:
    """The facts of one file, in file order.

    A name with two definitions and different answers has no correct answer: it is left out.

    Args:
        path: the file's path inside the source; its module name comes from it.
        text: the file's text.
        kinds: which of docstring, signature and bases to include.
        max_answer_chars: facts with a longer answer are left out.
        dropped: counts what is left out, by reason.
    """
    module = module_name(path)
    if not module:
        dropped["no_module_name"] += 1
        return []
    try:
        tree = parse(text)
        found = [fact for name, noun, node in definitions(tree, module) for fact in _facts(name, noun, node, kinds)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        dropped["not_parsed"] += 1
        return []
    answers: dict[str, set[str]] = {}
    for fact in found:
        answers.setdefault(fact.question, set()).add(fact.answer)
    kept: dict[str, Fact] = {}
    for fact in found:
        reason = _reason_to_drop(fact, max_answer_chars)
        if len(answers[fact.question]) > 1:
            reason = "defined_twice"
        elif fact.question in kept:
            reason = "duplicate_question"
        if reason:
            dropped[reason] += 1
        else:
            kept[fact.question] = fact
    return list(kept.values())


def parse(text: str) -> ast.Module:
    """`ast.parse` without its warnings about the parsed code.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: the text is not Python, or is nested too deeply.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def definitions(tree: ast.Module, module: str) -> Iterator[tuple[str, str, Definition]]:
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


def _facts(name: str, noun: str, node: Definition, kinds: Sequence[str]) -> Iterator[Fact]:
    for kind in QUESTIONS:
        answer = _ANSWERS[kind](name, node) if kind in kinds else ""
        if answer:
            yield Fact(kind, _phrase(kind, noun, name), answer)


def _phrase(kind: str, noun: str, name: str) -> str:
    phrasings = PHRASINGS[kind]
    choice = blake2b(f"{kind}:{name}".encode("utf-8", "replace"), digest_size=4).digest()
    return phrasings[int.from_bytes(choice, "big") % len(phrasings)].format(noun=noun, name=name)


def _docstring(_name: str, node: Definition) -> str:
    docstring = ast.get_docstring(node, clean=False)
    paragraph = re.split(r"\n\s*\n", inspect.cleandoc(docstring or "").strip(), maxsplit=1)[0]
    return " ".join(paragraph.split()) if re.search(r"\w", paragraph) else ""


def _signature(_name: str, node: Definition) -> str:
    if isinstance(node, ast.ClassDef):
        return ""
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"`{keyword} {node.name}({ast.unparse(node.args)}){returns}`"


def _bases(name: str, node: Definition) -> str:
    if not isinstance(node, ast.ClassDef) or not node.bases:
        return ""
    bases = [f"`{ast.unparse(base)}`" for base in node.bases]
    listed = bases[0] if len(bases) == 1 else ", ".join(bases[:-1]) + " and " + bases[-1]
    return f"`{name.rpartition('.')[2]}` inherits from {listed}."


_ANSWERS = {"docstring": _docstring, "signature": _signature, "bases": _bases}


def _reason_to_drop(fact: Fact, max_answer_chars: int) -> str:
    if len(fact.answer) > max_answer_chars:
        return "answer_too_long"
    if any(CONTROL_CHARACTER.search(text) for text in (fact.question, fact.answer)):
        return "control_characters"
    if any(CONTROL_STRING.search(text) for text in (fact.question, fact.answer)):
        return "control_strings"
    return ""
