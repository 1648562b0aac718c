"""What the curves of a training say is wrong with it: a word, the evidence in numbers, and recipe fields that help.

Every judgement compares means over many steps with their scatter, and none is made on few steps: a sentence that is
wrong once is not read again. A held-out loss is measured on the same tokens each time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate, pairwise
from statistics import fmean, median

from cockpit.runs.stage_view import StageView
from recipes import quantities

MIN_STEPS = 60
"""Steps after the warm-up below which the training's loss proves nothing."""
MIN_EVALUATIONS = 4
PARTS = 16
"""Parts of the steps whose mean losses are compared."""
MOST_POINTS = 2048
DEVIATIONS = 1.4826
"""Standard deviations in a median absolute deviation, of a normal distribution."""
RISE, RISE_SHARE = 0.1, 0.05
"""Least rise of a training loss: in nats, and as a share of it."""
HELD_OUT_RISE, HELD_OUT_SHARE = 0.03, 0.02
EXPLODED = 1.0
EARLY_STEPS, EARLY_RISE = 8, 2.0
"""Steps after which a short training may have exploded, and the least rise, in nats, of all its newest losses above all
of its first ones."""
SURE = 5.0
"""Standard errors of a difference that is certain."""
LITTLE_FALL = 0.05
FALLING_SHARE = 0.1
FLAT_SHARE = 0.005
FLAT_STEPS = 100
STARTS = 5
"""Steps whose mean loss is that of the start."""
WAITING_SHARE = 0.25
WAITING_S = 5.0
WAITING_STEPS = 20
_ENDS = 0.98
"""Share of the planned steps after which a training counts as finished."""


class Trouble(StrEnum):
    """What is wrong."""

    EXPLODING = "exploding"
    RATE_TOO_HIGH = "learning rate too high"
    RATE_TOO_LOW = "learning rate too low"
    OVERFITTING = "overfitting"
    UNDERFITTING = "underfitting"
    PLATEAU = "plateau"
    INPUT_BOUND = "input-bound"


@dataclass(frozen=True)
class Remedy:
    """A value of a recipe's field, as `--set` takes it, and what it does or costs."""

    field: str
    value: str
    effect: str

    @property
    def words(self) -> str:
        """The value and its effect."""
        return f"{self.field}={self.value} {self.effect}"


@dataclass(frozen=True)
class Diagnosis:
    """One trouble with its evidence and remedies, the best first."""

    trouble: Trouble
    evidence: str
    remedies: tuple[Remedy, ...]

    @property
    def short(self) -> str:
        """The trouble and the evidence."""
        return f"{self.trouble}: {self.evidence}"

    @property
    def sentence(self) -> str:
        """All of it."""
        return f"{self.short}; what helps: {', or '.join(remedy.words for remedy in self.remedies)}"


@dataclass(frozen=True)
class Curves:
    """The numbers of a training, oldest first; steps that a resume replaced are not among them.

    Attributes:
        steps: the numbers of its optimizer steps.
        losses: mean nats per loss token of each step.
        rates: learning rates.
        norms: gradient norms before clipping.
        step_s: seconds of each of the newest steps.
        wait_s: seconds of those in which it waited for data.
        evaluations: steps and losses on held-out data.
        total_steps: planned steps; None if unknown.
    """

    steps: Sequence[float] = ()
    losses: Sequence[float] = ()
    rates: Sequence[float] = ()
    norms: Sequence[float] = ()
    step_s: Sequence[float] = ()
    wait_s: Sequence[float] = ()
    evaluations: Sequence[tuple[float, float]] = ()
    total_steps: int | None = None


LOOK_AGAIN_SHARE = 0.02
"""Share of new steps below which a diagnosis is not made again: screens ask five times a second."""
INVENTED = "fake"
"""The kind whose losses are not measured."""


def diagnosis_of(stage: StageView) -> list[Diagnosis]:
    """What the curves of a stage prove; nothing where it has no steps."""
    if stage.kind == INVENTED:
        return []
    size = sum(len(track.steps) for attempt in stage.attempts for track in attempt.tracks)
    size += MIN_STEPS * (len(stage.all_evaluations) + len(stage.by_attempt))
    known = stage.diagnosed
    if known is None or not known[0] <= size <= known[0] * (1 + LOOK_AGAIN_SHARE):
        known = stage.diagnosed = (size, diagnose(curves_of(stage)))
    return known[1]


