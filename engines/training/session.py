"""One attempt of a training stage: the work before, between and after its optimizer steps."""

from __future__ import annotations

import math
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from engines.artifacts.checkpoints import Checkpoint
from engines.artifacts.manifest import read_manifest
from engines.context import GuardTrippedError, ResumePoint, StageContext, StopRequested
from engines.data_wait import DataWait
from engines.events.results import Evaluated
from engines.events.steps import GuardTripped, Step, StepsPlanned
from engines.exhausted_memory import exhausted_memory
from engines.forward.compiling import compile_layers, uncompiled
from engines.forward.noise import noisy_embeddings
from engines.guards import NO_IMPROVEMENT, Trip
from engines.ranks.able import require_shareable, require_shareable_loss
from engines.ranks.numbers import of_one_process, seed_process
from engines.ranks.placement import FSDP2, is_sharded, strategy_asked
from engines.training.arguments import training_arguments
from engines.training.beginning import (
    START_FROM,
    continued_checkpoint,
    first_weights,
    require_fitting_weights,
)
from engines.training.devices import peak_memory, report_devices, require_shared_memory
from engines.training.faults import Faults
from engines.training.fitting import Fitting
from engines.training.loss import token_weighted_loss
from engines.training.precision import autocast, keep_input_types
from engines.training.progress import Counters
from engines.training.requests import handle_requests
from engines.training.resume import check_resume
from engines.training.saves.shared import SharedWriter
from engines.training.saving import EVALUATION_DUE, CheckpointWriter, damage
from engines.training.scalars import Scalars
from engines.training.schedule import Schedule, apply_now, schedule_of, warmup_steps
from engines.training.start import NOT_DETERMINISTIC, device_words, setup_text
from engines.training.task import Method, Scored, Task
from engines.training.trainer import Measured, build_trainer, connect
from engines.training.watch import EarlyStopping, Watch
from engines.words import PHASE_EVALUATING, PHASE_SAMPLING, PHASE_SAVING, PHASE_TRAINING, EndReason
from recipes import quantities
from recipes.problems import OperatorError, printable
from recipes.stages.kind import backend_of
from recipes.stages.launch.fields import launch_of
from recipes.stages.steps import eval_every, is_due, planned_steps, save_every
from recipes.stages.training import TrainingFields


