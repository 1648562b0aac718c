"""A look at the data of one stage: its rows read and labelled as the stage's engine does it, and counted."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engines.artifacts.data_folder import TOKENS_JSON
from engines.data.door import Located, ReadCounts, Refused, each_row, source_of_stage, splits_in
from engines.data.tokens_manifest import read_tokens_manifest
from engines.forward.packing import longer_than_a_sequence, packs_of
from engines.inputs.code_or_rows import asks_about_code, unused_warning
from engines.inputs.data_place import UNSPLIT
from engines.labels.label import label_rows
from engines.labels.pairs import LabelledPair, label_pairs
from engines.labels.row import DroppedRow, LabelCounts, LabelledRow, LabelRules, RefusedRow
from engines.labels.stage_rows import Warnings, why_no_evaluation
from engines.labels.vocabulary import Vocabulary
from engines.look.answer import DEFECTS, Defect, Job, SplitLook, StageLook
from engines.look.lengths import histogram, tokens_read
from engines.look.tokenizer import TOKENIZER_JSON, embedding_rows, view_and_rules
from recipes import quantities
from recipes.problems import OperatorError
from recipes.stages.data_fields import ReadFields
from recipes.stages.dpo import PreferenceFields
from recipes.stages.evaluate import EvaluateStage
from recipes.stages.fields import StageFields
from recipes.stages.finetune import FinetuneFields
from recipes.stages.prepare import PrepareMessages
from recipes.stages.registry import STAGE_TYPES, tag_of_table
from recipes.stages.steps import eval_every, planned_steps, save_every, times_due

Clock = Callable[[], float]
_ENDS = ("bos_token", "eos_token", "pad_token")


def stage_of(table: dict[str, Any]) -> StageFields:
    """A stage from its fields, as recipe.json has them."""
    return STAGE_TYPES[str(tag_of_table(table))].model_validate(table)


def look_at(
    job: Job, *, label_s: float, read_s: float, scratch: Path | None = None, clock: Clock = time.monotonic
) -> StageLook:
    """Read the rows that the stage will read, label them, and count.

    Args:
        job: the stage and the places of its inputs.
        label_s: seconds after which no more rows are labelled; they are still read.
        read_s: seconds after which no more rows are read.
        scratch: a folder for the output of a prepare stage; None: the job has none.
        clock: gives seconds.
    """
    stage = stage_of(job.stage)
    look = StageLook(stage.name)
    if not isinstance(stage, ReadFields):
        return look
    if _has_no_rows(stage, Path(job.data)):
        return _of_tokens(look, stage, Path(job.data))
    place = Path(job.data)
    if job.prepare is not None:
        from engines.look.prepared import prepared_rows  # with numpy: most looks need neither

        assert scratch is not None, "the sender of the job gives a folder"
        try:
            place = prepared_rows(job.prepare, job.data, scratch)
        except (OperatorError, ImportError, MemoryError) as error:
            look.unlabelled = f"its data is not divided yet: {error}"
            return look
    began_s = clock()
    looker = _Look(look, stage, place, job.model, lambda: clock() - began_s, label_s, read_s)
    try:
        looker.run()
        if isinstance(stage, PrepareMessages) and scratch is not None:
            looker.divide(job, scratch)
    except OperatorError as error:
        looker.refusal(error)
    except MemoryError:
        looker.defect("data", f"{job.data}: a row needs more memory than an examination may take", "shorten the row")
    return look


def _has_no_rows(stage: ReadFields, place: Path) -> bool:
    """Whether a stage's data is tokens, or code."""
    if isinstance(stage, PrepareMessages):
        return bool(stage.command) or asks_about_code(stage, place)
    return (place / TOKENS_JSON).is_file()


