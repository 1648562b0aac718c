"""The evaluate stage: score a split, answer a few questions, and write report.json."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from functools import partial
from itertools import count
from typing import Any

from engines.context import Artifact, StageContext, StageResult
from engines.data.door import DataSource, ReadCounts, read_conversations, source_of_stage
from engines.data.shards import is_tokens_folder
from engines.evaluate.answers import Answer, answer, choose_questions
from engines.evaluate.evaluate import Score, check_tokenizer, make_batches, score
from engines.evaluate.gguf_files import gguf_models
from engines.evaluate.gguf_loss import score_gguf
from engines.evaluate.lm_eval import run_lm_eval
from engines.evaluate.model import LoadedModel, load_model
from engines.evaluate.results import named
from engines.evaluate.stage_tests import run_tests, stage_tests
from engines.events.results import Evaluated, SampledText
from engines.inputs.data_place import UNSPLIT
from engines.labels.row import LabelRules
from engines.labels.stage_rows import rules_of, skips_refused
from engines.training.devices import report_devices, used_devices
from engines.training.loss import Batches
from engines.training.start import device_words
from recipes.problems import OperatorError
from recipes.stages.evaluate import EvaluateStage
from recipes.stages.launch.fields import DDP

SHOWN_CHARACTERS = 4_000
"""Longest text in an event; report.json has all of it."""
_WAIT_S = 7 * 86_400.0
"""How long a process waits for another one's answers; a dead one ends the attempt at once, and a stopped one is a
stall."""


def run(ctx: StageContext[EvaluateStage]) -> StageResult:
    """Evaluate the model or adapter on the data and write `report.json` into `ctx.out`."""
    stage = ctx.stage
    data = source_of_stage(stage, ctx.inputs["data"].path, ctx.inputs["data"].name)
    split = UNSPLIT if data.place.is_file() else stage.split  # a file that is named is meant whole
    if stage.answers and is_tokens_folder(data.place):
        raise OperatorError(
            f"answers — got {stage.answers}; allowed 0 with token shards, which contain no questions",
            "set answers = 0, or give a messages stage",
        )
    tests = stage_tests(ctx)  # a row that cannot be used is said before anything is loaded
    of_lm_eval = run_lm_eval(ctx)  # before this process has the model in memory
    ctx.phase("loading")
    _meet(ctx)
    given = ctx.inputs["model"]
    loaded = load_model(
        given.path, given.name, ctx.warn_of("model"), dtype=stage.dtype, load_in_4bit=stage.load_in_4bit
    )
    report_devices(ctx, (parameter.device for parameter in loaded.model.parameters()))
    if ctx.world.size > 1:
        ctx.placed(DDP, ctx.world.gather_objects(device_words(loaded.model.device)))
    ctx.phase("tokenizing")
    counts = ReadCounts()
    rules = rules_of(stage, stage.max_length, ctx.first_start)
    batches = make_batches(
        loaded.view,
        data,
        check_tokens=partial(check_tokenizer, loaded),
        split=split,
        rules=rules,
        batch_size=stage.per_device_eval_batch_size,
        max_tokens=stage.max_tokens,
        spread=stage.max_tokens_from == "spread",
        skip_refused=skips_refused(stage),
        warn=ctx.warn,
        waiting=ctx.check_stop,
        counts=counts,
    )
    for note in counts.notes():
        ctx.warn(note)
    ctx.phase("scoring")
    began_s = time.monotonic()
    share = -(-batches.scored_tokens // ctx.world.size)
    scored = score(
        loaded,
        batches,
        lambda tokens: ctx.progress(min(tokens, share), share, "tokens"),
        ctx.warn,
        ctx.world,
    )
    seconds = time.monotonic() - began_s
    _emit(ctx, scored)
    answers = _answers(ctx, loaded, data, split, rules)
    of_tests, results = run_tests(ctx, loaded, tests) if tests is not None else ({}, [])
    if not ctx.world.is_first:  # the first process judges and writes what all have answered
        _leave_together(ctx)
        return StageResult()
    of_files = _score_files(ctx, loaded, batches)
    _write_report(ctx, scored, answers, split, computed_on(loaded.model), of_files)
    metrics = _metrics(scored, counts, seconds)
    for kind, found in of_files.items():
        metrics |= {f"loss.{kind}": found.loss, f"perplexity.{kind}": found.perplexity}
    metrics |= of_lm_eval.metrics
    artifacts = [Artifact(ctx.stage_name, "report", "report.json"), *of_lm_eval.artifacts]
    _leave_together(ctx)
    return StageResult({**metrics, **of_tests}, [*artifacts, *results])


def _metrics(scored: Score, counts: ReadCounts, seconds: float) -> dict[str, float]:
    """What was scored, in `seconds`, and what reading its rows counted."""
    metrics = {
        "loss": scored.loss,
        "perplexity": scored.perplexity,
        "tokens": float(scored.tokens),
        "tokens_per_second": scored.tokens / seconds if seconds > 0 else 0.0,
    }
    if not scored.counts:
        return metrics
    labelled = {name: float(value) for name, value in scored.counts.items()}
    read = {"truncated": labelled["truncated_rows"], "skipped_rows": float(counts.refused)}
    return {**labelled, **read, **metrics}


def _meet(ctx: StageContext[EvaluateStage]) -> None:
    """Let the processes of the attempt meet, with one date for templates."""
    ctx.world.connect(_WAIT_S)
    ctx.first_start = ctx.world.broadcast_object(ctx.first_start)


def _leave_together(ctx: StageContext[EvaluateStage]) -> None:
    """Wait for the processes of other hosts: where torchrun of one host has ended, the others lose their rendezvous."""
    if ctx.stage.launch.nodes > 1:
        ctx.world.wait(ctx.check_stop)


def _emit(ctx: StageContext[EvaluateStage], scored: Score) -> None:
    ctx.emit(
        Evaluated(
            stage=ctx.stage_name,
            attempt=ctx.attempt,
            step=None,
            loss=scored.loss,
            perplexity=scored.perplexity,
            tokens=scored.tokens,
            protocol=scored.protocol,
            metrics={name: float(value) for name, value in scored.counts.items()},
        )
    )


def _score_files(ctx: StageContext[EvaluateStage], loaded: LoadedModel, batches: Batches) -> dict[str, Score]:
    """The score of each GGUF file on the same rows, by its file type, and of each with an adapter over it."""
    found = {}
    for one in gguf_models(ctx):
        ctx.phase(f"scoring {one.name}")
        found[one.name] = score_gguf(
            one.file,
            batches,
            threads=ctx.stage.threads or len(os.sched_getaffinity(0)),
            name_of=loaded.tokenizer.convert_ids_to_tokens,
            adapter=one.adapter,
            on_progress=lambda tokens: ctx.progress(tokens, batches.scored_tokens, "tokens"),
            waiting=ctx.check_stop,
        )
    return found


def _answers(
    ctx: StageContext[EvaluateStage], loaded: LoadedModel, data: DataSource, split: str, rules: LabelRules
) -> list[Answer]:
    stage = ctx.stage
    if not stage.answers:
        return []
    ctx.phase("answering")
    rows = choose_questions(read_conversations(data, split), stage.answers)
    mine = ctx.world.share(rows)
    own = []
    for done, row in zip(count(1), mine, strict=False):
        own.append(answer(loaded, row, stage.max_new_tokens, rules, waiting=ctx.check_stop))
        if ctx.world.size == 1:
            _show(ctx, own[-1])
        ctx.progress(done, len(mine), "answers")
    if ctx.world.size == 1:
        return own
    ctx.world.wait(ctx.check_stop)
    shares = ctx.world.gather_objects(own)
    given = [shares[at % ctx.world.size][at // ctx.world.size] for at in range(len(rows))]
    for one in given:
        _show(ctx, one)
    return given


def _show(ctx: StageContext[EvaluateStage], one: Answer) -> None:
    ctx.emit(
        SampledText(
            stage=ctx.stage_name,
            attempt=ctx.attempt,
            step=None,
            prompt=one.prompt[:SHOWN_CHARACTERS],
            text=one.answer[:SHOWN_CHARACTERS],
            expected=one.expected[:SHOWN_CHARACTERS],
        )
    )


def computed_on(model: Any) -> dict[str, str]:
    """The device and the type of the weights with which a model was evaluated: both decide how its loss is rounded."""
    weight = next(model.parameters())
    cards = used_devices([weight.device])
    name = f"{cards[0].name} (compute capability {cards[0].capability})" if cards else weight.device.type
    return {"device": name, "dtype": str(weight.dtype).removeprefix("torch.")}


def _write_report(
    ctx: StageContext[EvaluateStage],
    scored: Score,
    answers: list[Answer],
    split: str,
    computed: dict[str, str],
    of_files: Mapping[str, Score],
) -> None:
    given = ctx.inputs["model"]
    report: dict[str, Any] = {
        "format": 1,
        "loss": named(scored.loss),
        "perplexity": named(scored.perplexity),
        "tokens": scored.tokens,
        "split": split or "all",
        "protocol": scored.protocol,
        **computed,
        "files": {
            kind: {"loss": named(one.loss), "perplexity": named(one.perplexity), "protocol": one.protocol}
            for kind, one in of_files.items()
        },
        "model": {"name": given.name, "manifest_sha256": given.manifest_sha256},
        "data": {"name": ctx.inputs["data"].name, "manifest_sha256": ctx.inputs["data"].manifest_sha256},
        "rows": dict(scored.counts),
        "answers": [one.as_dict() for one in answers],
    }
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (ctx.out / "report.json").write_text(text + "\n", "utf-8", errors="replace")