class Session:
    """Trains one task in one context. `run` returns after the last step."""

    def __init__(self, ctx: StageContext[TrainingFields], task: Task) -> None:
        self.ctx = ctx
        self.stage = ctx.stage
        self.task = task
        self.world = ctx.world
        require_shareable(ctx.stage, task, self.world)
        self.faults = Faults(ctx.test_faults, ctx.stage_name, ctx.attempt)
        self.counters = Counters()
        self.watch = Watch(self.stage.guards)
        self.early_stopping = EarlyStopping(
            self.stage.early_stopping_patience, self.stage.early_stopping_threshold, rises=self.stage.rises
        )
        self.eval_every = eval_every(self.stage, task.examples) if task.evaluates else None
        self.save_every = save_every(self.stage, task.examples)
        self.output: Checkpoint | None = None
        self.data_wait = DataWait(ctx.phase)
        self.fitting = Fitting(ctx.warn)
        self.planned_steps = self.total_steps = planned_steps(self.stage, task.examples)
        self.resumed_step = 0
        self._owes_evaluation = False
        self.requested_steps: int | None = None
        self.point = ctx.resume or continued_checkpoint(ctx)
        if self.point is not None:
            check_resume(ctx, self.point)
            self._restore(read_manifest(self.point.path), self.point.step)
        self.writer = SharedWriter(
            CheckpointWriter(ctx, self.faults, task.save_tokenizer),
            self.world,
            self.faults,
            neighbours=launch_of(self.stage).processes,
        )
        self.last_eval: Evaluated | None = None
        self.scalars = Scalars(ctx, self.resumed_step, self.world)
        self.trainer: Any = self._trainer(task.method)
        self.trainer.order = task.order
        require_shareable_loss(self.trainer, task, self.world)
        self._measured: Measured | None = None
        report_devices(ctx, [self.trainer.args.device, *(p.device for p in task.model.parameters())])

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.trainer.state.global_step)

    @property
    def last_step(self) -> int:
        """The step at which the stage ends; an operator can change it."""
        return int(self.trainer.state.max_steps)

    @property
    def schedule(self) -> Schedule:
        """The live learning-rate schedule."""
        return schedule_of(self.trainer.lr_scheduler)

    def run(self) -> None:
        """Train to the last step, then evaluate and save.

        Raises:
            GuardTrippedError: a guard refused a step.
            StopRequested: the operator requested a stop.
        """
        resume = self.point
        self._begin()
        if resume is not None and resume.step >= self.total_steps:
            # Only the stage's output is missing. Trainer would train one step too many here.
            self.trainer._load_from_checkpoint(str(resume.path))
            self.trainer.state.global_step = resume.step
            self.trainer.state.max_steps = resume.step
            self._plan(resume.step)
            if self.stage.evaluates:
                self.evaluate()
            self._load_best()
            return
        if resume is not None and self._owes_evaluation and self._evaluate_before(resume):
            self._load_best()
            return
        self.ctx.phase(self._setup())
        if self.stage.torch_compile:
            compile_layers(self.task.model, same_lengths=self.task.full)
            loss = getattr(self.trainer, "label_loss", None)
            if loss is not None and self.trainer.args.device.type == "cuda":
                loss.compile()
        if self.task.bf16 or self.task.fp16:
            keep_input_types(self.task.model)
        self.ctx.phase("first step")
        try:
            with noisy_embeddings(self.task.model, self.stage.neftune_noise_alpha):
                self.trainer.train(resume_from_checkpoint=str(resume.path) if resume is not None else None)
        except Exception as error:
            if exhausted_memory(error):
                self._note_trip(Trip(EndReason.OUT_OF_MEMORY, None, None), self.step + 1)
            if self.stage.deterministic and NOT_DETERMINISTIC in str(error):
                raise OperatorError(
                    f"deterministic — this model needs {printable(str(error).partition(NOT_DETERMINISTIC)[0], 200)},"
                    " which has no deterministic kernel in this torch",
                    f"set {self.ctx.stage_name}.deterministic = false",
                ) from error
            raise
        finally:
            self.scalars.close()
            self._finish_saving()
        self.writer.finish()
        self._load_best()

    def _finish_saving(self) -> None:
        """Wait for the checkpoint that is being written, however the training ends: it is the newest to resume from."""
        if sys.exc_info()[0] is None:
            return
        with suppress(Exception):  # what ends the training is the cause, not what follows
            self.writer.end()

    def _evaluate_before(self, resume: ResumePoint) -> bool:
        """Evaluate the step of a checkpoint whose training ended during that evaluation; whether the stage ends there.

        The step counts as evaluated when the training continues, so the next checkpoint is as if it had not ended.
        """
        self.trainer._load_from_checkpoint(str(resume.path))
        self.trainer.state.global_step = resume.step
        self.trainer.state.max_steps = self.total_steps
        if not self._evaluation_ends_it():
            return False
        self.trainer.state.max_steps = self.total_steps = self.requested_steps = resume.step
        self._plan(resume.step)
        return True

    def _load_best(self) -> None:
        """Load the weights of the best checkpoint of this training, if the stage asks for it and the last is not it."""
        best = self.writer.best() if self.stage.load_best_model_at_end else None
        if best is None or best.step == self.step:
            return
        here = self.last_eval if self.last_eval is not None and self.last_eval.step == self.step else None
        value = None if here is None else self._judged(here)
        if value is not None and best.judged is not None and (-value if self.stage.rises else value) <= best.judged:
            return  # measured at the start of this attempt, so no checkpoint has it
        self.ctx.phase(f"loading the checkpoint of step {best.step}, the best by {self.stage.metric_for_best_model}")
        self.trainer._load_from_checkpoint(str(best.path))
        self.output = best

    def _trainer(self, method: Method | None) -> Any:
        task, stage, work = self.task, self.stage, self.ctx.work
        if method is None:
            arguments = training_arguments(stage, work, bf16=task.bf16, fp16=task.fp16)
            trained = build_trainer(
                self, task.model, arguments, task.dataset, task.collate, task.arrangement, self._joined_tokens()
            )
            if task.own_loss:
                trained.label_loss = None
            return trained
        trainer = method.trainer(
            training_arguments(stage, work, bf16=task.bf16, fp16=task.fp16, kind=method.arguments, more=method.more)
        )
        connect(trainer, self)
        return trainer

    def _joined_tokens(self) -> int | None:
        """Tokens of the longest sequence of joined micro-batches; None where memory has run out before."""
        joins = self.ctx.declared is None and strategy_asked(self.stage, self.world) != FSDP2
        return self.task.most_tokens if joins else None  # parts of a divided model meet in equally many passes

    def _setup(self) -> str:
        words = "" if self.task.full else self.task.arrangement.words()
        return setup_text(
            self.task.model,
            self.trainer.args.device,
            self.stage,
            bf16=self.task.bf16,
            fp16=self.task.fp16,
            arrangement=words,
            backend=backend_of(self.stage),
        ) + ("" if self.task.utilization is None else f", {self.task.utilization.words()}")

    def _begin(self) -> None:
        """Report where a training without a checkpoint of its own begins, and load its first weights."""
        if self.ctx.resume is not None:
            return
        name = self.ctx.inputs[START_FROM].name if START_FROM in self.ctx.inputs else ""
        if self.point is not None:
            self.ctx.phase(f"continuing {name} after step {self.point.step}")
            return
        folder = first_weights(self.ctx)
        if folder is not None:
            self.ctx.phase(f"loading the weights of {name}")
            require_fitting_weights(folder, self.task.model)
            self.trainer._load_from_checkpoint(str(folder))

    def result(self) -> dict[str, float]:
        """Metrics of the finished stage."""
        model = self.task.model
        metrics: dict[str, float | None] = {
            "loss": self.counters.mean_recent_loss,
            "steps": self.step,
            "tokens": self.counters.tokens,
            "loss_tokens": self.counters.loss_tokens,
            "tokens_per_second": self.counters.tokens_per_second,
            "samples_per_second": self.counters.samples_per_second,
            "examples": self.task.examples,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        metrics |= self.counters.mean_recent_metrics | self._utilization(self.counters.tokens_per_second)
        if self.last_eval is not None:
            metrics["eval_loss"] = self.last_eval.loss
            metrics["eval_perplexity"] = self.last_eval.perplexity
            metrics |= {f"eval_{name}": value for name, value in self.last_eval.metrics.items()}
        metrics |= {name.partition("/")[2]: value for name, value in peak_memory(self.trainer.args.device).items()}
        metrics["output_step"] = self.step
        if self.output is not None and self.output.eval_loss is not None:
            metrics |= self.output.position.get("evaluated") or {}
            metrics["output_step"] = self.output.step
            metrics["eval_loss"] = self.output.eval_loss
            metrics["eval_perplexity"] = perplexity(self.output.eval_loss) if self.task.method is None else None
        return {name: float(value) for name, value in metrics.items() if value is not None}

    # Called by the Trainer, in the order of a step.

    def placed(self, strategy: str) -> None:
        """Report how the model's modules are placed over the processes."""
        devices = self.world.gather_objects(device_words(self.trainer.args.device))
        self.ctx.placed(strategy, devices)

    def train_begins(self) -> None:
        """Replace Trainer's number of steps by the stage's, which an operator may have changed."""
        self.trainer.state.max_steps = self.total_steps
        self.trainer.state.num_train_epochs = math.ceil(self.stage.num_train_epochs)
        self._plan(self.total_steps)
        seed_process(self.stage.seed, self.resumed_step, self.world)
        if self._owes_evaluation and self.point is not None:
            # The evaluation is known now. Trainer has not loaded the random states of the checkpoint yet.
            self.trainer._load_rng_state(str(self.point.path))
            self.save()
            self._end_by_guard()

    def after_scheduler_load(self, recipe: Schedule) -> None:
        """Apply this attempt's schedule and rates over those that were loaded from the checkpoint.

        A peak that a request set stays in effect, unless a resume has changed the recipe's since.
        """
        schedule = self.schedule
        schedule.take_shape(recipe)
        schedule.total = self.total_steps
        schedule.retry_with(self.ctx.learning_rate_scale)
        if self.trainer.lr_scheduler.base_lrs[0] != self.stage.learning_rate:
            schedule.scale = schedule.retry_scale
        self.trainer.lr_scheduler.base_lrs = [self.stage.learning_rate] * len(self.trainer.lr_scheduler.base_lrs)
        self._warm_up_again()
        apply_now(self.trainer.lr_scheduler)

    def _warm_up_again(self) -> None:
        """After a second tripped guard, a lower rate alone has not helped: raise it slowly once more."""
        trips, first = self.ctx.guard_trips, self.resumed_step
        steps = warmup_steps(self.stage.retry.warmup_steps, self.total_steps)
        if trips >= 2 and steps and self.schedule.warm_up_again(first, steps, trips):
            self.ctx.warn(
                f"{trips} guards have tripped: the learning rate rises from zero again over {steps} steps, after step"
                f" {first}"
            )

    def before_optimizer_step(self, measured: Measured) -> None:
        """Check a step with the guards while the weights are still those of the step before.

        Raises:
            GuardTrippedError: a guard refused the step; the events of both are in the journal.
            MemoryError: the GPU uses the machine's memory, and that is nearly full.
        """
        self._measured = measured
        require_shared_memory()
        trip = self.watch.before_step(measured.loss, None if measured.skipped else measured.grad_norm)
        if trip is not None:
            self._refuse(trip, measured)

    def before_update(self) -> None:
        """The optimizer steps next."""
        self.writer.before_update()

    def after_optimizer_step(self) -> None:
        """Report the step, then evaluate, sample and save if due, and handle the operator's requests."""
        measured, state = self._measured, self.trainer.state
        assert measured is not None
        window = measured.window
        step_s = time.monotonic() - window.began_s
        self.counters.add_step(measured.loss, window.tokens, window.loss_tokens, step_s, measured.metrics, window.rows)
        self._emit(self._step_event(measured, state.global_step, float(state.epoch or 0.0), step_s))
        if measured.skipped:
            self.ctx.warn(
                f"step {state.global_step} changed no weight: a gradient overflowed float16 at loss scale"
                f" {quantities.exact(measured.loss_scale or 0.0)}, which is halved"
            )
        self.watch.note_step(self.step, measured.loss, self.last_step)
        if state.global_step == self.resumed_step + 1:
            self.ctx.phase("training")
        self.faults.after_step(state.global_step)
        self.writer.check()
        worked = self._do_due_work()
        if self.world.size == 1 or measured.asked or worked or self.step >= state.max_steps:
            handle_requests(self)  # several processes learned with the step's numbers whether one has a request
        if self.step >= state.max_steps and state.max_steps < self.total_steps:
            self._do_due_work()  # an operator has just set the last step to this step
        self.total_steps = state.max_steps
        self.ctx.phase_name = PHASE_TRAINING
        self._end_by_guard()

    def _do_due_work(self) -> bool:
        """Evaluate, sample and save if due; whether any of them was."""
        step, last = self.step, self.last_step
        evaluates = is_due(step, self.eval_every, last)
        tried = is_due(step, self.save_every, last)
        # What an evaluation fails on costs no step.
        saved = tried and self.save(evaluation_follows=evaluates, wait=False)
        if evaluates and self._evaluation_ends_it():
            last = self.set_max_steps(step)
        if is_due(step, self.task.sample_steps, last):
            self.sample()
        if saved and evaluates:
            self.writer.finish()
            saved = self.writer.last_step == step
        if (saved and evaluates) or (not tried and is_due(step, self.save_every, last)):
            self.save()
        return tried or evaluates or is_due(step, self.task.sample_steps, last) or is_due(step, self.save_every, last)

    def _evaluation_ends_it(self) -> bool:
        """Evaluate; whether early stopping ends the training at this step."""
        known = self.last_eval is not None and self.last_eval.step == self.step
        found = self.evaluate()
        value = None if found is None or known else self._judged(found)
        if value is None or not self.early_stopping.note(self.step, value):
            return False
        if self.step >= self.last_step:
            return False
        metric, best = self.stage.metric_for_best_model, quantities.loss(self.early_stopping.best)
        self.ctx.warn(
            f"early stopping at step {self.step}: {metric} has not improved on {best}, of step"
            f" {self.early_stopping.best_step}, in {self.early_stopping.failures} evaluations; the stage ends here"
        )
        return True

    def _judged(self, found: Evaluated) -> float | None:
        """The value of `metric_for_best_model` in an evaluation; None where it was not measured."""
        own = {"eval_loss": found.loss, "eval_perplexity": found.perplexity}
        name = self.stage.metric_for_best_model
        return own[name] if name in own else found.metrics.get(name.removeprefix("eval_"))

    def _judged_for_the_best(self, found: Evaluated) -> dict[str, Any] | None:
        """What decides which checkpoint is the best, if it is not the lowest eval_loss."""
        name, rises = self.stage.metric_for_best_model, self.stage.rises
        if (name, rises) == ("eval_loss", False):
            return None
        return {"metric": name, "greater_is_better": rises, "value": self._judged(found)}

    def _end_by_guard(self) -> None:
        """Save and end the attempt if a guard asks for it after this step.

        Raises:
            GuardTrippedError: the loss has not improved for too long.
            StopRequested: the attempt's time is over.
        """
        if self.stage.guards.wall_clock_s is None:
            trip = self.watch.after_step(self.step, self.last_step)
        else:  # the processes' clocks differ
            trip = self.world.decided(lambda: self.watch.after_step(self.step, self.last_step))
        if trip is None:
            return
        saved = f"checkpoint step-{self.step} is saved" if self.save() else "the checkpoint could not be written"
        self._note_trip(trip, self.step)
        if trip.guard != NO_IMPROVEMENT:
            limit = quantities.duration(trip.limit or 0.0)
            raise StopRequested(f"{trip.guard}: the attempt has trained for its {limit}; {saved}")
        raise GuardTrippedError(self.watch.no_improvement_words(self.step, self.last_step) + f"; {saved}")

    # Operations at a step boundary.

    @property
    def newest_checkpoint(self) -> int | None:
        """The step of the newest checkpoint of this attempt, else of the one that it began with; after
        `finish_saving`."""
        return self.writer.last_step or self.resumed_step or None

    def finish_saving(self) -> None:
        """Wait for the checkpoint that is being written."""
        self.writer.finish()

    def save(self, *, evaluation_follows: bool = False, wait: bool = True) -> bool:
        """Write a checkpoint of the present step, or complete it after its evaluation; False when the write failed.

        Without `wait`, the training may continue while the checkpoint is written; then a later write can still fail.
        """
        if self.writer.last_step != self.step:
            self.ctx.phase(PHASE_SAVING)
        measured_here = self.last_eval is not None and self.last_eval.step == self.step
        evaluation_follows = evaluation_follows and not measured_here
        eval_loss = self.last_eval.loss if self.last_eval and measured_here else None
        plan: dict[str, Any] = {
            "planned_steps": self.planned_steps,
            "requested_steps": self.requested_steps,
            **self.watch.saved(),
        }
        plan |= self.early_stopping.saved()
        if self.last_eval is not None and measured_here:
            plan["evaluated"] = {f"eval_{name}": value for name, value in self.last_eval.metrics.items()}
            plan["judged"] = self._judged_for_the_best(self.last_eval)
        self.counters.suspect = self.watch.suspect
        self.scalars.flush()
        return self.writer.commit(
            self.trainer, self.counters, eval_loss, plan, evaluation_follows=evaluation_follows, wait=wait
        )

    def evaluate(self) -> Evaluated | None:
        """The loss on the val split now; None without a val split. Draws no random numbers."""
        score = self._score
        if score is None:
            return None
        if self.last_eval is not None and self.last_eval.step == self.step:
            return self.last_eval
        self.ctx.phase(PHASE_EVALUATING)
        scored = self._scored(score)
        self.last_eval = Evaluated(
            stage=self.ctx.stage_name,
            attempt=self.ctx.attempt,
            step=self.step,
            loss=scored.loss,
            perplexity=perplexity(scored.loss) if self.task.method is None else None,
            tokens=scored.tokens,
            protocol=scored.protocol + (", bf16" if self.task.bf16 else ", fp16" if self.task.fp16 else ""),
            metrics=scored.metrics,
        )
        self._emit(self.last_eval)
        self.watch.note_evaluation(self.step, scored.loss)
        return self.last_eval

    def _scored(self, score: Callable[[], Scored]) -> Scored:
        """The result of an evaluation; before one that memory cannot hold ends the attempt, the steps are saved."""
        try:
            with uncompiled(), self._autocast():
                return score()
        except Exception as error:
            if exhausted_memory(error):
                traceback.clear_frames(error.__traceback__)
                if self.trainer.optimizer is not None:  # else the training has not begun
                    with suppress(Exception):
                        self.save(evaluation_follows=True)
                self.ctx.phase_name = PHASE_EVALUATING
            raise

    @property
    def _score(self) -> Callable[[], Scored] | None:
        """Measures on the val split; None without one."""
        method, val, model, way = self.task.method, self.task.val, self.task.model, self.task.arrangement
        if method is not None:
            return None if method.evaluate is None else partial(method.evaluate, self.trainer, self.fitting)
        if val is None:
            return None
        return lambda: Scored(
            *token_weighted_loss(model, val, arrangement=way, fitting=self.fitting, world=self.world), val.protocol, {}
        )

    def sample(self, prompt: str = "") -> bool:
        """Generate text now, from this prompt or from the recipe's; False where the stage cannot."""
        if self.task.sample is None:
            return False
        if not self.world.is_first and not is_sharded(self.task.model):
            return True  # the first process generates it alone; a divided model needs all of them
        self.ctx.phase(PHASE_SAMPLING)
        with uncompiled(), self._autocast():
            return self.task.sample(self.step, prompt)

    def _autocast(self) -> Any:
        return autocast(self.trainer.args.device, bf16=self.task.bf16, fp16=self.task.fp16)

    def set_learning_rate(self, peak: float) -> float:
        """Set the peak of the schedule, from the next step on; returns the learning rate of the next step."""
        self.schedule.scale = peak / self.stage.learning_rate
        apply_now(self.trainer.lr_scheduler)
        return float(self.trainer.optimizer.param_groups[0]["lr"])

    def set_max_steps(self, steps: int) -> int:
        """Set the last step of the stage, at least the present step; returns it. The schedule ends there too."""
        last = max(self.step, steps)
        self.requested_steps = last
        self.trainer.state.max_steps = last
        self.schedule.total = last
        apply_now(self.trainer.lr_scheduler)
        self._plan(last)
        return last

    def _plan(self, steps: int) -> None:
        self.ctx.emit(StepsPlanned(stage=self.ctx.stage_name, attempt=self.ctx.attempt, total_steps=steps))

    def _restore(self, manifest: dict[str, Any], step: int) -> None:
        self.counters.restore(manifest)
        self.resumed_step = step
        position = manifest.get("position") or {}
        self._owes_evaluation = bool(position.get(EVALUATION_DUE)) and self.eval_every is not None
        self.watch.restore(position)
        self.early_stopping.restore(position)
        if position.get("planned_steps", self.planned_steps) == self.planned_steps:
            # Otherwise a resume has changed the number of steps since. Older checkpoints could only lower it.
            self.requested_steps = position.get("requested_steps", position.get("lowered_to"))
        if self.requested_steps is not None:
            self.total_steps = self.requested_steps
        if step > self.total_steps:
            raise OperatorError(
                f"the checkpoint of step {step} lies beyond the last step; got {self.total_steps} steps",
                f"set max_steps or num_train_epochs to at least {step} steps, or resume from an earlier checkpoint",
            )

    def _step_event(self, measured: Measured, step: int, epoch: float, step_s: float) -> Step:
        return Step(
            stage=self.ctx.stage_name,
            attempt=self.ctx.attempt,
            step=step,
            epoch=epoch,
            loss=measured.loss,
            learning_rate=measured.learning_rate,
            grad_norm=None if measured.skipped else measured.grad_norm,
            tokens=self.counters.tokens,
            loss_tokens=self.counters.loss_tokens,
            step_s=step_s,
            data_wait_s=measured.window.data_wait_s,
            metrics={
                **measured.metrics,
                **({} if measured.loss_scale is None else {"loss_scale": measured.loss_scale}),
                **peak_memory(self.trainer.args.device),
                **self._utilization(measured.window.tokens / step_s if step_s > 0 else None),
            },
        )

    def _utilization(self, tokens_per_second: float | None) -> dict[str, float]:
        of_one = None if tokens_per_second is None else tokens_per_second / self.world.size  # the peak is one device's
        found = None if self.task.utilization is None else self.task.utilization.of(of_one)
        return {} if found is None else {"mfu": found}

    def _refuse(self, trip: Trip, measured: Measured) -> None:
        step = self.step + 1
        self.counters.all_finite = False
        epoch = float(self.trainer.state.epoch or 0.0)
        self._emit(self._step_event(measured, step, epoch, time.monotonic() - measured.window.began_s))
        self._note_trip(trip, step)
        limit = "" if trip.limit is None else f", over the limit {quantities.exact(trip.limit)}"
        raise GuardTrippedError(
            f"{trip.guard} at step {step}: {quantities.number(trip.value, 6)}{limit}"
            f"{of_one_process(measured.losses)}; the step was not applied"
            + ("" if self.step > self.resumed_step else damage(self.trainer.model))
        )

    def _emit(self, event: Step | Evaluated) -> None:
        self.ctx.emit(event)
        self.scalars.take(event)

    def _note_trip(self, trip: Trip, step: int) -> None:
        if not self.world.is_first and trip.guard != EndReason.OUT_OF_MEMORY:
            return  # all processes judge the same numbers; memory is each one's own
        self.ctx.emit(
            GuardTripped(
                stage=self.ctx.stage_name,
                attempt=self.ctx.attempt,
                guard=trip.guard,
                step=step,
                value=trip.value,
                limit=trip.limit,
            )
        )


def perplexity(loss: float) -> float:
    """exp(loss); infinity when it exceeds the range of a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