def _of_tokens(look: StageLook, stage: ReadFields, place: Path) -> StageLook:
    """What a training on token shards will do: their windows are known without reading them."""
    if not isinstance(stage, FinetuneFields):
        return look
    if isinstance(stage, PreferenceFields):
        look.defects.append(Defect("data", f"{place}: tokens are not pairs of answers", "give preferences"))
        return look
    for problem, way_out in stage.unread_with_tokens():
        field, _, what = problem.partition(" — ")
        look.defects.append(Defect(field, what, way_out))
    try:
        splits = read_tokens_manifest(place).splits
    except OperatorError as error:
        look.defects.append(Defect("data", error.message, error.hint))
        return look
    tokens = splits["train"].tokens if "train" in splits else 0
    windows = tokens // stage.max_length
    if not windows:
        message = f"{place}: the train split has {tokens} tokens, fewer than one window of {stage.max_length}"
        look.defects.append(Defect("data", message, "prepare more text, or lower max_length"))
        return look
    look.max_length, look.examples = stage.max_length, windows
    look.steps = planned_steps(stage, windows)
    look.checkpoints = times_due(save_every(stage, windows), look.steps)
    evaluates = "val" in splits and splits["val"].tokens > 1
    look.evaluations = times_due(eval_every(stage, windows) if evaluates else None, look.steps)
    look.tokens = tokens_read(stage, [stage.max_length] * windows, look.steps)
    return look


