"""`cockpit plan --solve-params 1.5B`: shapes of a model with a wanted number of parameters, as TOML to paste."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import get_args

from cockpit.command_line.arguments import add_json
from cockpit.command_line.parser import CommandParser
from cockpit.planning.solve_shape import BLOCK, MOST_HEADS, MOST_LAYERS, RATIOS, WITHIN, Found, Wanted, solve_shape
from cockpit.text.output import print_json, print_out, say
from cockpit.text.text_table import text_table
from engines.words import ExitCode
from recipes import quantities
from recipes.problems import OperatorError, shown
from recipes.stages.decoder.model_types import ModelType

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_LEAST, _MOST = 10**5, 10**13
_LARGEST = 4096
_MOST_PAIRS = 100_000
"""Pairs of a number of layers and a number of heads that are searched: seconds."""
_TOML = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "tie_word_embeddings",
)  # fmt: skip


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit plan`."""
    parser.add_argument(
        "--solve-params",
        metavar="COUNT",
        required=True,
        help="wanted number of parameters, such as 1.5B, 350M or 1500000000",
    )
    parser.add_argument("--vocab-size", metavar="N", type=int, default=32_000, help="tokens (default: 32000)")
    parser.add_argument("--untied", action="store_true", help="an output head of its own beside the embedding")
    parser.add_argument(
        "--model-type", choices=get_args(ModelType), default="llama", help="type of the model (default: llama)"
    )
    parser.add_argument("--layers", metavar="RANGE", default="", help="allowed numbers of layers, such as 24 or 24-28")
    parser.add_argument("--heads", metavar="RANGE", default="", help="allowed numbers of query heads")
    parser.add_argument(
        "--kv-heads",
        metavar="RANGE",
        default="",
        help="allowed numbers of key heads (default: at most four query heads for each)",
    )
    parser.add_argument(
        "--head-dim", metavar="N", type=int, default=None, help="width of a head (default: 128, else 64)"
    )
    add_json(parser)
    parser.exit_codes = {
        ExitCode.DONE: "shapes are listed",
        ExitCode.MISTAKE: "a number or a range is wrong, or no shape has these numbers",
    }
    parser.examples = (
        ("cockpit plan --solve-params 1.5B", "List shapes within 0.01 % of 1.5 billion parameters."),
        (
            "cockpit plan --solve-params 1.5B --layers 24-28 --heads 16-20 --kv-heads 4-8",
            "Consider some numbers of layers and heads only.",
        ),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Print the shapes, and the best as TOML.

    Raises:
        OperatorError: a number or a range is wrong, or no shape has these numbers.
    """
    wanted = Wanted(
        parameters=_parameters(args.solve_params),
        vocab_size=_bounded("--vocab-size", args.vocab_size, 2, 2**24),
        tie_word_embeddings=not args.untied,
        model_type=args.model_type,
        layers=_range("--layers", args.layers),
        heads=_range("--heads", args.heads),
        kv_heads=_range("--kv-heads", args.kv_heads),
        **({} if args.head_dim is None else {"head_widths": (_bounded("--head-dim", args.head_dim, 2, 4096),)}),
    )
    pairs = len(wanted.layers or range(MOST_LAYERS)) * len(wanted.heads or range(MOST_HEADS))
    if pairs > _MOST_PAIRS:
        raise OperatorError(
            f"--layers, --heads — {pairs} pairs of them are too many to search; allowed: up to {_MOST_PAIRS}",
            "give narrower ranges",
        )
    found = solve_shape(wanted)
    if not found:
        raise OperatorError(
            f"no shape has these numbers, widths that are multiples of {BLOCK}, and a feed-forward layer of"
            f" {RATIOS[0]} to {RATIOS[1]} times the width",
            _way_out(wanted),
        )
    if args.json:
        print_json([_as_json(one) for one in found])
        return ExitCode.DONE
    if abs(found[0].deviation) > WITHIN:
        say(f"no shape is within {quantities.deviation(WITHIN).lstrip('+')} of {args.solve_params}; the nearest ones:")
    print_out("\n".join(_table(found)))
    print_out(f"\n{_toml(found[0], wanted)}")
    return ExitCode.DONE


def _way_out(wanted: Wanted) -> str:
    """What to change where no shape exists."""
    embedding = wanted.vocab_size * BLOCK * (1 if wanted.tie_word_embeddings else 2)
    if embedding >= wanted.parameters:
        size = f"{wanted.vocab_size} tokens alone have {quantities.grouped(embedding)} parameters at a width of {BLOCK}"
        return f"{size}: give a smaller --vocab-size" + (
            "" if wanted.tie_word_embeddings else ", or leave out --untied"
        )
    return "allow other numbers of layers, heads or key heads, another --head-dim, or another --vocab-size"


def _parameters(text: str) -> int:
    match = re.fullmatch(r"([0-9][0-9_]{0,15}(?:\.[0-9]{1,9})?)([KMBGT]?)", text, re.IGNORECASE)
    value = int(float(match[1].replace("_", "")) * _UNITS[match[2].upper()]) if match else 0
    if not _LEAST <= value <= _MOST:
        raise OperatorError(
            f"--solve-params — not a number of parameters; got {shown(text)}; allowed 100K to 10T, such as 1.5B or 350M"
        )
    return value


def _range(option: str, text: str) -> Sequence[int]:
    if not text:
        return ()
    match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last <= _LARGEST:
        raise OperatorError(
            f"{option} — not a range; got {shown(text)}; allowed a number from 1 to {_LARGEST}, or two with - between"
            " and the smaller one first"
        )
    return range(first, last + 1)


def _bounded(option: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise OperatorError(f"{option} — out of range; got {value}; allowed a whole number from {least} to {most}")
    return value


def _table(found: Sequence[Found]) -> list[str]:
    titles = ("layers", "hidden", "heads", "kv heads", "head", "ffn", "ffn / hidden", "parameters", "deviation")
    return text_table(titles, [_row(one) for one in found], right=range(9))


def _row(one: Found) -> list[str]:
    sizes = one.sizes
    numbers = (
        sizes.num_hidden_layers, sizes.hidden_size, sizes.num_attention_heads, sizes.num_key_value_heads,
        sizes.head_dim, sizes.intermediate_size,
    )  # fmt: skip
    ratio = quantities.three_digits(one.ratio)
    return [*map(str, numbers), ratio, quantities.grouped(sizes.parameters), quantities.deviation(one.deviation)]


def _toml(best: Found, wanted: Wanted) -> str:
    sizes = best.sizes
    head = [f'model_type = "{sizes.model_type}"'] if sizes.model_type != "llama" else []
    usual = sizes.head_dim * sizes.num_attention_heads == sizes.hidden_size
    values = {name: getattr(sizes, name) for name in _TOML} | ({} if usual else {"head_dim": sizes.head_dim})
    lines = [f"{name} = {str(value).lower()}" for name, value in values.items()]
    about = f"# {quantities.grouped(sizes.parameters)} parameters with a vocabulary of {wanted.vocab_size}"
    return "\n".join([about, *head, *lines])


def _as_json(one: Found) -> dict[str, object]:
    return {
        "model_type": one.sizes.model_type,
        **{name: getattr(one.sizes, name) for name in _TOML},
        "head_dim": one.sizes.head_dim,
        "parameters": one.sizes.parameters,
        "deviation": one.deviation,
    }
