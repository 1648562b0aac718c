"""The options of a chat's sampling."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from cockpit.command_line.parser import CommandParser
from cockpit.talking.settings import DEFAULT, setting_value
from engines.chatting.lines import BOUNDS, Sampling


def add_sampling(parser: CommandParser) -> None:
    """Add an option for each setting."""
    parser.add_argument(
        "--temperature",
        type=_setting("temperature"),
        default=DEFAULT.temperature,
        metavar="T",
        help="0 takes the likeliest token each time (default: 0)",
    )
    parser.add_argument(
        "--top-p",
        type=_setting("top_p"),
        default=DEFAULT.top_p,
        metavar="P",
        help="draw from the likeliest tokens with this share of the probability (default: 1)",
    )
    parser.add_argument(
        "--top-k",
        type=_setting("top_k"),
        default=DEFAULT.top_k,
        metavar="K",
        help="draw from so many likeliest tokens (default: 0, all)",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=_setting("repetition_penalty"),
        default=DEFAULT.repetition_penalty,
        metavar="X",
        help="makes tokens less likely that the conversation has already (default: 1, none)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=_setting("max_new_tokens"),
        default=DEFAULT.max_new_tokens,
        metavar="N",
        help=f"most tokens of an answer (default: {DEFAULT.max_new_tokens})",
    )
    parser.add_argument(
        "--seed",
        type=_setting("seed"),
        default=DEFAULT.seed,
        metavar="N",
        help="seed of the random numbers (default: 0)",
    )


def sampling_of(args: argparse.Namespace) -> Sampling:
    """The settings that were given."""
    return Sampling(**{name: getattr(args, name) for name in BOUNDS})


def _setting(name: str) -> Callable[[str], float | int]:
    def value(text: str) -> float | int:
        try:
            return setting_value(name, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return value
