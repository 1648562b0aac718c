"""Which program a configuration is for, and its import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cockpit.importing import arguments, axolotl, llama_factory, llama_factory_v1
from cockpit.importing.config import Config
from cockpit.importing.draft import ADAPTER, TUNED, Draft, Outcome
from cockpit.importing.launchers import accelerate
from cockpit.importing.llama_factory_data import PLACES
from cockpit.importing.registry import convert_registry
from cockpit.importing.sources import join_stages
from recipes.problems import OperatorError, printable

LLAMA_FACTORY, AXOLOTL, TRL, UNSLOTH, REGISTRY = "llama-factory", "axolotl", "trl", "unsloth", "dataset-info"
PROGRAMS = {
    LLAMA_FACTORY: llama_factory.PROGRAM,
    AXOLOTL: axolotl.PROGRAM,
    TRL: arguments.TRL,
    UNSLOTH: arguments.UNSLOTH,
    REGISTRY: f"{llama_factory.PROGRAM}'s dataset_info.json",
}
"""The values of `--program`, and what each is called in reports."""
_SIGNS = {
    LLAMA_FACTORY: {
        "finetuning_type", "lora_rank", "lora_target", "cutoff_len", "template", "dataset_dir", "export_dir",
        "val_size", "infer_backend", "do_predict", "dataset", "model_name_or_path", "stage", "adapter_name_or_path",
    },
    AXOLOTL: {"base_model", "micro_batch_size", "num_epochs", "sequence_len", "datasets", "val_set_size", "adapter",
              "lora_r", "lora_target_linear", "wandb_project", "pretraining_dataset", "sample_packing", "rl"},
    TRL: {"model_name_or_path", "dataset_name", "lora_r", "use_peft", "per_device_train_batch_size", "learning_rate",
          "max_length", "num_train_epochs", "max_seq_length", "model_name", "dataset_text_field", "packing", "r",
          "target_modules", "lora_alpha", "gradient_accumulation_steps", "assistant_only_loss"},
}  # fmt: skip
"""Keys by which a program's file is recognized; it needs two of them."""


@dataclass(frozen=True)
class Imported:
    """What an import made.

    Attributes:
        program: the name of the program.
        stages: the fields of each stage, by its name, in the recipe's order; empty if there is no recipe.
        outcomes: what became of each key, in the file's order.
    """

    path: Path
    program: str
    stages: dict[str, dict[str, Any]]
    outcomes: tuple[Outcome, ...]
    method: str = ADAPTER
    """The type of the stage that trains."""
    registry: bool = False
    """Every stage prepares a data set of a registry."""

    @property
    def missing(self) -> list[Outcome]:
        """The keys because of which there is no recipe."""
        return [outcome for outcome in self.outcomes if outcome.status == "missing"]


def import_config(
    config: Config, program: str | None, only: Sequence[str] = (), launch: Config | None = None
) -> Imported:
    """The stages of a configuration.

    Args:
        config: the configuration.
        program: a key of `PROGRAMS`; None finds it by the file's keys.
        only: data sets of a registry to import; all by default.
        launch: a configuration of `accelerate launch` that the training is started with.

    Raises:
        OperatorError: the file is of no program that is known here.
    """
    program = program or program_of(config)
    draft = Draft(config, PROGRAMS[program])
    if program == REGISTRY:
        convert_registry(draft, only)
    elif program == LLAMA_FACTORY:
        second = len(llama_factory_v1.SIGNS & config.entries.keys()) > 1
        (llama_factory_v1 if second else llama_factory).convert(draft)
    elif program == AXOLOTL:
        axolotl.convert(draft)
    else:
        if program == TRL and arguments.is_unsloth(draft):
            draft.program = arguments.UNSLOTH
        arguments.convert(draft)
    if launch is not None:
        require_accelerate(launch)
        if program == REGISTRY or TUNED not in draft.stages:
            raise OperatorError(
                "--accelerate — applies to a training; the configuration describes none", "leave it out"
            )
        accelerate.apply_launch(draft, launch)
    if program != REGISTRY and TUNED in draft.stages:
        join_stages(draft)
        draft.settle()
    order = {key: number for number, key in enumerate(config.entries)}
    outcomes = sorted(draft.outcomes, key=lambda one: (one.line == 0, one.line, order.get(one.key, len(order))))
    return Imported(
        config.path, draft.program, draft.stages, tuple(outcomes), draft.method, registry=program == REGISTRY
    )


def require_accelerate(config: Config) -> None:
    """Refuse a file that is not a configuration of `accelerate launch`.

    Raises:
        OperatorError: it has none of its keys.
    """
    if len(accelerate.SIGNS & config.entries.keys()) < 2:
        raise OperatorError(
            f"--accelerate — {printable(str(config.path), 400)} is not a configuration of accelerate launch",
            "give the file that accelerate config writes, with distributed_type and num_processes",
        )


def program_of(config: Config) -> str:
    """The program whose keys the file has.

    Raises:
        OperatorError: none, or a file that describes no training.
    """
    if config.calls:
        return TRL
    values = [entry.value for entry in config.entries.values()]
    if all(isinstance(value, dict) and set(PLACES) & value.keys() for value in values):
        return REGISTRY
    keys = config.entries.keys()
    if len(accelerate.SIGNS & keys) > 1 and "base_model" not in keys and "model_name_or_path" not in keys:
        name = printable(str(config.path), 400)
        raise OperatorError(
            f"{name} is a configuration of accelerate launch: it says over how many processes a training computes, and"
            " not what is trained",
            f"give the training's configuration or script as CONFIG, and this file with --accelerate {name}",
        )
    counts = {program: len(signs & keys) for program, signs in _SIGNS.items()}
    if "base_model" in keys or ("datasets" in keys and "model_name_or_path" not in keys):
        return AXOLOTL
    if "model_name_or_path" in keys:
        counts[AXOLOTL] = 0
    if len(llama_factory_v1.SIGNS & keys) > 1:
        return LLAMA_FACTORY
    best = max(counts, key=lambda program: counts[program])
    if counts[best] < 2:
        shown = ", ".join(printable(key, 40) for key in list(keys)[:8])
        raise OperatorError(
            f"{printable(str(config.path), 400)}: not a configuration that is known here; its keys: {shown}",
            f"known are files of {', '.join(PROGRAMS.values())}; --program names one",
        )
    return best
