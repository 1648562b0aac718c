"""Questions about definitions, answered only from the sources."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from engines.data.code.definition import IMPLEMENTS, INHERITS, Definition
from engines.data.code.secrets import secrets_in

PHRASINGS: Mapping[str, tuple[str, ...]] = {
    "docstring": (
        "What does the {noun} {name} do?",
        "What is the purpose of the {noun} {name}?",
        "Describe the {noun} {name}.",
    ),
    "signature": (
        "What is the signature of the {noun} {name}?",
        "Which parameters does the {noun} {name} take?",
        "How is the {noun} {name} declared?",
    ),
    "bases": (
        "Which classes does the {noun} {name} inherit from?",
        "What are the base classes of {name}?",
        "What does the {noun} {name} derive from?",
    ),
    "methods": (
        "Which methods does the {noun} {name} have?",
        "What methods does {name} define?",
        "List the methods of the {noun} {name}.",
    ),
    "location": (
        "Where is the {noun} {name} defined?",
        "Which file defines the {noun} {name}?",
        "In which file is the {noun} {name}?",
    ),
    "overview": (
        "What is the {noun} {name}?",
        "Give an overview of the {noun} {name}.",
        "Summarize the {noun} {name}.",
    ),
}
OTHER_BASES = (
    "Which types does the {noun} {name} build on?",
    "What does the {noun} {name} implement or embed?",
    "Which base types does the {noun} {name} have?",
)
"""For types that do more than inherit."""
METHODS_OF_FILE = (
    "Which methods of the {noun} {name} does `{path}` define?",
    "List the methods of {name} in `{path}`.",
    "What methods does `{path}` give to the {noun} {name}?",
)
"""For languages in which other files may add methods."""
TRAITS_OF_FILE = (
    "Which traits does `{path}` implement for the {noun} {name}?",
    "What does `{path}` implement for {name}?",
    "List the traits that `{path}` implements for the {noun} {name}.",
)
"""For languages in which other files may implement more."""

CONTROL_STRING = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|<unk>|<pad>")
"""Text that tokenizers read as a control token; an example must not contain it."""
CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Characters that are not text, or that reverse the reading direction."""


@dataclass(frozen=True)
class Fact:
    """One question with its answer. `kind` is one of the recipe's `questions`, or `file`."""

    kind: str
    question: str
    answer: str


def facts_of(
    definitions: Iterable[Definition],
    kinds: Sequence[str],
    max_answer_chars: int,
    dropped: Counter[str],
    hidden: Sequence[str] = (),
) -> list[Fact]:
    """The facts of one file, in file order.

    A name with two definitions and different answers has no correct answer: it is left out.

    Args:
        definitions: the definitions of the file.
        kinds: the kinds of questions to include.
        max_answer_chars: facts with a longer answer are left out.
        dropped: counts what is left out, by reason.
        hidden: secrets of the file, of which no example may contain one.

    Raises:
        ValueError, RecursionError, MemoryError: an answer cannot be made of a definition.
    """
    found = [fact for one in definitions for kind in PHRASINGS if kind in kinds for fact in _fact(kind, one)]
    answers: dict[str, set[str]] = {}
    for fact in found:
        answers.setdefault(fact.question, set()).add(fact.answer)
    kept: dict[str, Fact] = {}
    for fact in found:
        reason = reason_to_drop(fact, max_answer_chars, hidden)
        if len(answers[fact.question]) > 1:
            reason = "defined_twice"
        elif fact.question in kept:
            reason = "duplicate_question"
        if reason:
            dropped[reason] += 1
        else:
            kept[fact.question] = fact
    return list(kept.values())


def reason_to_drop(fact: Fact, max_chars: int, hidden: Sequence[str] = ()) -> str:
    """Why a fact cannot be an example; empty when it can."""
    texts = (fact.question, fact.answer)
    if any(value in text for value in hidden for text in texts):
        return "secret"
    if any(secrets_in(text) for text in texts):
        return "secret"
    if len(fact.answer) > max_chars:
        return "answer_too_long"
    if any(CONTROL_CHARACTER.search(text) for text in texts):
        return "control_characters"
    if any(CONTROL_STRING.search(text) for text in texts):
        return "control_strings"
    return ""


