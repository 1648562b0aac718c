"""All stage kinds, and lookups by kind, tag, table and stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from recipes.stages.dpo import DPO
from recipes.stages.evaluate import EVALUATE
from recipes.stages.export import EXPORT
from recipes.stages.fake import FAKE
from recipes.stages.fields import StageFields
from recipes.stages.finetune import FINETUNE
from recipes.stages.kind import StageKind
from recipes.stages.merge import MERGE
from recipes.stages.prepare import PREPARE
from recipes.stages.pretrain import PRETRAIN
from recipes.stages.tokenizer import TOKENIZER

STAGE_KINDS: Mapping[str, StageKind[Any]] = {
    row.kind: row for row in (PREPARE, TOKENIZER, PRETRAIN, FINETUNE, DPO, EVALUATE, MERGE, EXPORT, FAKE)
}
"""The rows by kind, in the order in which documents and messages list them."""

STAGE_TYPES: Mapping[str, type[StageFields]] = {
    tag: fields for row in STAGE_KINDS.values() for tag, fields in row.tags.items()
}
"""Every stage type by its tag: the kind, or kind and output for a kind of several types."""

_KINDS = {tag: row.kind for row in STAGE_KINDS.values() for tag in row.tags}
_TAGS = {fields: tag for tag, fields in STAGE_TYPES.items()}
_OUTPUTS = {fields: makes for row in STAGE_KINDS.values() for makes, fields in row.types.items()}


def modules_of(program: str) -> dict[str, str]:
    """The modules of the kinds that this program runs, by kind.

    Args:
        program: a module that is started with `python -m`, such as `engines.run`.
    """
    return {row.kind: row.module for row in STAGE_KINDS.values() if row.program == program}


def row_of(stage: StageFields) -> StageKind[Any]:
    """The row of a stage's kind."""
    return STAGE_KINDS[stage.kind]


def kind_of(tag: str) -> str:
    """The kind of a stage type (a key of `STAGE_TYPES`)."""
    return _KINDS[tag]


def tags_of(kind: str) -> list[str]:
    """The tags of a kind: one for each of its outputs."""
    return list(STAGE_KINDS[kind].tags)


def tag_of_stage(stage: StageFields) -> str:
    """The tag of the stage's type, a key of `STAGE_TYPES`."""
    return _TAGS[type(stage)]


def tag_of_table(table: Any) -> str | None:
    """The tag of a stage table, from its `kind` and `output`; None if there is no such type."""
    kind = table.get("kind") if isinstance(table, dict) else None
    row = STAGE_KINDS.get(kind) if isinstance(kind, str) else None
    if row is None:
        return None
    tag = row.tag_of(str(table.get("output", row.default_output)))
    return tag if tag in STAGE_TYPES else None


def output_of(stage: StageFields) -> str:
    """The output of a stage, as a word of the `accepts` lists."""
    return _OUTPUTS[type(stage)]


def controllable_kinds(*, sampling: bool) -> frozenset[str]:
    """The kinds whose engines carry out requests other than a stop; with `sampling`, those that sample text too."""
    return frozenset(kind for kind, row in STAGE_KINDS.items() if row.trains and (row.samples or not sampling))


def carries_out(kind: str, *, sampling: bool) -> bool:
    """Whether engines of this kind take such requests; True for a kind that this version does not know."""
    return kind not in STAGE_KINDS or kind in controllable_kinds(sampling=sampling)


def output_word(tag: str) -> str:
    """The output of a stage type (a key of `STAGE_TYPES`), as a word of the `accepts` lists."""
    return _OUTPUTS[STAGE_TYPES[tag]]


def trains(kind: str) -> bool:
    """Whether stages of this kind commit checkpoints; False for a kind that this version does not know."""
    row = STAGE_KINDS.get(kind)
    return row is not None and row.trains


def makes(kind: str, output: str) -> bool:
    """Whether stages of this kind can have this output, a word of the `accepts` lists."""
    row = STAGE_KINDS.get(kind)
    return row is not None and output in row.types


def loss_unit(kind: str) -> str:
    """The unit of the loss of a step; empty for a kind that this version does not know."""
    row = STAGE_KINDS.get(kind)
    return "" if row is None else row.loss_unit


def scores(kind: str) -> bool:
    """Whether stages of this kind measure loss and perplexity on held-out data."""
    row = STAGE_KINDS.get(kind)
    return row is not None and row.scores


def weights(kind: str) -> tuple[Literal["model", "adapter"], ...]:
    """The weights that finished stages of this kind can have; empty for a kind without weights."""
    row = STAGE_KINDS.get(kind)
    return () if row is None else row.weights
