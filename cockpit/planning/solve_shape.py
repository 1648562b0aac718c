"""Shapes of a decoder that have a wanted number of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from recipes.stages.decoder.model_types import MODEL_TYPES, ModelType
from recipes.stages.decoder.sizes import Sizes

BLOCK = 256
"""Values in a block of the K and IQ types: widths are multiples of it, so no tensor falls back to a larger type."""
WITHIN = 1e-4
"""Largest deviation from the wanted number of parameters, as a share of it."""
USUAL_RATIO = 4
"""intermediate_size / hidden_size that solutions are nearest to."""
MOST_QUERIES_FOR_A_KEY = 4
RATIOS = (2, 6)
"""The smallest and the largest ratio that is considered."""
DEPTHS = (48, 160)
"""hidden_size / num_hidden_layers of usual decoders."""
HEAD_WIDTHS = (128, 64)
MOST_LAYERS, MOST_HEADS = 128, 128


@dataclass(frozen=True)
class Wanted:
    """What is looked for.

    Attributes:
        parameters: of the whole model.
        vocab_size: rows of the embedding.
        tie_word_embeddings: embedding and output head are one matrix.
        model_type: what the model has beside its matrices.
        layers, heads, kv_heads: the allowed numbers; empty for the usual ones: `DEPTHS`, and at most four query heads
            for a key head.
        head_widths: the allowed widths of a head, the preferred one first.
    """

    parameters: int
    vocab_size: int
    tie_word_embeddings: bool = True
    model_type: ModelType = "llama"
    layers: Sequence[int] = ()
    heads: Sequence[int] = ()
    kv_heads: Sequence[int] = ()
    head_widths: Sequence[int] = HEAD_WIDTHS


@dataclass(frozen=True)
class Found:
    """A shape, and how far its number of parameters is from the wanted one, as a share of it."""

    sizes: Sizes
    deviation: float

    @property
    def ratio(self) -> float:
        """intermediate_size / hidden_size."""
        return self.sizes.intermediate_size / self.sizes.hidden_size


def solve_shape(wanted: Wanted, within: float = WITHIN, most: int = 10) -> list[Found]:
    """The best shapes, best first; if none is within the deviation, those with the smallest ones.

    All widths are multiples of `BLOCK`. Of the shapes within the deviation, those whose ratio of widths is nearest to 4
    are the best, then those with the preferred width of a head, then those with the smaller deviation.

    Args:
        wanted: what is looked for.
        within: largest deviation, as a share.
        most: number of shapes.
    """
    every = list(_shapes(wanted))
    near = [found for found in every if abs(found.deviation) <= within]
    if not near:
        return sorted(every, key=lambda found: (abs(found.deviation), abs(found.ratio - USUAL_RATIO)))[:most]
    places = {width: number for number, width in enumerate(wanted.head_widths)}
    return sorted(
        near,
        key=lambda found: (
            abs(found.ratio - USUAL_RATIO),
            places[found.sizes.head_dim],
            abs(found.deviation),
            found.sizes.num_hidden_layers,
            -found.sizes.num_key_value_heads,
        ),
    )[:most]


def _shapes(wanted: Wanted) -> Iterator[Found]:
    """Of each number of layers and heads, the two widths of the feed-forward layer around the wanted number."""
    for layers in wanted.layers or range(1, MOST_LAYERS + 1):
        for width in wanted.head_widths:
            for heads in wanted.heads or range(1, MOST_HEADS + 1):
                if heads * width % BLOCK or not (wanted.layers or _usual_depth(heads * width, layers)):
                    continue
                if _sizes(wanted, layers, width, heads, 1, 0).parameters > wanted.parameters:
                    break  # attention alone is too large, and more heads make it larger
                if (
                    _sizes(wanted, layers, width, heads, heads, RATIOS[1] * heads * width).parameters
                    < wanted.parameters
                ):
                    continue
                for kv_heads in _divisors(heads):
                    if kv_heads not in (wanted.kv_heads or range(-(-heads // MOST_QUERIES_FOR_A_KEY), heads + 1)):
                        continue
                    yield from _around(wanted, layers, width, heads, kv_heads)


@cache
def _divisors(number: int) -> tuple[int, ...]:
    return tuple(one for one in range(1, number + 1) if number % one == 0)


def _sizes(wanted: Wanted, layers: int, width: int, heads: int, kv_heads: int, inner: int) -> Sizes:
    return Sizes(
        hidden_size=heads * width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width,
        vocab_size=wanted.vocab_size,
        tie_word_embeddings=wanted.tie_word_embeddings and MODEL_TYPES[wanted.model_type].tied,
        model_type=wanted.model_type,
    )


def _usual_depth(hidden_size: int, layers: int) -> bool:
    return DEPTHS[0] * layers <= hidden_size <= DEPTHS[1] * layers


def _around(wanted: Wanted, layers: int, width: int, heads: int, kv_heads: int) -> Iterator[Found]:
    def sizes(inner: int) -> Sizes:
        return _sizes(wanted, layers, width, heads, kv_heads, inner)

    without, one = sizes(0).parameters, sizes(BLOCK).parameters
    blocks = (wanted.parameters - without) // (one - without)
    for number in (blocks, blocks + 1):
        if RATIOS[0] * heads * width <= number * BLOCK <= RATIOS[1] * heads * width:
            found = sizes(number * BLOCK)
            yield Found(found, found.parameters / wanted.parameters - 1)
