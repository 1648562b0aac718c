"""The fact probe: questions with choices about the symbols of files that training never sees.

Every question is about a definition of the test split, and every wrong choice is a fact about another definition of
that split. The probe asks about nothing that a row of the training names, by its path or its qualified name. So a model
can only do better than chance by what it has understood of the code base: its names, its layout, its ways.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from engines.data.code.definition import Definition
from engines.data.code.questions import CONTROL_CHARACTER, CONTROL_STRING, listed
from engines.data.code.secrets import secrets_in
from engines.data.documents import PROBE
from engines.data.split import keyed_fraction

CHOICES = 4
LETTERS = "ABCD"
MOST_CHARACTERS = 160
"""Of a choice; a longer fact is not asked about."""
MOST_FACTS = 200_000
"""Facts that are kept in memory to choose from; of a larger code base the first ones."""
_WORD = re.compile(r"[^\s`,;()\[\]{}<>\"'=]+")
_ENDING = "Reply with the letter of the right choice."


@dataclass(frozen=True)
class ProbeFact:
    """One fact: its kind, the definition's qualified name, file and group, the question, and the right choice."""

    kind: str
    name: str
    path: str
    group: str
    question: str
    answer: str


@dataclass
class Probe:
    """The facts of held-out definitions, and the words of the training's rows."""

    rows: int
    seed: int
    facts: list[ProbeFact] = field(default_factory=list)
    trained: set[bytes] = field(default_factory=set)

    def hold_out(self, definitions: Iterable[Definition], group: str, hidden: Sequence[str]) -> None:
        """Add the facts of a file of the test split.

        Args:
            definitions: of the file.
            group: the file's group.
            hidden: secrets of the file, of which no row may contain one.
        """
        for one in definitions:
            for fact in _facts(one, group):
                if len(self.facts) < MOST_FACTS and not _is_unfit(fact, hidden):
                    self.facts.append(fact)

    def train_on(self, text: str) -> None:
        """Note the words of a row that training or its evaluations see."""
        self.trained.update(map(_digest, _words(text)))

    def as_rows(self) -> list[dict[str, Any]]:
        """The rows of the test file: as many as were requested, if there are so many, in an order by the seed alone."""
        facts = self._askable()
        by_kind: dict[str, list[ProbeFact]] = {}
        for fact in facts:
            by_kind.setdefault(fact.kind, []).append(fact)
        chosen: list[ProbeFact] = []
        for turn in range(max(map(len, by_kind.values()), default=0)):
            chosen += [of_kind[turn] for _, of_kind in sorted(by_kind.items()) if turn < len(of_kind)]
        made = (self._row(fact, by_kind[fact.kind]) for fact in chosen)
        found: list[dict[str, Any]] = []
        for row in made:
            if len(found) == self.rows:
                break
            if row is not None:
                found.append(row)
        return found

    def _askable(self) -> list[ProbeFact]:
        """Facts about what training never names and of which there is one answer, in the order of the choice."""
        answers: dict[str, set[str]] = {}
        for fact in self.facts:
            answers.setdefault(fact.question, set()).add(fact.answer)
        kept = {
            fact.question: fact
            for fact in self.facts
            if len(answers[fact.question]) == 1
            and _digest(fact.name) not in self.trained
            and _digest(fact.path) not in self.trained
        }
        return sorted(kept.values(), key=lambda fact: (keyed_fraction(self.seed, fact.question, PROBE), fact.question))

    def _row(self, fact: ProbeFact, others: Sequence[ProbeFact]) -> dict[str, Any] | None:
        """A row with the right choice and three wrong ones; None where there are not so many."""
        wrong: list[str] = []
        start = int(keyed_fraction(self.seed, fact.question, "wrong") * len(others))
        for at in range(len(others)):
            other = others[(start + at) % len(others)]
            if other.name != fact.name and other.answer not in (fact.answer, *wrong):
                wrong.append(other.answer)
            if len(wrong) == CHOICES - 1:
                break
        else:
            return None
        place = int(keyed_fraction(self.seed, fact.question, "place") * CHOICES)
        choices = [*wrong[:place], fact.answer, *wrong[place:]]
        lines = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
        return {
            "id": f"{fact.kind}/{fact.name}",
            "prompt": f"{fact.question}\n\n{lines}\n\n{_ENDING}",
            "choices": choices,
            "answer": LETTERS[place],
            "checks": ["choice"],
            "group": fact.group,
        }


def row_texts(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def _facts(one: Definition, group: str) -> Iterator[ProbeFact]:
    for kind, (question, answer_of) in _KINDS.items():
        answer = answer_of(one)
        if answer and len(answer) <= MOST_CHARACTERS:
            text = question.format(noun=one.noun, name=one.title if kind != "location" else f"`{one.name}`")
            yield ProbeFact(kind, one.name, one.path, group, text, answer)


def _location(one: Definition) -> str:
    return f"`{one.path}`" if one.is_type else ""


def _methods(one: Definition) -> str:
    return listed(one.methods[:3]) if len(one.methods) >= 2 and one.all_methods else ""


def _bases(one: Definition) -> str:
    return listed([name for _, name in one.bases]) if one.bases else ""


def _parameters(one: Definition) -> str:
    """The declaration with the function's own name left out, which would give the answer away."""
    short = re.split(r"::|\.", one.name)[-1]
    return f"`{one.signature.replace(short, '…')}`" if one.signature else ""


def _purpose(one: Definition) -> str:
    short = re.split(r"::|\.", one.name)[-1]
    return "" if short.casefold() in one.doc.casefold() else one.doc


_KINDS: Mapping[str, tuple[str, Callable[[Definition], str]]] = {
    "location": ("Which file defines the {noun} {name}?", _location),
    "methods": ("Which methods does the {noun} {name} have, among others?", _methods),
    "bases": ("What does the {noun} {name} build on?", _bases),
    "signature": ("How is the {noun} {name} declared?", _parameters),
    "docstring": ("What does the {noun} {name} do?", _purpose),
}


def _is_unfit(fact: ProbeFact, hidden: Sequence[str]) -> bool:
    texts = (fact.question, fact.answer)
    return any(
        secrets_in(text)
        or CONTROL_CHARACTER.search(text)
        or CONTROL_STRING.search(text)
        or any(value in text for value in hidden)
        for text in texts
    )


def _words(text: str) -> set[str]:
    """The words of a text, as they are and without the punctuation that ends a sentence."""
    found = set(_WORD.findall(text))
    return found | {word.strip(".:!?") for word in found}


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "replace"), digest_size=12).digest()
