"""Where a matrix of a GGUF file is in a loaded transformers model, so that its values can be replaced there.

transformers has all experts of a layer in one module, whose parameters are stacked (`use_experts_implementation` in its
integrations/moe.py); the names of attributes are those.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.gguf.quant_types import Shape
from exporters.gguf.write import Model, row_order

_EXPERTS = ".experts."


def places_of(model: Model, network: Any, shape: Shape) -> list[Any]:
    """Views of the parameter that has a matrix, torch [rows, columns]: one for each expert, or one.

    Args:
        model: the folder.
        network: its transformers model.
        shape: the matrix.
    """
    name = parameter_of(model, shape)
    if shape.dimensions < 3:
        return [network.get_parameter(name)]
    module = network.get_submodule(name.partition(_EXPERTS)[0] + _EXPERTS.rstrip("."))
    return [_of_expert(module, shape.name, expert) for expert in range(shape.experts)]


def parameter_of(model: Model, shape: Shape) -> str:
    """transformers' name of the tensor that has a matrix, or its first expert."""
    return model.architecture.own_name(model.sources[shape.name].names[0])


def in_folder_order(model: Model, shape: Shape, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [rows, columns] from the file's order to transformers'."""
    if not model.sources[shape.name].heads:
        return rows
    found = np.empty_like(rows)
    found[row_order(model, shape.name, shape.rows)] = rows
    return found


def _of_expert(module: Any, tensor: str, expert: int) -> Any:
    if "ffn_down" in tensor:
        found = module.down_proj[expert]
        return found.T if module.is_transposed else found
    both = module.gate_up_proj[expert]
    both = both.T if module.is_transposed else both
    second = int("ffn_up" in tensor)
    if module.is_concatenated:
        half = len(both) // 2
        return both[second * half : second * half + half]
    return both[second::2]