def chosen(phrasings: Sequence[str], key: str) -> str:
    """One of the phrasings, by the key alone."""
    digest = blake2b(key.encode("utf-8", "replace"), digest_size=4).digest()
    return phrasings[int.from_bytes(digest, "big") % len(phrasings)]


def listed(names: Sequence[str]) -> str:
    """Names in backticks, with commas and an "and"."""
    quoted = [f"`{name}`" for name in names]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " and " + quoted[-1]


def _fact(kind: str, one: Definition) -> Iterator[Fact]:
    answer = _ANSWERS[kind](one)
    if not answer:
        return
    phrasings = PHRASINGS[kind]
    if kind == "bases" and any(relation != INHERITS for relation, _ in one.bases):
        phrasings = TRAITS_OF_FILE if _of_file(one) else OTHER_BASES
    if kind == "methods" and not one.all_methods:
        phrasings = METHODS_OF_FILE
    name = f"`{one.name}`" if kind == "location" else one.title
    text = chosen(phrasings, f"{kind}:{one.name}").format(noun=one.noun, name=name, path=one.path)
    yield Fact(kind, text, answer)


def _short(one: Definition) -> str:
    """The name without what it is qualified by."""
    return re.split(r"::|\.", one.name)[-1]


def _docstring(one: Definition) -> str:
    return one.doc


def _signature(one: Definition) -> str:
    return f"`{one.signature}`" if one.signature else ""


def _of_file(one: Definition) -> bool:
    """Whether what a type implements is only what its file implements for it."""
    return not one.all_methods and any(relation == IMPLEMENTS for relation, _ in one.bases)


def _bases(one: Definition) -> str:
    if _of_file(one):
        return f"`{one.path}` implements {listed([name for _, name in one.bases])} for `{_short(one)}`."
    return f"`{_short(one)}` {_relations(one)}." if one.bases else ""


def _relations(one: Definition) -> str:
    relations = list(dict.fromkeys(relation for relation, _ in one.bases))
    parts = [f"{word} {listed([name for relation, name in one.bases if relation == word])}" for word in relations]
    return ", and ".join(parts)


def _methods(one: Definition) -> str:
    if not one.methods:
        return ""
    who = f"`{_short(one)}` defines" if one.all_methods else f"`{one.path}` defines"
    of = "" if one.all_methods else f" of `{_short(one)}`"
    noun = "the method" if len(one.methods) == 1 else f"{len(one.methods)} methods"
    return f"{who} {noun}{of}{' ' if len(one.methods) == 1 and not of else ': '}{listed(one.methods)}."


def _location(one: Definition) -> str:
    if not one.is_type:
        return ""
    first, last = one.lines
    at = f"line {first}" if first == last else f"lines {first} to {last}"
    return f"The {one.noun} `{one.name}` is defined in `{one.path}`, {at}."


def _overview(one: Definition) -> str:
    if not one.is_type:
        return ""
    article = "an" if one.noun[0] in "aeiou" else "a"
    inherits = f" that {_relations(one)}" if one.bases and not _of_file(one) else ""
    sentences = [f"`{_short(one)}` is {article} {one.noun} in `{one.path}`{inherits}."]
    sentences += [_bases(one)] if _of_file(one) else []
    if len(one.methods) > MOST_LISTED:
        count = f"{len(one.methods)} methods"
        sentences.append(f"It has {count}." if one.all_methods else f"`{one.path}` defines {count} of it.")
    elif one.methods:
        sentences.append(_methods(one))
    if one.doc:
        sentences.append(one.doc if one.doc[-1] in ".!?" else f"{one.doc}.")
    return " ".join(sentences)


MOST_LISTED = 12
"""Methods that an overview names; of more it gives the number."""
_ANSWERS: Mapping[str, Callable[[Definition], str]] = {
    "docstring": _docstring,
    "signature": _signature,
    "bases": _bases,
    "methods": _methods,
    "location": _location,
    "overview": _overview,
}
