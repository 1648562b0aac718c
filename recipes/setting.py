"""The declaration of a recipe field: its default, bounds, unit, section and help text."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from pydantic_core import PydanticUndefined

AtResume = Literal["change", "identity", "input", "shapes", "order", "optimizer", "arithmetic", "comparison", "start"]
"""Whether a resume may change a field of a stage that trains: "change", or the reason why not. The sentences are in
`recipes.resume_changes`."""


def setting(
    default: Any = PydanticUndefined,
    *,
    section: str,
    help: str,  # noqa: A002 - argparse has the same name
    unit: str | None = None,
    accepts: tuple[str, ...] | None = None,
    folder: bool = False,
    new_folder: bool = False,
    or_file: bool = False,
    file: bool = False,
    advanced: bool = False,
    at_resume: AtResume | None = None,
    instead: str | None = None,
    or_pattern: bool = False,
    suggests: tuple[str, ...] = (),
    default_factory: Any = None,
    **bounds: Any,
) -> Any:
    """Declare a recipe field once, for the TOML, the form, `--set`, the reference and the JSON Schema.

    Args:
        default: the value if a recipe does not set the field; without one, the field is required.
        section: the heading of the field in forms and in the reference.
        help: one sentence for the operator.
        unit: the unit of the value, if it has one.
        accepts: for a field that names another stage, the outputs that it accepts (the words of `registry.output_of`).
        folder: the value is a folder, relative to the recipe's folder if it is not absolute.
        new_folder: the folder may be one that does not exist yet.
        or_file: a file may be given in place of the folder.
        file: the value is one of the words in `suggests`, or a file, relative to the recipe's folder if it is not
            absolute.
        advanced: shown after the other fields.
        at_resume: for a field of a stage that trains, whether a resume may change it, or why not. Stages that do not
            train run again from their start, so their fields need no such rule.
        instead: for a list, one word that a recipe may write in its place.
        or_pattern: for such a list, one regular expression may stand in its place too.
        suggests: usual values that a form offers; others are allowed.
        default_factory: for mutable defaults.
        bounds: pydantic constraints (`gt`, `ge`, `lt`, `le`, `min_length`, …).
    """
    extra: dict[str, Any] = {"section": section}
    if unit is not None:
        extra["unit"] = unit
    if accepts is not None:
        extra["accepts"] = list(accepts)
    flags = {"folder": folder, "new_folder": new_folder, "or_file": or_file, "file": file, "advanced": advanced}
    extra |= {name: True for name, is_set in flags.items() if is_set}
    if instead is not None:
        extra["instead"] = instead
    if or_pattern:
        extra["or_pattern"] = True
    if suggests:
        extra["suggests"] = list(suggests)
    if at_resume is not None:
        extra["at_resume"] = at_resume
    if default_factory is not None:
        return Field(default_factory=default_factory, description=help, json_schema_extra=extra, **bounds)
    return Field(default, description=help, json_schema_extra=extra, **bounds)
