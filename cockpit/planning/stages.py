"""The plan of a recipe, as far as it can be computed before the run. An unknown number is None, never a guess."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cockpit.planning.files import PlannedFile, files_of_folder, planned_files
from cockpit.planning.memory import (
    LIBRARIES_BYTES,
    OPTIMIZER_BYTES,
    computes_in_bfloat16,
    memory_need,
    shape_of_config,
)
from cockpit.planning.models import OUTPUT_HEAD, linear_shapes
from engines.artifacts.data_folder import TOKENS_JSON
from engines.inputs.hub_cache import cached_model
from engines.json_text import read_json
from engines.look.answer import StageLook
from engines.look.lengths import tokens_read
from engines.machine.device_identity import nvidia_gpus
from engines.processor import native_bfloat16
from exporters.hf_model.architectures import language_settings
from recipes.graph import Graph
from recipes.schema import Recipe
from recipes.stages.decoder.sizes import FEED_FORWARD, Sizes
from recipes.stages.export import ExportStage
from recipes.stages.fake import FakeStage
from recipes.stages.fields import StageFields
from recipes.stages.finetune import FinetuneFields, FinetuneModelStage, FinetuneStage
from recipes.stages.prepare import PrepareTokens
from recipes.stages.pretrain import PretrainStage
from recipes.stages.registry import row_of
from recipes.stages.steps import eval_every, planned_steps, save_every, times_due
from recipes.stages.tokenizer import TokenizerStage
from recipes.stages.training import TrainingFields

FORMAT = 1
WEIGHT_BYTES = 4
"""Weights are trained in float32, also with bf16 autocast."""
MAX_TOKENS_JSON_BYTES = 1024 * 1024
CONFIG_JSON, MAX_CONFIG_BYTES = "config.json", 1024 * 1024


@dataclass(frozen=True)
class StagePlan:
    """The numbers of one stage; None if unknown.

    Attributes:
        name: the stage's name.
        kind: the stage's kind.
        parameters: of the model.
        trainable_parameters: those that the optimizer changes.
        examples: rows or windows that it trains on.
        steps: optimizer steps.
        tokens_per_step: positions of full sequences.
        tokens: read in all steps, without padding.
        operations: floating point operations of all steps, forward and backward.
        evaluations: number of evaluations on the val split during training.
        checkpoints: number of checkpoints that are written.
        checkpoint_bytes: weights and optimizer state of one checkpoint.
        precision: in which number format an adapter is trained on this machine's processor, and why.
        memory_bytes: of all processes of the training at its peak, with their libraries; an estimate.
    """

    name: str
    kind: str
    parameters: int | None = None
    trainable_parameters: int | None = None
    examples: int | None = None
    steps: int | None = None
    tokens_per_step: int | None = None
    tokens: int | None = None
    operations: int | None = None
    evaluations: int | None = None
    checkpoints: int | None = None
    checkpoint_bytes: int | None = None
    precision: str | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Plan:
    """The numbers of every stage, in the order of the recipe, and of every GGUF file whose shapes are known."""

    recipe: str
    stages: list[StagePlan]
    files: list[PlannedFile] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The content of plan.json."""
        return {"format": FORMAT, **asdict(self)}


def plan(recipe: Recipe, graph: Graph | None = None, looks: Mapping[str, StageLook] | None = None) -> Plan:
    """Compute the plan of a recipe.

    Args:
        recipe: the recipe.
        graph: its graph, for the folders that it names.
        looks: what a look at the data of its stages found, by the stage's name.
    """
    by_name: dict[str, StageFields] = {stage.name: stage for stage in recipe.stage}
    exports = [stage for stage in recipe.stage if isinstance(stage, ExportStage)]
    files = [file for stage in exports for file in _files(stage, by_name, graph)]
    seen = looks or {}
    return Plan(
        recipe.name, [_stage_plan(stage, by_name, graph, seen.get(stage.name)) for stage in recipe.stage], files
    )


