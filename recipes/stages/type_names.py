"""Names of file types and tensor types as fields of a stage: a recipe may write them in any case."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator

from recipes.file_types import FILE_TYPES, TENSOR_TYPES, file_type_name, tensor_type_name

if TYPE_CHECKING:
    FileTypeName = str
    TensorTypeName = str
else:
    # a type checker cannot read computed choices
    FileTypeName = Annotated[Literal[tuple(FILE_TYPES)], BeforeValidator(file_type_name)]
    TensorTypeName = Annotated[Literal[TENSOR_TYPES], BeforeValidator(tensor_type_name)]
