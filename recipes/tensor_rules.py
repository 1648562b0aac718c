"""Rules for tensors whose type differs from the base type of their file, as in llama.cpp's `llama_tensor_get_type`.

A rule is a tensor type with conditions; the first rule whose conditions are all true applies. Tensor types are named as
in `engines.llama.ggml_types`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """The tensor and file that a rule is applied to.

    Attributes:
        layer: the tensor's layer, from 0, counting the layers that have such a tensor.
        layers: number of layers.
        gqa: query heads per key and value head.
        importance: whether the file is written with an importance matrix.
        experts: number of experts of each layer; 0 for a dense model.
    """

    layer: int
    layers: int
    gqa: int
    importance: bool
    experts: int = 0


Condition = Callable[[Place], bool]


@dataclass(frozen=True)
class Rule:
    """A tensor type and its conditions, which must all be true."""

    type: str
    when: tuple[Condition, ...] = ()


def use(type_name: str, *when: Condition) -> Rule:
    """A rule, in the short form for tables of rules."""
    return Rule(type_name, when)


def first_type(rules: Sequence[Rule], place: Place) -> str | None:
    """The type of the first rule that applies; None if no rule applies, which means the file's base type."""
    return next((rule.type for rule in rules if all(condition(place) for condition in rule.when)), None)


def grouped(place: Place) -> bool:
    """At least four query heads share one key and value head, so value projections are small."""
    return place.gqa >= 4


def eight_experts(place: Place) -> bool:
    """The model has eight experts in each layer, as Mixtral has."""
    return place.experts == 8


def weighted(place: Place) -> bool:
    """There is an importance matrix."""
    return place.importance


def unweighted(place: Place) -> bool:
    """There is no importance matrix."""
    return not place.importance


def more_bits(place: Place) -> bool:
    """llama.cpp's `use_more_bits`: the first and last eighth of the layers, and every third between."""
    eighth = place.layers // 8
    return place.layer < eighth or place.layer >= 7 * place.layers // 8 or (place.layer - eighth) % 3 == 2


def first_eighth(place: Place) -> bool:
    """The first eighth of the layers."""
    return place.layer < place.layers // 8


def middle(place: Place) -> bool:
    """All layers but the first and last eighth."""
    return place.layers // 8 <= place.layer < 7 * place.layers // 8


def first_sixteenth(place: Place) -> bool:
    """The first sixteenth of the layers."""
    return place.layer < place.layers // 16


def first_two(place: Place) -> bool:
    """The first two layers."""
    return place.layer < 2


def first_four(place: Place) -> bool:
    """The first four layers."""
    return place.layer < 4
