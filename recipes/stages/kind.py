"""The description of a stage kind: one row each, in the file of the kind's fields.

All code that depends on the kind reads these rows: which program runs a stage, its inputs and outputs, the
distributions that it needs, and how it is estimated, checked, resumed and reported. `recipes.stages.registry` lists
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from recipes.stages.fields import StageFields

LIGHT = ("msgspec", "pydantic")
"""Distributions that every engine process imports."""
TRAIN = (*LIGHT, "torch", "transformers", "peft", "accelerate", "safetensors")
"""Distributions of the stages that train or run a model."""
UNSLOTH = ("unsloth", "unsloth_zoo")
"""Distributions that a stage with `backend = "unsloth"` imports besides those of training."""
TESTED: Mapping[str, Mapping[str, str]] = {
    "hf": {"transformers": "5.23", "trl": "1.16", "peft": "0.21", "accelerate": "1.15"},
    "unsloth": {
        "unsloth": "2026.10",
        "unsloth_zoo": "2026.10",
        "transformers": "5.17",
        "trl": "1.15",
        "peft": "0.21",
        "accelerate": "1.15",
    },
}
"""Versions on whose private interfaces the engines rely, by backend: another interpreter must have the same ones."""

S = TypeVar("S", bound=StageFields)


def backend_of(stage: StageFields) -> str:
    """The libraries that load and adapt the stage's model."""
    return str(getattr(stage, "backend", "hf"))


@dataclass(frozen=True)
class StageKind(Generic[S]):
    """One stage kind.

    Attributes:
        kind: its name in recipes, journals and manifests.
        types: the class of the stage's fields, by the stage's output (a word of the `accepts` lists). A kind of several
            types has a field `output` that selects one.
        default_output: the output of a stage of several types that names none; empty where it must name one.
        module: the module with `run(ctx)`. It is imported only in the process of an attempt.
        needs: distributions that the module imports for a stage with the given fields.
        starts_with: a module whose `start(ctx)` runs before `module` is imported, for a stage with the given fields;
            empty for none.
        metrics: names of the metrics that a stage with the given fields reports when it succeeds; a gate may name
            these. A `*` in a name stands for any text.
        metrics_if: fields that add metrics: the name, a value that adds them, and both as a recipe spells them.
        trains: the stage runs optimizer steps, commits checkpoints and resumes from them.
        samples: the stage generates text during training when an operator requests it.
        scores: the stage measures loss and perplexity on held-out data, so the report compares such stages.
        same_shape_as: the field that names a model with as many parameters as the one that this stage makes, adapts or
            reads.
        loss_unit: the unit of the loss of a step.
        reads_model_config: the stage's own code reads config.json of the folder in its field `model`, so a check before
            the launch verifies that the code supports every key.
    """

    kind: str
    types: Mapping[str, type[S]]
    module: str
    needs: Callable[[S], tuple[str, ...]]
    metrics: Callable[[S], tuple[str, ...]]
    starts_with: Callable[[S], str] = lambda _stage: ""
    default_output: str = ""
    trains: bool = False
    samples: bool = False
    scores: bool = False
    metrics_if: tuple[tuple[str, Any, str], ...] = ()
    same_shape_as: str | None = None
    loss_unit: str = "nats per token"
    reads_model_config: bool = False

    @property
    def program(self) -> str:
        """The module that is started with `python -m` for a stage: `run` of the package of `module`."""
        return f"{self.module.partition('.')[0]}.run"

    @property
    def tags(self) -> dict[str, type[S]]:
        """The types by tag: the kind, and the output too for a kind of several types, except its default output."""
        return {self.tag_of(makes): fields for makes, fields in self.types.items()}

    def tag_of(self, output: str) -> str:
        """The tag of the type with an output; empty means the default one."""
        alone = len(self.types) == 1 or output in ("", self.default_output)
        return self.kind if alone else f"{self.kind}-{output}"

    @property
    def weights(self) -> tuple[Literal["model", "adapter"], ...]:
        """The weights that finished stages of this kind, and their checkpoints, can have: a model can be exported, an
        adapter also merged."""
        kinds: tuple[Literal["model", "adapter"], ...] = ("model", "adapter")
        return tuple(word for word in kinds if word in self.types)
