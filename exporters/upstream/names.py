"""Names of a GGUF file's tensors in transformers, for families that Cockpit has no table of, from the gguf package.

The package's map is llama.cpp's own. It is from names in a model folder to names in a file, so it is applied to every
tensor of the folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import gguf

_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_NESTED = "language_model."
_FAMILIES = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}


def sources_of(family: str, layers: int, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The folder's tensors that a file's tensor consists of, by the file's name; several are experts, in their order.

    Args:
        family: `general.architecture`.
        layers: number of layers in the file.
        names: of the folder's tensors. Those that the map does not have are left out.
    """
    number = _FAMILIES.get(family)
    if number is None:
        return {}
    known = gguf.get_tensor_name_map(number, layers)
    found: dict[str, dict[int, str]] = {}
    for name in names:
        expert = _EXPERT.search(name)
        plain = _EXPERT.sub(".experts.", name).replace(_NESTED, "")
        given = known.get_name(plain, try_suffixes=(".weight", ".bias"))
        if given is not None:
            found.setdefault(given, {})[int(expert[1]) if expert else 0] = name
    return {given: tuple(parts[at] for at in sorted(parts)) for given, parts in found.items()}
