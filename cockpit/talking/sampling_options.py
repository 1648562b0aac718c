"""The options of sampling, for every command that has some of them: the same names, bounds and messages."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

from cockpit.talking.settings import DEFAULT, setting_value
from engines.chatting.lines import BOUNDS, Sampling
from recipes import quantities

_HELP = {
    "temperature": ("T", "0 takes the likeliest token each time"),
    "top_p": ("P", "draw from the likeliest tokens with this share of the probability"),
    "top_k": ("K", "draw from this number of likeliest tokens; 0: all"),
    "repetition_penalty": ("X", "makes tokens less likely that the conversation has already; 1: none"),
    "max_new_tokens": ("N", "most tokens of an answer"),
    "seed": ("N", "seed of the random numbers"),
}
"""The name of each setting's value in a help page, and its meaning."""


def add_sampling(
    parser: argparse.ArgumentParser,
    names: Iterable[str] = tuple(BOUNDS),
    *,
    seed_option: str = "--seed",
    defaults: Sampling = DEFAULT,
) -> None:
    """Add an option for each setting; its value is in the namespace under the setting's name."""
    for name in names:
        value, meaning = _HELP[name]
        default = getattr(defaults, name)
        parser.add_argument(
            seed_option if name == "seed" else f"--{name.replace('_', '-')}",
            type=setting_option(name),
            default=default,
            dest=name,
            metavar=value,
            help=f"{meaning} (default: {quantities.exact(default)})",
        )


def sampling_of(args: argparse.Namespace) -> Sampling:
    """The settings that were given."""
    return Sampling(**{name: getattr(args, name) for name in BOUNDS})


def setting_option(name: str) -> Callable[[str], float | int]:
    """What reads a setting's value from the command line."""

    def value(text: str) -> float | int:
        try:
            return setting_value(name, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return value
