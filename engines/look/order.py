"""The order in which a training reads its examples, without torch: torch's own permutation from the stage's seed.

accelerate's `SeedableRandomSampler` seeds torch's generator with the seed plus the number of the epoch, and takes
`torch.randperm`: an exchange of each place with a random later one (Fisher and Yates), by a Mersenne Twister (Matsumoto
and Nishimura, 1998) that is seeded with its first `init_genrand`.
"""

from __future__ import annotations

import random

_WORDS = 624
_MASK = 0xFFFFFFFF


def first_examples(seed: int, epoch: int, examples: int, wanted: int) -> list[int]:
    """The first `wanted` indices of an epoch's order.

    Args:
        seed: the stage's seed.
        epoch: from 0.
        examples: length of the dataset, below 2^32 / 20: torch draws other numbers for a larger one.
        wanted: at most `examples` are given.
    """
    draw = twister(seed + epoch)
    moved: dict[int, int] = {}
    found = []
    for place in range(min(wanted, examples)):
        if place == examples - 1:  # torch draws no number for the last place
            found.append(moved.get(place, place))
            break
        other = place + draw.getrandbits(32) % (examples - place)
        found.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return found


def twister(seed: int) -> random.Random:
    """A Mersenne Twister in the state that torch's `manual_seed` gives it; `getrandbits(32)` is its next number."""
    word = seed & _MASK
    state = [word]
    for number in range(1, _WORDS):
        word = (1812433253 * (word ^ (word >> 30)) + number) & _MASK
        state.append(word)
    made = random.Random()  # noqa: S311 - an order, not a secret
    made.setstate((3, (*state, _WORDS), None))
    return made
