"""The candidates that a shell offers for an argument's value, derived from its placeholder (`RUN`, `FILE|DIR`)."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

_SOURCES = {
    "ADAPTER": ("folders", "stages"),
    "CONFIG": ("files",),
    "DIR": ("folders",),
    "FILE": ("files",),
    "MODEL": ("folders", "stages"),
    "RECIPE": ("recipes", "files"),
    "RUN": ("runs",),
    "RUN:STAGE": ("stages",),
}
"""Sources of candidates: `files` and `folders` come from the disk, others from `cockpit completion --values`."""


@dataclass(frozen=True)
class Values:
    """Candidates: fixed words, and sources of more. Without either, any text is allowed and nothing is offered."""

    words: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def queries(self) -> tuple[str, ...]:
        """The sources that `cockpit completion --values` can list."""
        return tuple(source for source in self.sources if source not in ("files", "folders"))

    @property
    def paths(self) -> str:
        """`files`, `folders`, or ""; files include folders."""
        return next((source for source in ("files", "folders") if source in self.sources), "")


def takes_value(option: argparse.Action) -> bool:
    """Whether an option takes a value."""
    return option.nargs != 0


def values_of(action: argparse.Action) -> Values:
    """The candidates for an argument's value."""
    words = tuple(str(choice) for choice in action.choices or ())
    names = action.metavar.split("|") if isinstance(action.metavar, str) else ()
    words += tuple(name for name in names if name.islower())  # `X|max`: a number, or the word max
    sources = dict.fromkeys(source for name in names for source in _SOURCES.get(name, ()))
    return Values(words, tuple(sources))


def placeholder(action: argparse.Action) -> str:
    """The placeholder of an argument's value in usage lines."""
    if isinstance(action.metavar, str):
        return action.metavar
    return "|".join(map(str, action.choices)) if action.choices else action.dest.upper()