def curves_of(stage: StageView) -> Curves:
    """The curves of a stage: at most `MOST_POINTS` of its steps, evenly, and its newest steps' times."""
    parts: list[tuple[Sequence[float], dict[str, Sequence[float]], int]] = []
    waits: dict[float, float] = {}
    for attempt, cut in stage.lineage:
        for track in attempt.tracks:
            size = len(track.steps)
            while size and track.steps[size - 1] > cut:
                size -= 1
            if size:
                parts.append((track.steps, dict(track.columns), size))
                wait = track.metrics.get("data_wait_s")
                if wait is not None:
                    waits = dict(zip(wait.x[-4 * WAITING_STEPS :], wait.y[-4 * WAITING_STEPS :], strict=False))
    every = max(1, -(-sum(size for _, _, size in parts) // MOST_POINTS))
    picked = [(steps, columns, at) for steps, columns, size in parts for at in range(0, size, every)]
    newest = parts[-1] if parts else None
    recent = [] if newest is None else list(range(max(0, newest[2] - 4 * WAITING_STEPS), newest[2]))
    timed = [at for at in recent if newest is not None and newest[0][at] in waits]
    return Curves(
        steps=[steps[at] for steps, _, at in picked],
        losses=[columns["loss"][at] for _, columns, at in picked],
        rates=[columns["learning_rate"][at] for _, columns, at in picked],
        norms=[columns["grad_norm"][at] for _, columns, at in picked],
        step_s=[newest[1]["step_s"][at] for at in timed] if newest is not None else [],
        wait_s=[waits[newest[0][at]] for at in timed] if newest is not None else [],
        evaluations=[(float(e.step or 0), e.loss) for e in stage.evaluations if e.loss is not None],
        total_steps=stage.total_steps,
    )


def diagnose(curves: Curves) -> list[Diagnosis]:
    """What the curves prove, the worst first; empty for a training without a finding, and for a young one."""
    view = _View.of(curves)
    of_loss = (_exploding, _rate_too_high, _overfitting, _rate_too_low, _underfitting, _plateau)
    first = next((found for judge in of_loss if view is not None and (found := judge(curves, view))), None)
    first = first or (_exploding_early(curves) if view is None else None)
    return [diagnosis for diagnosis in (first, _input_bound(curves)) if diagnosis is not None]


@dataclass(frozen=True)
class _Part:
    """The mean loss of consecutive steps."""

    first: float
    last: float
    mean: float
    size: int

    @property
    def span(self) -> str:
        return f"steps {round(self.first)} to {round(self.last)}"


@dataclass(frozen=True)
class _View:
    """The losses after the warm-up in equal parts.

    Attributes:
        parts: `PARTS` of them, oldest first.
        start: mean loss of the first steps of all.
        scatter: standard deviation of one step's loss about its neighbours.
        peak: the highest learning rate.
        spent: shares of the learning rate's sum that are spent at the ends of the parts.
        recent_rate: mean learning rate of the newest two fifths, as a share of the peak.
        broken: the first step whose loss is not finite.
        steps: the steps of all finite losses.
        losses: those losses.
    """

    parts: list[_Part]
    start: float
    scatter: float
    peak: float
    spent: list[float]
    recent_rate: float
    broken: float | None = None
    steps: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @staticmethod
    def of(curves: Curves) -> _View | None:
        """None for too few steps."""
        points = list(zip(curves.steps, curves.losses, curves.rates, strict=True))
        broken = next((step for step, loss, _ in points if not math.isfinite(loss)), None)
        known = [(s, loss, rate if math.isfinite(rate) else 0.0) for s, loss, rate in points if math.isfinite(loss)]
        peak = max((rate for _, _, rate in known), default=0.0)
        warm = next((at for at, (_, _, rate) in enumerate(known) if rate >= 0.999 * peak), 0)
        after = known[warm:]
        if len(after) < PARTS * 3 or after[-1][0] - after[0][0] + 1 < MIN_STEPS:
            return None
        edges = [len(after) * part // PARTS for part in range(PARTS + 1)]
        pieces = [after[a:b] for a, b in pairwise(edges)]
        parts = [_Part(p[0][0], p[-1][0], fmean(loss for _, loss, _ in p), len(p)) for p in pieces]
        sums = list(accumulate(sum(rate for _, _, rate in p) for p in pieces))
        losses = [loss for _, loss, _ in known]
        steps_apart = [abs(b - a) for a, b in pairwise(losses)]
        newest = [rate for _, _, rate in after[-max(1, len(after) * 2 // 5) :]]
        return _View(
            parts=parts,
            start=fmean(losses[:STARTS]),
            scatter=DEVIATIONS * median(steps_apart) / math.sqrt(2),
            peak=peak,
            spent=[one / sums[-1] for one in sums] if sums[-1] else [1.0] * PARTS,
            recent_rate=fmean(newest) / peak if peak else 0.0,
            broken=broken,
            steps=[step for step, _, _ in known],
            losses=losses,
        )

    def error(self, *parts: _Part) -> float:
        """The standard error of a difference of means of these parts."""
        return self.scatter * math.sqrt(sum(1 / part.size for part in parts))

    @property
    def floor(self) -> tuple[float, float]:
        """The step about which the mean of a few losses is lowest, warm-up included, and that mean."""
        width = max(5, len(self.losses) // PARTS)
        chunks = [(at, self.losses[at : at + width]) for at in range(0, max(1, len(self.losses) - width + 1), width)]
        at, chunk = min(chunks, key=lambda item: fmean(item[1]))
        return self.steps[at + len(chunk) // 2], fmean(chunk)

    @property
    def lowest(self) -> _Part:
        """The part with the lowest mean."""
        return min(self.parts, key=lambda part: part.mean)

    def never_below(self, loss: float) -> bool:
        """Whether every step after the warm-up had a larger loss."""
        return all(one > loss for step, one in zip(self.steps, self.losses, strict=True) if step >= self.parts[0].first)

    def about(self, step: float) -> _Part:
        """As many losses as a part has, about a step."""
        width = max(3, len(self.losses) // PARTS)
        at = min(range(len(self.steps)), key=lambda index: abs(self.steps[index] - step))
        first = max(0, min(at - width // 2, len(self.losses) - width))
        chosen = self.losses[first : first + width]
        return _Part(self.steps[first], self.steps[first + len(chosen) - 1], fmean(chosen), len(chosen))

    def between(self, first: int, last: int) -> _Part:
        """Parts as one."""
        chosen = self.parts[first:last]
        size = sum(part.size for part in chosen)
        mean = sum(part.mean * part.size for part in chosen) / size
        return _Part(chosen[0].first, chosen[-1].last, mean, size)


def _exploding(curves: Curves, view: _View) -> Diagnosis | None:
    newest = median(view.losses[-5:])
    at, lowest = view.floor
    limit = lowest + max(EXPLODED, 2 * SURE * view.scatter)
    if view.broken is not None:
        evidence = f"the loss of step {round(view.broken)} is not a finite number"
    elif newest > limit:
        evidence = (
            f"the loss rose from {quantities.loss(lowest)} (about step {round(at)}) to"
            f" {quantities.loss(newest)}{_norm_words(curves)}"
        )
    else:
        return None
    return Diagnosis(
        Trouble.EXPLODING,
        evidence,
        (_rate(view.peak / 4, "is a quarter"), Remedy("warmup_steps", "0.05", "raises it slowly")),
    )


def _exploding_early(curves: Curves) -> Diagnosis | None:
    """Of a training with too few steps for means: every loss of its newest quarter is far above those of its first."""
    broken = next((s for s, loss in zip(curves.steps, curves.losses, strict=True) if not math.isfinite(loss)), None)
    losses = [loss for loss in curves.losses if math.isfinite(loss)]
    quarter = max(3, len(losses) // 4)
    peak = max((rate for rate in curves.rates if math.isfinite(rate)), default=0.0)
    if broken is not None:
        evidence = f"the loss of step {round(broken)} is not a finite number"
    elif len(losses) >= EARLY_STEPS and min(losses[-quarter:]) > max(losses[:quarter]) + EARLY_RISE:
        first, last = fmean(losses[:quarter]), fmean(losses[-quarter:])
        evidence = f"the loss rose from {quantities.loss(first)} to {quantities.loss(last)} in {len(losses)} steps"
    else:
        return None
    return Diagnosis(
        Trouble.EXPLODING,
        evidence,
        (_rate(peak / 4, "is a quarter"), Remedy("warmup_steps", "0.1", "raises it slowly")),
    )


def _norm_words(curves: Curves) -> str:
    norms = [norm for norm in curves.norms if math.isfinite(norm)]
    if len(norms) < MIN_STEPS:
        return ""
    usual, newest = median(norms), median(norms[-5:])
    if newest < 3 * usual:
        return ""
    return f", and the gradient norm from {quantities.number(usual)} to {quantities.number(newest)}"


def _rate_too_high(_curves: Curves, view: _View) -> Diagnosis | None:
    last, (at, lowest) = view.between(PARTS - 2, PARTS), view.floor
    rise = max(RISE, RISE_SHARE * abs(lowest), SURE * view.error(last, view.lowest))
    rate = quantities.exact(quantities.rounded(view.peak, 3))
    remedies = (_rate(view.peak / 3, "is a third"), Remedy("max_grad_norm", "1.0", "clips large steps"))
    if view.lowest.mean > view.start + rise or view.never_below(view.start + RISE):
        evidence = f"the loss rose from {quantities.loss(view.start)} at the start and has not come back below it"
        return Diagnosis(Trouble.RATE_TOO_HIGH, f"{evidence}, at {rate}", remedies)
    if at >= view.parts[-PARTS // 4].first or min(p.mean for p in view.parts[-2:]) < lowest + rise:
        return None
    evidence = (
        f"the training loss rose from {quantities.loss(lowest)} (about step {round(at)}) to"
        f" {quantities.loss(last.mean)} ({last.span}), at {rate}"
    )
    return Diagnosis(Trouble.RATE_TOO_HIGH, evidence, remedies)


def _overfitting(_curves: Curves, view: _View) -> Diagnosis | None:
    found = [(step, loss) for step, loss in _curves.evaluations if math.isfinite(loss)]
    if len(found) < MIN_EVALUATIONS:
        return None
    step, best = min(found, key=lambda one: (one[1], one[0]))
    later = [loss for at, loss in found if at > step]
    rise = max(HELD_OUT_RISE, HELD_OUT_SHARE * abs(best))
    if len(later) < 2 or min(later[-2:]) < best + rise / 2 or later[-1] < best + rise:
        return None
    then, now = view.about(step), view.between(PARTS - 2, PARTS)
    if then.mean - now.mean < max(2 * view.error(then, now), FLAT_SHARE * abs(then.mean)):
        return None
    evidence = (
        f"the held-out loss rose from {quantities.loss(best)} (step {round(step)}) to {quantities.loss(later[-1])}"
        f" while the training loss fell from {quantities.loss(then.mean)} to {quantities.loss(now.mean)}"
    )
    return Diagnosis(
        Trouble.OVERFITTING,
        evidence,
        (
            Remedy("load_best_model_at_end", "true", f"delivers step {round(step)} if its checkpoint exists"),
            Remedy("early_stopping_patience", "2", "ends such a training there"),
            Remedy("max_steps", f"{round(step)}", "ends it there"),
        ),
    )


def _rate_too_low(_curves: Curves, view: _View) -> Diagnosis | None:
    """In proportion to the rate that was spent, and little: the loss is as at the start of a training."""
    first, last = view.parts[0], view.parts[-1]
    middle = next(at for at, share in enumerate(view.spent) if share >= 0.5)
    half = view.between(max(0, middle - 1), min(PARTS, middle + 2))
    fall = view.start - view.between(PARTS - 2, PARTS).mean
    if not SURE * view.error(first, last) < fall < LITTLE_FALL * abs(view.start):
        return None
    if not 0.3 < (view.start - half.mean) / fall < 0.65:
        return None
    evidence = (
        f"the loss fell only from {quantities.loss(view.start)} to {quantities.loss(view.start - fall)} in"
        f" {round(last.last)} steps, and at an even pace"
    )
    return Diagnosis(
        Trouble.RATE_TOO_LOW,
        evidence,
        (_rate(view.peak * 5, "is five times that"), Remedy("max_grad_norm", "1.0", "keeps it from exploding")),
    )


def _underfitting(curves: Curves, view: _View) -> Diagnosis | None:
    last, before = view.between(PARTS - 1, PARTS), view.between(PARTS - 5, PARTS - 3)
    ended = curves.total_steps is not None and last.last >= _ENDS * curves.total_steps
    fall, whole = before.mean - last.mean, view.start - last.mean
    if not ended or fall < max(SURE * view.error(before, last), FALLING_SHARE * whole, HELD_OUT_RISE):
        return None
    found = [loss for _, loss in curves.evaluations if math.isfinite(loss)]
    if len(found) >= 2 and found[-1] > min(found):
        return None
    evidence = (
        f"the loss was still falling at the end, from {quantities.loss(before.mean)} ({before.span}) to"
        f" {quantities.loss(last.mean)} ({last.span})"
    )
    steps = f"{2 * (curves.total_steps or 0)}"
    return Diagnosis(
        Trouble.UNDERFITTING,
        evidence,
        (Remedy("max_steps", steps, "takes twice as long"), _rate(view.peak * 2, "is twice that")),
    )


def _plateau(curves: Curves, view: _View) -> Diagnosis | None:
    """The loss is proven to be flat. That a noisy loss is not proven to fall says nothing: most falls hide in noise."""
    remaining = 0.0 if curves.total_steps is None else 1 - view.parts[-1].last / curves.total_steps
    begun = PARTS - PARTS * (2 if remaining >= 0.1 else 3) // 5  # at the end, only what was long is worth a sentence
    first, last = view.between(begun, begun + 3), view.between(PARTS - 3, PARTS)
    if last.last - first.first < FLAT_STEPS or view.recent_rate < 0.3:
        return None
    fall, unseen, least = first.mean - last.mean, 2 * view.error(first, last), FLAT_SHARE * abs(first.mean)
    if fall > max(unseen, least):
        return None
    held_out = [loss for step, loss in curves.evaluations if step >= first.first and math.isfinite(loss)]
    if len(held_out) >= 2 and held_out[0] - held_out[-1] > FLAT_SHARE * abs(held_out[0]):
        return None
    if view.start - last.mean + 2 * view.scatter / math.sqrt(STARTS) < LITTLE_FALL * abs(view.start):
        evidence = (
            f"the loss has hardly changed in {round(last.last)} steps: {quantities.loss(view.start)} at the start,"
            f" {quantities.loss(last.mean)} in {last.span}"
        )
        return Diagnosis(Trouble.RATE_TOO_LOW, evidence, (_rate(view.peak * 5, "is five times that"),))
    held_out_flat = len(held_out) >= 3 and held_out[0] - min(held_out[1:]) <= FLAT_SHARE / 2 * abs(held_out[0])
    if fall > max(unseen, least / 5) or not (max(fall, 0) + unseen <= least or held_out_flat):
        return None
    evidence = (
        f"the training loss was {quantities.loss(first.mean)} in {first.span} and is {quantities.loss(last.mean)} in"
        f" {last.span}"
    )
    return Diagnosis(
        Trouble.PLATEAU,
        evidence,
        (
            _rate(view.peak / 3, "with lr_scheduler_type=cosine lowers what is left"),
            Remedy("guards.no_improvement", "0.2", "ends such a training"),
        ),
    )


def _input_bound(curves: Curves) -> Diagnosis | None:
    if len(curves.wait_s) < WAITING_STEPS:
        return None
    waited, whole = sum(curves.wait_s), sum(curves.step_s)
    if whole <= 0 or waited < WAITING_S or waited < WAITING_SHARE * whole:
        return None
    evidence = f"the last {len(curves.wait_s)} steps waited {quantities.percent(waited / whole)} of their time for data"
    return Diagnosis(
        Trouble.INPUT_BOUND, evidence, (Remedy("dataloader_num_workers", "4", "loads data in four processes"),)
    )


def _rate(value: float, effect: str) -> Remedy:
    return Remedy("learning_rate", quantities.exact(quantities.rounded(value, 2)), effect)
