"""One declaration per recipe field: its default, bounds, unit, section and the sentence that explains it."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from pydantic_core import PydanticUndefined


def setting(
    default: Any = PydanticUndefined,
    *,
    section: str,
    help: str,  # noqa: A002 - the word that argparse and every reader of a form knows
    unit: str | None = None,
    accepts: tuple[str, ...] | None = None,
    folder: bool = False,
    advanced: bool = False,
    default_factory: Any = None,
    **bounds: Any,
) -> Any:
    """Declare a recipe field once, for the TOML, the form, `--set`, the reference and the JSON Schema.

    Args:
        default: the value of a recipe that does not name the field; none makes it required.
        section: the heading it stands under in forms and in the reference.
        help: one sentence, as an operator would want to read it.
        unit: the unit of the value, when it has one.
        accepts: for a field that names another stage: the outputs it takes (the words of `schema.output_of`).
        folder: the value is a folder, given from the recipe's own folder when it is not absolute.
        advanced: shown after the others.
        default_factory: for mutable defaults.
        bounds: pydantic constraints (`gt`, `ge`, `lt`, `le`, `min_length`, …).
    """
    extra: dict[str, Any] = {"section": section}
    if unit is not None:
        extra["unit"] = unit
    if accepts is not None:
        extra["accepts"] = list(accepts)
    if folder:
        extra["folder"] = True
    if advanced:
        extra["advanced"] = True
    if default_factory is not None:
        return Field(default_factory=default_factory, description=help, json_schema_extra=extra, **bounds)
    return Field(default, description=help, json_schema_extra=extra, **bounds)
