"""The model of a recipe: a name and an ordered list of stages, each with the fields of its kind (`recipes/stages/`).

Every field is declared once, with `setting()`. Field names are those of transformers, TRL, PEFT and GGUF. Units:
`_s` seconds, `_bytes` bytes, `_steps` optimizer steps; losses are nats per token.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Tag

from recipes.setting import setting
from recipes.ship.limits import ShipLimits
from recipes.stages.fields import STAGE_NAME, StageFields, Strict
from recipes.stages.registry import STAGE_TYPES, tag_of_stage, tag_of_table

SCHEMA = 1


def _tag(value: Any) -> str | None:
    return tag_of_stage(value) if isinstance(value, StageFields) else tag_of_table(value)


if TYPE_CHECKING:
    Stage = StageFields
else:
    _types = (Annotated[fields, Tag(tag)] for tag, fields in STAGE_TYPES.items())
    Stage = Annotated[reduce(or_, _types), Discriminator(_tag)]
    """Any stage type of the registry, selected by its tag."""


class Recipe(Strict):
    """A recipe, with `defaults` already applied to its stages."""

    schema_: Literal[1] = setting(
        section="Recipe", at_resume="identity", alias="schema", help="Version of the recipe format; must be 1."
    )
    name: str = setting(
        section="Recipe", at_resume="identity", pattern=STAGE_NAME, help="Name of the recipe; run ids end with it."
    )
    description: str = setting(
        "", section="Recipe", at_resume="identity", max_length=2000, help="Purpose of the recipe."
    )
    sample_interval_s: float = setting(
        2.0,
        section="Recipe",
        at_resume="change",
        ge=0.1,
        le=600,
        unit="seconds",
        help="Time between two measurements of the machine's memory and load.",
    )
    stop_grace_s: float = setting(
        120.0,
        section="Recipe",
        at_resume="change",
        ge=1,
        le=86_400,
        unit="seconds",
        help="Time that a stopping engine has to write its last checkpoint.",
    )
    on_success: list[str] = setting(
        default_factory=list,
        section="Recipe",
        at_resume="change",
        max_length=100,
        help="Command (program and arguments, no shell) that is started once when the run has succeeded; it reads the"
        " result as JSON from standard input, and works in the recipe's folder.",
    )
    on_failure: list[str] = setting(
        default_factory=list,
        section="Recipe",
        at_resume="change",
        max_length=100,
        help="The same for a run that failed or that a gate refused; its JSON says the cause and all attempts. A stop"
        " by an operator starts neither.",
    )
    command_timeout_s: float = setting(
        60.0,
        section="Recipe",
        at_resume="change",
        ge=1,
        le=3600,
        unit="seconds",
        help="Time after which on_success or on_failure is ended, with the processes that it has started.",
    )
    ship: ShipLimits = setting(
        section="Recipe",
        at_resume="change",
        default_factory=ShipLimits,
        help="What a file of the run must have shown before it ships; cockpit ship reads it.",
    )
    stage: list[Stage] = setting(section="Recipe", min_length=1, max_length=256, help="The stages.")