class _Look:
    """One look in progress."""

    def __init__(
        self,
        look: StageLook,
        stage: ReadFields,
        place: Path,
        model: str | None,
        passed_s: Clock,
        label_s: float,
        read_s: float,
    ) -> None:
        self._look = look
        self._stage = stage
        self._source = source_of_stage(stage, place, str(place))
        self._passed_s = passed_s
        self._label_s, self._read_s = label_s, read_s
        self._rules: LabelRules | None = None
        self._view: Vocabulary | None = None
        self._embedding = 0
        self._counts = ReadCounts()
        self._lengths: dict[str, array[int]] = {}
        self._set_up_labels(model)

    def defect(self, field: str, message: str, hint: str = "") -> None:
        """Add a defect; the same one twice is one."""
        found = Defect(field, message, hint)
        if found in self._look.defects:
            return
        if len(self._look.defects) < DEFECTS:
            self._look.defects.append(found)
        else:
            self._look.more_defects += 1

    def refusal(self, error: OperatorError, field: str = "data") -> None:
        """Add what the stage would refuse, at the field that the message begins with, or at `field`."""
        named, dash, what = error.message.partition(" — ")
        if dash and named in type(self._stage).model_fields:
            self.defect(named, what, error.hint)
        else:
            self.defect(field, error.message, error.hint)

    def divide(self, job: Job, scratch: Path) -> None:
        """Divide the rows of a prepare stage, if all of them were read and none was refused.

        Raises:
            OperatorError: the stage would refuse to divide them.
            MemoryError: a row needs more memory than an examination may take.
        """
        look = self._look
        if look.defects or not all(one.read_all for one in look.splits):
            return
        try:
            from engines.look.prepared import TooLargeError, prepared_rows, what_is_prepared  # with numpy
        except ImportError:
            return  # the check of packages reports it
        try:
            warnings, look.divided = what_is_prepared(prepared_rows(job.stage, job.data, scratch))
        except (TooLargeError, ImportError):
            return
        look.warnings += warnings

    def run(self) -> None:
        if isinstance(self._stage, PrepareMessages) and (unused := unused_warning(self._stage, about_code=False)):
            self._look.warnings.append(unused)
        for split in self._splits():
            self._read_split(split)
        if isinstance(self._stage, FinetuneFields):
            self._count_training(self._stage)

    def _set_up_labels(self, model: str | None) -> None:
        stage, look = self._stage, self._look
        if not isinstance(stage, FinetuneFields | EvaluateStage):
            return
        look.max_length = stage.max_length
        if model is None:
            look.unlabelled = "the model does not exist yet"
            return
        if not (Path(model) / TOKENIZER_JSON).is_file():
            look.unlabelled = f"the model's folder has no {TOKENIZER_JSON}"
            return
        try:
            self._view, self._rules = view_and_rules(stage, Path(model))
            self._embedding = embedding_rows(Path(model))
        except ImportError as error:
            look.unlabelled = f"the stage's interpreter lacks {error.name or 'a package'}"
        except OperatorError as error:
            self.refusal(error, "model")
        if self._view is None:
            return
        if isinstance(stage, FinetuneFields) and stage.chat_template and self._embedding:
            # A training adds the template's control tokens, and rows for them.
            self._embedding = max(self._embedding, *(one.id + 1 for one in self._view.controls.values()), 0)
        self._check_named_tokens(self._view)

    def _check_named_tokens(self, view: Vocabulary) -> None:
        """The tokens that a batch or an answer needs must have a row in the embedding."""
        for name in _ENDS:
            control = view.controls.get(str(view.special.get(name) or ""))
            if self._embedding and control is not None and control.id >= self._embedding:
                self.defect(
                    "model",
                    f"{name} {control.text!r} is token {control.id}, and the model's embedding has {self._embedding}"
                    f" rows (0 to {self._embedding - 1})",
                    f"set {name} in tokenizer_config.json to a token that the model has, or resize the embedding",
                )

    def _splits(self) -> list[str]:
        """The splits that the stage reads, as the files give them."""
        have = splits_in(self._source)
        stage = self._stage
        if isinstance(stage, FinetuneFields):
            val = ["val"] if "val" in have else []
            return [UNSPLIT if UNSPLIT in have else "train", *val]
        if isinstance(stage, EvaluateStage):
            whole = self._source.place.is_file() or (UNSPLIT in have and stage.split == "train")
            return [UNSPLIT if whole else stage.split]
        return list(have)

    def _read_split(self, split: str) -> None:
        one = SplitLook(split or "all")
        self._look.splits.append(one)
        counts = self._counts = ReadCounts()
        rows = iter(each_row(self._source, split, counts))
        try:
            if self._view is not None and self._rules is not None:
                self._label(one, rows, self._view, self._rules)
            for found in rows:  # what is not labelled is still read
                self._count(one, found)
                if self._passed_s() > self._read_s:
                    one.read_all = False
                    break
        finally:
            one.formats = list(dict.fromkeys(counts.formats.values()))
            one.files = [Path(name).name for name in counts.formats]
        self._look.warnings += counts.notes()
        if not one.rows:
            self._report_empty(one)

    def _report_empty(self, one: SplitLook) -> None:
        """A split without rows; only one that is held out may be empty, as a prepare stage without one leaves it."""
        message = f"{self._source.place}: the {one.split} split has no rows"
        if one.split in ("val", "test") and not isinstance(self._stage, EvaluateStage):
            self._look.warnings.append(message)
        else:
            self.defect("data", message, "give data with rows")

    def _count(self, one: SplitLook, found: Located | Refused) -> Located | None:
        """Count a row; the row if it can be used."""
        one.rows += 1
        if isinstance(found, Located):
            return found
        if self._stage.on_bad_row == "skip":
            one.skipped_rows += 1
            self._counts.skip(found)
        else:
            self.defect("data", found.line, found.hint)
        return None

    def _good(self, one: SplitLook, rows: Iterator[Located | Refused]) -> Iterator[Located]:
        for found in rows:
            good = self._count(one, found)
            if good is not None:
                one.labelled += 1
                yield good
            if self._passed_s() > self._label_s:
                one.labelled_all = False
                return

    def _label(self, one: SplitLook, rows: Iterator[Located | Refused], view: Vocabulary, rules: LabelRules) -> None:
        counts, warnings = LabelCounts(), Warnings(rules)
        lengths: array[int] = array("I")
        kept: array[int] = array("I")
        most = self._most_scored(one.split)
        label = label_pairs if isinstance(self._stage, PreferenceFields) else label_rows
        good = self._good(one, rows)
        for found in label(good, view, rules, counts, places=False, ahead=most is None):
            if isinstance(found, RefusedRow):
                if self._stage.on_bad_row == "skip":
                    warnings.add(found)
                else:
                    self.defect("data", f"{found.where}: {found.reason}", found.way_out)
            elif isinstance(found, DroppedRow):
                lengths.append(found.tokens)
            else:
                halves = found.both if isinstance(found, LabelledPair) else (found,)
                lengths.append(max(len(half.ids) + half.cut for half in halves))
                kept.append(sum(len(half.ids) for half in halves))
                for half in halves:
                    self._check_ids(half)
            if most is not None and counts.scored_tokens >= most:
                one.read_all = one.labelled_all = False
                rows.close() if hasattr(rows, "close") else None
                break
        self._look.warnings += [f"{one.split}: {text}" for text in warnings.texts(counts)]
        self._lengths[one.split] = kept
        one.histogram = histogram(lengths, self._look.max_length)
        for name in (
            "examples",
            "truncated_rows",
            "dropped_rows",
            "refused_rows",
            "tokens",
            "scored_tokens",
            "longest",
        ):
            setattr(one, name, getattr(counts, name))

    def _most_scored(self, split: str) -> int | None:
        """Scored tokens after which the stage reads no further."""
        stage = self._stage
        if isinstance(stage, EvaluateStage):
            return stage.max_tokens
        return stage.eval_max_tokens if isinstance(stage, FinetuneFields) and split == "val" else None

    def _check_ids(self, row: LabelledRow) -> None:
        largest = max(row.ids, default=0)
        if self._embedding and largest >= self._embedding:
            self.defect(
                "model",
                f"the tokenizer gives token {largest} in {row.where}, and the model's embedding has"
                f" {self._embedding} rows",
                "use the tokenizer that belongs to the model",
            )

    def _count_training(self, stage: FinetuneFields) -> None:
        look, train = self._look, self._look.splits[0]
        val = next((one for one in look.splits if one.split == "val"), None)
        if train.labelled_all and train.labelled and not look.unlabelled and self._view is not None:
            look.examples = train.examples
            if not train.examples and not look.defects:
                self.defect(
                    "data",
                    f"none of the {train.rows} rows of the train split has an answer within {stage.max_length} tokens;"
                    f" the longest has {train.longest}",
                    "raise max_length, or prepare other messages",
                )
        lengths = self._sequences(stage, train) if look.examples else []
        if look.examples or stage.max_steps is not None:
            units = len(lengths) or 1
            look.steps = planned_steps(stage, units)
            known = bool(look.examples)
            look.checkpoints = _due(save_every(stage, units), look.steps, stage.save_strategy, known)
            evaluates = val is not None and (val.scored_tokens > 0 or bool(look.unlabelled))
            every = eval_every(stage, units) if evaluates else None
            look.evaluations = _due(every, look.steps, stage.eval_strategy, known or not evaluates)
            self._warn_of_steps(stage, look.steps, evaluates, val)
        if look.examples and look.steps is not None:
            look.tokens = tokens_read(stage, lengths, look.steps)

    def _sequences(self, stage: FinetuneFields, train: SplitLook) -> list[int]:
        """Tokens of each sequence that the stage trains on: of a row, or of several that are packed."""
        lengths = list(self._lengths[train.split])
        if not stage.packing:
            return lengths
        if stage.truncation == "drop" and train.longest > stage.max_length:
            self.defect("packing", *longer_than_a_sequence(train.longest, stage.max_length))
        return [sum(lengths[row] for row in pack) for pack in packs_of(lengths, stage.max_length)]

    def _warn_of_steps(self, stage: FinetuneFields, steps: int, evaluates: bool, val: SplitLook | None) -> None:
        warn = self._look.warnings.append
        if stage.evaluates and not evaluates:
            which = "eval_steps" if stage.eval_strategy == "steps" else "eval_strategy"
            rows, longest = (None, 0) if val is None else (val.rows, val.longest)
            why = why_no_evaluation(rows, longest, stage.max_length)
            warn(f"{which} is set, but no evaluation will take place: {why}")
            if stage.load_best_model_at_end:
                warn("load_best_model_at_end is set, but no step is evaluated: the output has the last one's weights")
        elif stage.eval_strategy == "steps" and stage.eval_steps is not None and stage.eval_steps > steps:
            warn(f"eval_steps is {stage.eval_steps} and there are {steps} steps: the only evaluation is at its end")
        if stage.warmup_steps >= steps and stage.warmup_steps >= 1:
            warn(
                f"warmup_steps is {quantities.exact(stage.warmup_steps)} and the training has {steps} steps: the"
                " learning rate does not reach its peak"
            )


def _due(every: int | None, steps: int, strategy: str, known: bool) -> int | None:
    """How often work is due; None for once an epoch while the number of examples is not known."""
    return times_due(every, steps) if known or strategy != "epoch" else None
