"""The finetune stage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from recipes.setting import setting
from recipes.stages.data_fields import DATASET, READ_METRICS, DataFields
from recipes.stages.fields import MODEL_OUTPUTS
from recipes.stages.kind import TRAIN, StageKind
from recipes.stages.label_fields import LABEL_METRICS, LabelFields
from recipes.stages.training import EVALUATES, TrainingFields, training_metrics

ALL_LINEAR = "all-linear"
"""In place of the names in `target_modules`: every linear layer except the output head, as in PEFT."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a Llama."""


class FinetuneStage(TrainingFields, DataFields, LabelFields):
    """LoRA fine-tuning of a model, with its chat template and the loss on answers only."""

    kind: Literal["finetune"] = "finetune"
    model: str = setting(
        section="Inputs", at_resume="input", accepts=MODEL_OUTPUTS, help="The model: a stage, a folder, or a hub id."
    )
    data: str = setting(
        section="Inputs",
        at_resume="input",
        accepts=("messages", "text", DATASET),
        help="The conversations, or texts in which every token counts: a messages or text stage, a file, a folder of"
        " files, or the id of a dataset in the hub cache.",
    )
    start_from: str | None = setting(
        None,
        section="Inputs",
        at_resume="input",
        advanced=True,
        accepts=("adapter",),
        help="Adapter whose weights the training starts from: a stage, a folder, or RUN:STAGE."
        " A checkpoint (RUN:STAGE@STEP) is continued instead, with its optimizer and its steps.",
    )
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
    target_modules: list[str] = setting(
        default_factory=lambda: list(PROJECTIONS),
        section="LoRA",
        at_resume="shapes",
        min_length=1,
        instead=ALL_LINEAR,
        suggests=(*PROJECTIONS, ALL_LINEAR),
        help="Linear layers that get an adapter, by the last parts of their names in the model; all-linear selects"
        " every one except the output head.",
    )

    padding_free: bool = setting(
        True,
        section="Batch",
        at_resume="change",
        advanced=True,
        help="Compute the rows of a batch without padding: in one sequence whose rows do not see each other, or one by"
        " one where the model's attention cannot keep them apart. The loss is the same.",
    )

    @field_validator("target_modules", mode="before")
    @classmethod
    def _one_word(cls, value: Any) -> Any:
        return [value] if value == ALL_LINEAR else value

    @model_validator(mode="after")
    def _all_or_names(self) -> FinetuneStage:
        if ALL_LINEAR in self.target_modules and len(self.target_modules) > 1:
            raise ValueError(
                f"target_modules — {ALL_LINEAR} cannot be combined with names; got {len(self.target_modules)} entries;"
                f' allowed: "{ALL_LINEAR}" alone, or names of linear layers'
            )
        return self


FINETUNE = StageKind(
    kind="finetune",
    types={"adapter": FinetuneStage},
    module="engines.finetune.stage",
    needs=lambda stage: (*TRAIN, *stage.report_to),
    metrics=lambda stage: tuple(dict.fromkeys((*training_metrics(stage), *LABEL_METRICS, *READ_METRICS))),
    metrics_if=EVALUATES,
    trains=True,
    samples=True,
    same_shape_as="model",
)