def adapter_parameters(stage: FinetuneStage, base: PretrainStage, vocab_size: int | None) -> int | None:
    """Parameters that the training of an adapter changes; None if a size is unknown.

    They are r * (inputs + outputs) for each adapted layer, with DoRA also a norm for each output, and every weight of
    the layers in `modules_to_save`.
    """
    layers = linear_layers(base, vocab_size)
    adapted = {name: shape for name, shape in layers.items() if is_target(stage, name)}
    embedding = None if vocab_size is None else (vocab_size, base.hidden_size)
    whole = [_shapes_of(name, {**layers, "model.embed_tokens": embedding}) for name in stage.modules_to_save]
    if not all(whole) or None in adapted.values() or any(None in shapes for shapes in whole):
        return None
    known = {name: shape for name, shape in adapted.items() if shape is not None}
    norms = sum(shape[1] for shape in known.values()) if stage.use_dora else 0
    low_rank = sum(stage.rank_of(name) * sum(shape) for name, shape in known.items())
    return low_rank + norms + sum(math.prod(shape) for shapes in whole for shape in shapes if shape is not None)


def _shapes_of(name: str, layers: Mapping[str, tuple[int, int] | None]) -> list[tuple[int, int] | None]:
    """The sizes of the layers that a name in `modules_to_save` means."""
    return [shape for layer, shape in layers.items() if f".{layer}".endswith(f".{name}")]


def is_target(stage: FinetuneStage, layer: str) -> bool:
    """Whether a linear layer gets an adapter."""
    return stage.adapts(layer, OUTPUT_HEAD)


def linear_layers(stage: PretrainStage, vocab_size: int | None) -> dict[str, tuple[int, int] | None]:
    """Inputs and outputs of every linear layer of a pretrain stage's model by name; None if unknown."""
    found: dict[str, tuple[int, int] | None] = {}
    for layer in range(stage.num_hidden_layers):
        for name, shape in stage.sizes(0).linear.items():
            part = "mlp" if name in FEED_FORWARD else "self_attn"
            found[f"model.layers.{layer}.{part}.{name}"] = shape
    found[OUTPUT_HEAD] = None if vocab_size is None else (stage.hidden_size, vocab_size)
    return found


def _stage_plan(
    stage: StageFields, by_name: Mapping[str, StageFields], graph: Graph | None, look: StageLook | None
) -> StagePlan:
    made = _stage_numbers(stage, by_name, graph, look)
    shape = shape_of(stage, by_name, graph) if isinstance(stage, TrainingFields) else None
    if isinstance(stage, PretrainStage) and shape is not None and made.tokens is not None:
        made = replace(made, operations=made.tokens * shape.training_operations(stage.max_length))
    if shape is None or not isinstance(stage, TrainingFields):
        return made
    bf16 = computes_in_bfloat16(stage, natively=bool(native_bfloat16()))
    need = memory_need(
        stage,
        shape,
        bf16=bf16,
        longest=longest_row(look),
        on_gpu=bool(nvidia_gpus()),
        matrices=matrices_of(stage, by_name, graph),
    )
    return replace(made, memory_bytes=stage.launch.processes * (LIBRARIES_BYTES + need.total))


def shape_of(stage: StageFields, by_name: Mapping[str, StageFields], graph: Graph | None) -> Sizes | None:
    """The shape of a stage's model, by the stage that creates it or by its folder's config.json; None if unknown."""
    base = base_of(stage, by_name)
    if base is not None:
        vocab_size = _vocab_size(base, by_name) or _vocab_of_tokens(_tokens_folder(base, graph))
        return None if vocab_size is None else base.sizes(vocab_size)
    folder = None if graph is None else model_folder(stage, by_name, graph) or cached_folder(stage, by_name, graph)
    try:
        config = None if folder is None else read_json(folder / CONFIG_JSON, MAX_CONFIG_BYTES)
    except (OSError, ValueError):
        return None
    return shape_of_config(language_settings(config)) if isinstance(config, dict) else None


