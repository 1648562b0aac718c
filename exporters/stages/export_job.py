"""The state of an export stage, shared by its steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.context import StageContext
from engines.events.results import Evaluated
from exporters.gguf.adapter import AdapterPlan
from exporters.gguf.file_names import LORA, ModelName, file_part
from exporters.gguf.importance import Importance
from exporters.gguf.quant_types import FilePlan
from exporters.gguf.split import split_larger, written_parts
from exporters.gguf.write import Model
from exporters.lora.trained_model import TrainedModel
from exporters.proof.fixture import Fixture
from exporters.proof.parity import Comparison
from exporters.stages.one_pass import OnePass
from recipes.stages.export import ExportStage, shard_bytes


@dataclass(frozen=True)
class AdapterFile:
    """A GGUF adapter to write. `bytes` is the size of its tensors."""

    name: str
    folder: Path
    manifest_sha256: str | None
    plan: AdapterPlan
    path: Path
    bytes: int


@dataclass
class Export:
    """The state of an export stage.

    Attributes:
        four_bit: the model that was trained over a 4-bit base, of which the exported model is the 16-bit merge.
        trained_is_gone: there is such a model, and the files cannot be compared with it.
        files: the record of each written file, by its name.
        reasons: why a file is refused, by its name.
    """

    ctx: StageContext[ExportStage]
    model: Model
    plans: list[FilePlan]
    threads: int
    importance: Importance | None = None
    adapters: list[AdapterFile] = field(default_factory=list)
    i2s_scales: dict[str, float] = field(default_factory=dict)
    prompts: list[list[int]] = field(default_factory=list)
    one_pass: OnePass | None = None
    four_bit: TrainedModel | None = None
    trained_is_gone: bool = False
    fixture: Fixture | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    reasons: dict[str, list[str]] = field(default_factory=dict)

    def refuse(self, path: Path, proof: str, problems: list[str]) -> None:
        """Record a proof's problems with a file; a file with any is set aside at the end."""
        if problems:
            self.reasons.setdefault(path.name, []).extend(f"{proof}: {text}" for text in problems)

    @property
    def accepted(self) -> list[FilePlan]:
        """The plans whose files no proof has refused so far."""
        return [plan for plan in self.plans if self.path(plan).name not in self.reasons]

    def path(self, plan: FilePlan) -> Path:
        """The final name of a plan's file; of several, the first, which llama.cpp loads."""
        return self.parts(plan)[0]

    def parts(self, plan: FilePlan) -> list[Path]:
        """The files of a plan: one, or the parts of a larger one once it was split."""
        return written_parts(self.target(plan.title))

    def split(self) -> None:
        """Split the written files that are larger than the recipe allows."""
        limit = shard_bytes(self.ctx.stage.max_shard_size)
        for plan in self.plans:
            path = self.path(plan)
            if path.stat().st_size > limit:
                self.ctx.phase(f"splitting {plan.title}")
                split_larger(path, limit)

    def split_bytes(self) -> int:
        """The bytes of disk that splitting takes besides the files: those of the largest file that is split."""
        limit = shard_bytes(self.ctx.stage.max_shard_size)
        return max((plan.bytes for plan in self.plans if plan.bytes > limit), default=0)

    def bytes_of(self, plan: FilePlan) -> int:
        """Size of a plan's written files."""
        return sum(path.stat().st_size for path in self.parts(plan))

    def target(self, file_type: str) -> Path:
        """The final name of the file of a type."""
        return self.ctx.out / self.title.file(file_type)

    @property
    def stops(self) -> list[int]:
        """Tokens that end an answer."""
        return sorted(self.model.vocabulary.ends)

    def adapter_path(self, name: str, dtype: str) -> Path:
        """The final name of a GGUF adapter."""
        return self.ctx.out / ModelName(f"{self.title.stem}-{file_part(name)}").file(dtype, LORA)

    @property
    def title(self) -> ModelName:
        """The model's name, with which every file's name begins."""
        assert self.model.title is not None, "an export names its model"
        return self.model.title


def to_trained(prefix: str, comparison: Comparison) -> dict[str, float]:
    """The metrics of a comparison with the trained model."""
    start = f"{prefix}_" if prefix else ""
    return {f"{start}kl_to_trained": comparison.mean_kl, f"{start}top1_to_trained": comparison.top1}


def report_comparison(
    export: Export, prefix: str, protocol: str, comparison: Comparison, more: dict[str, float]
) -> None:
    """Keep a comparison's figures as metrics that begin with `prefix`, and journal it under `parity:` and its
    protocol."""
    values = {"mean_kl": comparison.mean_kl, "max_kl": comparison.max_kl, "top1": comparison.top1, **more}
    export.metrics |= {f"{prefix}_{name}": value for name, value in values.items()}
    export.ctx.emit(
        Evaluated(
            stage=export.ctx.stage_name,
            attempt=export.ctx.attempt,
            step=None,
            loss=comparison.loss,
            perplexity=math.exp(min(comparison.loss, 700.0)),
            tokens=comparison.loss_tokens,
            protocol=f"parity:{protocol}",
            metrics={**values, "reference_loss": comparison.reference_loss, "positions": float(comparison.positions)},
        )
    )
