"""What is known of a stage kind before it runs: one row each, beside the kind's fields.

Which program runs a stage, what it takes and makes, what it needs installed, how it is estimated, checked, resumed and
reported: everything that asks by kind reads these rows. `recipes.stages.registry` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from recipes.stages.fields import StageFields

LIGHT = ("msgspec", "pydantic")
"""Distributions that every engine process imports."""
TRAIN = (*LIGHT, "torch", "transformers", "peft", "trl", "accelerate", "safetensors")
"""Distributions of the stages that train or run a model."""

S = TypeVar("S", bound=StageFields)


@dataclass(frozen=True)
class StageKind(Generic[S]):
    """One row.

    Attributes:
        kind: the word that recipes, journals and manifests have.
        types: the type of the stage's fields, by what the stage makes: a word of the `accepts` lists. A kind of several
            types has a field `output` that chooses one.
        module: has `run(ctx)`. It is imported only in the process of an attempt.
        needs: distributions that the module imports for a stage, the operator's choices considered.
        trains: it has optimizer steps, commits checkpoints and resumes from them.
        scores: its loss and perplexity are of held-out data, so the report compares its stages with each other.
        same_shape_as: the field that names a model of as many parameters as the one that this stage makes, adapts or
            reads.
        reads_model_config: the stage's own code reads config.json of the folder in its field `model`, so a check before
            the launch holds every key of it to what that code supports.
    """

    kind: str
    types: Mapping[str, type[S]]
    module: str
    needs: Callable[[S], tuple[str, ...]]
    trains: bool = False
    scores: bool = False
    same_shape_as: str | None = None
    reads_model_config: bool = False

    @property
    def program(self) -> str:
        """The module that is started with `python -m` for a stage: that of the module's own package."""
        return f"{self.module.partition('.')[0]}.run"

    @property
    def tags(self) -> dict[str, type[S]]:
        """Its types by tag: the kind, followed by what is made where that is a choice."""
        if len(self.types) == 1:
            return dict.fromkeys([self.kind], next(iter(self.types.values())))
        return {f"{self.kind}-{makes}": fields for makes, fields in self.types.items()}

    @property
    def weights(self) -> Literal["model", "adapter"] | None:
        """The weights that a finished stage or a checkpoint of it holds: a model can be exported, an adapter merged
        too."""
        if "model" in self.types:
            return "model"
        return "adapter" if "adapter" in self.types else None