def matrices_of(
    stage: StageFields, by_name: Mapping[str, StageFields], graph: Graph | None
) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear layers in the folder of an adapter's model, as the model names them.

    Empty for other stages, and where no folder has the weights yet.
    """
    if not isinstance(stage, FinetuneStage) or graph is None or base_of(stage, by_name) is not None:
        return {}
    folder = model_folder(stage, by_name, graph) or cached_folder(stage, by_name, graph)
    return {} if folder is None else linear_shapes(folder)


def longest_row(look: StageLook | None) -> int | None:
    """Tokens of the longest row of the data that was looked at; None if it was not read to its end."""
    if look is None or not look.splits or not all(one.read_all for one in look.splits):
        return None
    return max(one.longest for one in look.splits) or None


def cached_folder(stage: StageFields, by_name: Mapping[str, StageFields], graph: Graph) -> Path | None:
    """The folder in the hub cache of the model that a stage's model comes from."""
    for current in _back(stage, by_name):
        reference = graph.inputs.get(current.name, {}).get(row_of(current).same_shape_as or "")
        if reference is not None and reference.origin == "hub":
            return cached_model(reference.name)
    return None


def _stage_numbers(
    stage: StageFields, by_name: Mapping[str, StageFields], graph: Graph | None, look: StageLook | None
) -> StagePlan:
    match stage:
        case PretrainStage():
            made = _training_plan(stage, *_training_sizes(stage, by_name))
            return _with_windows(made, stage, _tokens_folder(stage, graph))
        case TrainingFields():
            made = _training_plan(stage, *_training_sizes(stage, by_name))
            return made if look is None else _with_look(made, look)
        case FakeStage():
            steps = stage.max_steps
            return StagePlan(
                stage.name,
                stage.kind,
                steps=steps,
                evaluations=0 if stage.eval_steps is None else steps // stage.eval_steps,
                checkpoints=times_due(stage.save_steps, steps),
                checkpoint_bytes=stage.checkpoint_bytes,
            )
        case _:
            return StagePlan(stage.name, stage.kind, parameters=_parameters(stage, by_name))


def _training_plan(stage: TrainingFields, parameters: int | None, trainable: int | None) -> StagePlan:
    steps = stage.max_steps
    # Pretraining fills every sequence; the lengths of fine-tuning examples depend on the data.
    per_step = stage.max_length * stage.rows_per_step if isinstance(stage, PretrainStage) else None
    per_parameter = WEIGHT_BYTES + int(OPTIMIZER_BYTES[stage.optim])
    return StagePlan(
        stage.name,
        stage.kind,
        parameters=parameters,
        trainable_parameters=trainable,
        steps=steps,
        tokens_per_step=per_step,
        tokens=None if steps is None or per_step is None else steps * per_step,
        evaluations=None if stage.evaluates else 0,
        checkpoints=None if steps is None or stage.save_strategy == "epoch" else times_due(save_every(stage, 1), steps),
        checkpoint_bytes=None if trainable is None else trainable * per_parameter,
        precision=precision_words(stage.bf16, fp16=stage.fp16) if isinstance(stage, FinetuneFields) else None,
    )


def precision_words(bf16: bool | None, *, fp16: bool | None = None) -> str:
    """In which number format an adapter is trained on this machine: the field's, or what it computes natively."""
    if fp16:
        return "float16 with a scaled loss, by fp16"
    if bf16 is not None:
        return f"{'bfloat16' if bf16 else 'float32'}, by bf16"
    if nvidia_gpus():
        half = "" if fp16 is False else "float16 with a scaled loss at compute capability 7, "
        return f"bfloat16 if the GPU computes in it natively, {half}else float32"
    instructions = native_bfloat16()
    return f"bfloat16, by {instructions}" if instructions else "float32: the processor has no instructions for bfloat16"


def _with_look(made: StagePlan, look: StageLook) -> StagePlan:
    """A plan with the numbers of the data that the stage will read."""
    found = {name: getattr(look, name) for name in ("examples", "steps", "tokens", "evaluations", "checkpoints")}
    return replace(made, **{name: value for name, value in found.items() if value is not None})


