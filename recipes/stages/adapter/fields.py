"""The fields of an adapter: what PEFT's LoraConfig is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import field_validator, model_validator

from recipes.problems import shown
from recipes.setting import setting
from recipes.stages.adapter.patterns import MOST_REPEATS_OF_TARGETS, is_pattern, require_pattern
from recipes.stages.fields import StageFields

ALL_LINEAR = "all-linear"
"""In place of the names in `target_modules`: every linear layer except the output head, as in PEFT."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a Llama."""
INITIAL = ("true", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora", "loftq")
"""Usual values of `init_lora_weights`."""
JOINED = "transformers joins this layer from several tensors of the model's files, so no merge could read it"
"""Why a layer of experts is not trained as a whole."""
JOINED_HINT = 'name other layers, such as embed_tokens, or train all weights: output = "model"'
_INITIAL = re.compile(r"true|gaussian|orthogonal|pissa|pissa_niter_[1-9][0-9]?|olora|loftq")


class AdapterFields(StageFields):
    """The fields of a LoRA adapter, as PEFT names them."""

    r: int = setting(16, section="LoRA", at_resume="shapes", ge=1, help="Rank of the adapter.")
    lora_alpha: float = setting(
        32.0,
        section="LoRA",
        at_resume="arithmetic",
        gt=0,
        help="Scale of the adapter; its output is multiplied by lora_alpha / r.",
    )
    lora_dropout: float = setting(
        0.0, section="LoRA", at_resume="change", ge=0, lt=1, help="Dropout on the adapter's input during training."
    )
    use_rslora: bool = setting(
        False,
        section="LoRA",
        at_resume="arithmetic",
        advanced=True,
        help="Scale by lora_alpha / sqrt(r) instead (rsLoRA).",
    )
    use_dora: bool = setting(
        False,
        section="LoRA",
        at_resume="shapes",
        advanced=True,
        help="Train the norms of the weights' rows apart from their directions (DoRA); slower, often better at low r.",
    )
    init_lora_weights: str = setting(
        "true",
        section="LoRA",
        at_resume="arithmetic",
        advanced=True,
        suggests=INITIAL,
        help="First weights: true (A random, B zero), gaussian, orthogonal, or a part of the base model (pissa,"
        " pissa_niter_N, olora). With a part of the base model, the output is a plain LoRA adapter with 2 r over the"
        " unchanged base. loftq, with load_in_4bit: what the 4 bits lose, as far as rank r can express it.",
    )
    target_modules: list[str] = setting(
        default_factory=lambda: list(PROJECTIONS),
        section="LoRA",
        at_resume="shapes",
        min_length=1,
        instead=ALL_LINEAR,
        or_pattern=True,
        suggests=(*PROJECTIONS, ALL_LINEAR),
        help="Linear layers that get an adapter, by the last parts of their names in the model; all-linear selects"
        " every one except the output head, and a regular expression those whose whole names it matches.",
    )
    layers_to_transform: list[int] = setting(
        default_factory=list,
        section="LoRA",
        at_resume="shapes",
        advanced=True,
        help="Numbers of the decoder layers that get an adapter, from 0; empty means all.",
    )
    rank_pattern: dict[str, int] = setting(
        default_factory=dict,
        section="LoRA",
        at_resume="shapes",
        advanced=True,
        help="Layers with a rank of their own instead of r, by the last parts of their names or a regular expression.",
    )
    alpha_pattern: dict[str, float] = setting(
        default_factory=dict,
        section="LoRA",
        at_resume="arithmetic",
        advanced=True,
        help="Layers with a scale of their own instead of lora_alpha, named as in rank_pattern.",
    )
    modules_to_save: list[str] = setting(
        default_factory=list,
        section="LoRA",
        at_resume="shapes",
        advanced=True,
        suggests=("embed_tokens", "lm_head"),
        help="Layers that are trained as a whole and saved beside the adapter, by the last parts of their names.",
    )
    bias: Literal["none", "lora_only", "all"] = setting(
        "none",
        section="LoRA",
        at_resume="shapes",
        advanced=True,
        help="Biases that are trained: none, those of the layers with an adapter, or all.",
    )

    @field_validator("target_modules", mode="before")
    @classmethod
    def _one_word(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) and (value == ALL_LINEAR or is_pattern(value)) else value

    @field_validator("init_lora_weights", mode="before")
    @classmethod
    def _true_as_word(cls, value: Any) -> Any:
        return "true" if value is True else value

    @model_validator(mode="after")
    def _all_or_names(self) -> AdapterFields:
        alone = [entry for entry in self.target_modules if entry == ALL_LINEAR or is_pattern(entry)]
        if alone and len(self.target_modules) > 1:
            what = ALL_LINEAR if alone[0] == ALL_LINEAR else "a regular expression"
            raise ValueError(
                f"target_modules — {what} cannot be combined with names; got {len(self.target_modules)} entries;"
                f' allowed: "{ALL_LINEAR}" alone, one regular expression alone, or names of linear layers'
            )
        if self.pattern:
            require_pattern("target_modules", self.pattern, MOST_REPEATS_OF_TARGETS)
        if self.layers_to_transform and self.pattern:
            raise ValueError(
                "layers_to_transform — a regular expression selects the layers already; got both; allowed: names in"
                " target_modules, or no layers_to_transform"
            )
        if self.layers_to_transform and min(self.layers_to_transform) < 0:
            raise ValueError(
                f"layers_to_transform — layers are counted from 0; got {min(self.layers_to_transform)}; allowed:"
                " numbers from 0"
            )
        return self

    @model_validator(mode="after")
    def _patterns(self) -> AdapterFields:
        for field, values in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            for key, value in values.items():
                require_pattern(field, key)
                if value <= 0:
                    raise ValueError(f"{field} — out of range; got {value} for {shown(key)}; allowed: a number > 0")
        odd = [rank for rank in self.rank_pattern.values() if rank % 2]
        if self.init_lora_weights == "orthogonal" and odd:
            raise ValueError(
                f"rank_pattern — an orthogonal initialization needs even ranks; got {odd[0]}; allowed: even ranks"
            )
        return self

    @model_validator(mode="after")
    def _one_way_for_each_layer(self) -> AdapterFields:
        both = [name for name in self.modules_to_save if name in self.target_modules]
        if both:
            raise ValueError(
                f"modules_to_save — a layer is trained as a whole or gets an adapter; got {', '.join(both)}, which"
                " target_modules names too; allowed: each name in one of the two"
            )
        return self

    @model_validator(mode="after")
    def _first_weights(self) -> AdapterFields:
        value = self.init_lora_weights
        if not _INITIAL.fullmatch(value):
            raise ValueError(
                f"init_lora_weights — not an initialization; got {value!r}; allowed: true, gaussian, orthogonal, pissa,"
                " pissa_niter_1 to pissa_niter_99, olora, or loftq"
            )
        if self.use_dora and self.takes_from_base:
            raise ValueError(
                f"init_lora_weights — {value} cannot be combined with use_dora; got {value!r} and use_dora = true;"
                " allowed: use_dora = false, or true, gaussian, orthogonal"
            )
        if value == "orthogonal" and self.r % 2:
            raise ValueError(f"r — an orthogonal initialization needs an even rank; got {self.r}; allowed: an even r")
        return self

    @property
    def takes_from_base(self) -> bool:
        """Whether the first weights are a part of the base model, which is taken out of it."""
        return self.init_lora_weights.startswith(("pissa", "olora"))

    @property
    def pattern(self) -> str:
        """The regular expression of `target_modules`; empty where it has names."""
        return next((entry for entry in self.target_modules if is_pattern(entry)), "")

    def adapts(self, layer: str, output_head: str) -> bool:
        """Whether a linear layer gets an adapter, by its dotted name, as in PEFT.

        A name is the end of a dotted name, and a regular expression matches all of it.
        """
        if self.pattern:
            return re.fullmatch(self.pattern, layer) is not None
        if self.target_modules == [ALL_LINEAR]:
            named = layer != output_head
        else:
            named = any(f".{layer}".endswith(f".{name}") for name in self.target_modules)
        return named and (not self.layers_to_transform or number_of_layer(layer) in self.layers_to_transform)

    def absent_layers(self, layers: Iterable[str]) -> list[int]:
        """The numbers in `layers_to_transform` that no layer of a model has: PEFT would train without them."""
        numbers = {number_of_layer(layer) for layer in layers}
        return [number for number in self.layers_to_transform if number not in numbers]

    def rank_of(self, layer: str) -> int:
        """The rank of a layer's adapter: that of the first key of `rank_pattern` that matches the end of its name."""
        found = (rank for key, rank in self.rank_pattern.items() if re.match(rf"(.*\.)?({key})$", layer))
        return next(found, self.r)


def number_of_layer(layer: str) -> int | None:
    """The number of the decoder layer in a dotted name, as PEFT finds it; None without one."""
    found = re.match(r".*\.[^.]*\.(\d+)\.", layer)
    return None if found is None else int(found.group(1))


def numbers_of_layers(layers: Iterable[str]) -> str:
    """The first and the last number of a model's decoder layers, by the names of its linear layers."""
    numbers = sorted(number for number in map(number_of_layer, layers) if number is not None)
    return f"the model has {numbers[0]} to {numbers[-1]}" if numbers else "the model has no numbered layers"