def _with_windows(made: StagePlan, stage: PretrainStage, tokens: Path | None) -> StagePlan:
    """A plan with the numbers of token shards that exist now."""
    sizes = {} if tokens is None else _tokens_by_split(tokens)
    examples = sizes.get("train", 0) // stage.max_length
    if not examples:
        return made
    steps = planned_steps(stage, examples)
    evaluates = sizes.get("val", 0) > 1
    return replace(
        made,
        examples=examples,
        steps=steps,
        tokens=tokens_read(stage, [stage.max_length] * examples, steps),
        evaluations=times_due(eval_every(stage, examples), steps) if evaluates else 0,
        checkpoints=times_due(save_every(stage, examples), steps),
    )


def _tokens_folder(stage: PretrainStage, graph: Graph | None) -> Path | None:
    reference = graph.inputs.get(stage.name, {}).get("data") if graph is not None else None
    return None if reference is None else reference.path


def _vocab_of_tokens(folder: Path | None) -> int | None:
    try:
        return None if folder is None else int(read_json(folder / TOKENS_JSON, MAX_TOKENS_JSON_BYTES)["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tokens_by_split(folder: Path) -> dict[str, int]:
    """The lengths of a tokens folder's splits; empty if its tokens.json cannot be read."""
    try:
        splits = read_json(folder / TOKENS_JSON, MAX_TOKENS_JSON_BYTES)["splits"]
        return {str(name): int(entry["tokens"]) for name, entry in splits.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _training_sizes(stage: TrainingFields, by_name: Mapping[str, StageFields]) -> tuple[int | None, int | None]:
    """Parameters of the model, and parameters that the optimizer changes."""
    parameters, base = _parameters(stage, by_name), base_of(stage, by_name)
    if isinstance(stage, PretrainStage | FinetuneModelStage):
        return parameters, parameters
    if isinstance(stage, FinetuneStage) and base is not None:
        return parameters, adapter_parameters(stage, base, _vocab_size(base, by_name))
    return parameters, None


def _files(stage: ExportStage, by_name: Mapping[str, StageFields], graph: Graph | None) -> list[PlannedFile]:
    base = base_of(stage, by_name)
    if base is not None:
        vocab_size = _vocab_size(base, by_name)
        return [] if vocab_size is None else list(planned_files(stage, base, vocab_size))
    folder = model_folder(stage, by_name, graph) if graph is not None else None
    return [] if folder is None else list(files_of_folder(stage, folder))


def model_folder(stage: StageFields, by_name: Mapping[str, StageFields], graph: Graph) -> Path | None:
    """The folder that a stage's model comes from, through merges and adapters; None if a stage creates the model."""
    for current in _back(stage, by_name):
        field = row_of(current).same_shape_as
        reference = graph.inputs.get(current.name, {}).get(field or "")
        if reference is not None and reference.path is not None:
            return reference.path
    return None


def _back(stage: StageFields, by_name: Mapping[str, StageFields]) -> Iterator[StageFields]:
    """The stage, then the stages of this recipe that its model comes from, as far as the shapes stay the same."""
    seen: set[str] = set()
    current: StageFields | None = stage
    while current is not None and current.name not in seen:
        seen.add(current.name)
        yield current
        field = row_of(current).same_shape_as
        current = None if field is None else by_name.get(getattr(current, field))


def _vocab_size(stage: PretrainStage, by_name: Mapping[str, StageFields]) -> int | None:
    tokens = by_name.get(stage.data)
    if not isinstance(tokens, PrepareTokens):
        return None
    tokenizer = by_name.get(tokens.tokenizer)
    return tokenizer.vocab_size if isinstance(tokenizer, TokenizerStage) else None


def base_of(stage: StageFields, by_name: Mapping[str, StageFields]) -> PretrainStage | None:
    """The pretrain stage of this recipe that creates a stage's model; None if the model comes from elsewhere."""
    return next((found for found in _back(stage, by_name) if isinstance(found, PretrainStage)), None)


def _parameters(stage: StageFields, by_name: Mapping[str, StageFields]) -> int | None:
    base = base_of(stage, by_name)
    vocab_size = None if base is None else _vocab_size(base, by_name)
    return None if base is None or vocab_size is None else base.sizes(vocab_size).parameters
