"""One attempt of a training stage: the work before, between and after its optimizer steps."""

from __future__ import annotations

import math
import sys
import time
import traceback
from contextlib import suppress
from typing import Any

from engines.artifacts.checkpoints import Checkpoint
from engines.artifacts.manifest import read_manifest
from engines.context import GuardTrippedError, ResumePoint, StageContext, StopRequested
from engines.data_wait import DataWait
from engines.events.results import Evaluated
from engines.exhausted_memory import EvaluationMemoryError, exhausted_memory
from engines.forward.compiling import compile_layers, uncompiled
from engines.forward.noise import noisy_embeddings
from engines.guards import NO_IMPROVEMENT, Trip
from engines.ranks.able import require_shareable, require_shareable_loss
from engines.ranks.numbers import of_one_process, seed_process
from engines.ranks.own import is_of_another_rank
from engines.ranks.placement import FSDP2, is_sharded, strategy_asked
from engines.training.arguments import training_arguments
from engines.training.beginning import (
    START_FROM,
    continued_checkpoint,
    first_weights,
    require_fitting_weights,
)
from engines.training.devices import report_devices, require_shared_memory
from engines.training.evaluations import Evaluations
from engines.training.faults import Faults
from engines.training.precision import autocast, keep_input_types
from engines.training.progress import Counters
from engines.training.reports.report import Report
from engines.training.requests import handle_requests
from engines.training.resume import check_resume
from engines.training.saves.shared import SharedWriter
from engines.training.saving import EVALUATION_DUE, CheckpointWriter, damage
from engines.training.schedule import Schedule, apply_now, schedule_of, warmup_steps
from engines.training.start import NOT_DETERMINISTIC, device_words, setup_text
from engines.training.steps.measured import Measured
from engines.training.steps.trainer import build_trainer, connect
from engines.training.task import Method, Task
from engines.training.watch import Watch
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
        self.evaluations = Evaluations(ctx, task)
        self.eval_every = eval_every(self.stage, task.examples) if task.evaluates else None
        self.save_every = save_every(self.stage, task.examples)
        self.output: Checkpoint | None = None
        self.data_wait = DataWait(ctx.phase)
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
        self.report = Report(ctx, task, self.counters, self.resumed_step)
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
            self.report.plan(resume.step)
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
                self.report.trip(Trip(EndReason.OUT_OF_MEMORY, None, None), self.step + 1)
            if self.stage.deterministic and NOT_DETERMINISTIC in str(error):
                raise OperatorError(
                    f"deterministic — this model needs {printable(str(error).partition(NOT_DETERMINISTIC)[0], 200)},"
                    " which has no deterministic kernel in this torch",
                    f"set {self.ctx.stage_name}.deterministic = false",
                ) from error
            raise
        finally:
            self.data_wait.close()
            self.report.close()
            self._finish_saving()
        self.writer.finish()
        self._load_best()

    def _finish_saving(self) -> None:
        """Wait for the checkpoint that is being written, however the training ends: it is the newest to resume from."""
        error = sys.exc_info()[1]
        if error is None:
            return
        with suppress(Exception):  # what ends the training is the cause, not what follows
            self.writer.end(lost=is_of_another_rank(error))

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
        self.report.plan(resume.step)
        return True

    def _load_best(self) -> None:
        """Load the weights of the best checkpoint of this training, if the stage asks for it and the last is not it."""
        best = self.writer.best() if self.stage.load_best_model_at_end else None
        if best is None or best.step == self.step:
            return
        if not self.evaluations.is_worse_than(best.judged, self.step):
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
        return self.report.result(self.step, self.evaluations.last, self.output, self.trainer.args.device)

    # Called by the Trainer, in the order of a step.

    def placed(self, strategy: str) -> None:
        """Report how the model's modules are placed over the processes."""
        devices = self.world.gather_objects(device_words(self.trainer.args.device))
        self.ctx.placed(strategy, devices)

    def train_begins(self) -> None:
        """Replace Trainer's number of steps by the stage's, which an operator may have changed."""
        self.trainer.state.max_steps = self.total_steps
        self.trainer.state.num_train_epochs = math.ceil(self.stage.num_train_epochs)
        self.report.plan(self.total_steps)
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
        self.report.step(measured, state.global_step, float(state.epoch or 0.0), step_s, self.trainer.args.device)
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
        known = self.evaluations.of(self.step) is not None
        found = self.evaluate()
        return found is not None and not known and self.evaluations.end_the_training(found, self.step, self.last_step)

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
        self.report.trip(trip, self.step)
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
        measured = self.evaluations.of(self.step)
        plan: dict[str, Any] = {
            "planned_steps": self.planned_steps,
            "requested_steps": self.requested_steps,
            **self.watch.saved(),
            **self.evaluations.early_stopping.saved(),
            **self.evaluations.recorded(self.step),
        }
        self.counters.suspect = self.watch.suspect
        self.report.flush()
        return self.writer.commit(
            self.trainer,
            self.counters,
            None if measured is None else measured.loss,
            plan,
            evaluation_follows=evaluation_follows and measured is None,
            wait=wait,
        )

    def evaluate(self) -> Evaluated | None:
        """The loss on the val split now; None without a val split. Draws no random numbers."""
        if not self.task.evaluates:
            return None
        known = self.evaluations.of(self.step)
        if known is not None:
            return known
        self.ctx.phase(PHASE_EVALUATING)
        try:
            found = self.evaluations.measure(self.trainer, self.step)
        except Exception as error:
            # Of several processes, those that raise this have left the evaluation together; else a save would wait for
            # the others, which wait in the evaluation.
            together = self.world.size == 1 or isinstance(error, EvaluationMemoryError)
            if exhausted_memory(error) and together:
                self._save_before_the_end(error)
            raise
        if found is not None and found.loss is not None:
            self.report.emit(found)
            self.watch.note_evaluation(self.step, found.loss)
        return found

    def _save_before_the_end(self, error: Exception) -> None:
        """An evaluation that memory cannot hold ends the attempt: its steps are saved before."""
        traceback.clear_frames(error.__traceback__)
        if self.trainer.optimizer is not None:  # else the training has not begun
            with suppress(Exception):
                self.save(evaluation_follows=True)
        self.ctx.phase_name = PHASE_EVALUATING

    def sample(self, prompt: str = "") -> bool:
        """Generate text now, from this prompt or from the recipe's; False where the stage cannot."""
        if self.task.sample is None:
            return False
        if not self.world.is_first and not is_sharded(self.task.model):
            return True  # the first process generates it alone; a divided model needs all of them
        self.ctx.phase(PHASE_SAMPLING)
        with uncompiled(), autocast(self.trainer.args.device, bf16=self.task.bf16, fp16=self.task.fp16):
            return self.task.sample(self.step, prompt)

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
        self.report.plan(last)
        return last

    def _restore(self, manifest: dict[str, Any], step: int) -> None:
        self.counters.restore(manifest)
        self.resumed_step = step
        position = manifest.get("position") or {}
        self._owes_evaluation = bool(position.get(EVALUATION_DUE)) and self.eval_every is not None
        self.watch.restore(position)
        self.evaluations.early_stopping.restore(position)
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

    def _refuse(self, trip: Trip, measured: Measured) -> None:
        step = self.step + 1
        self.counters.all_finite = False
        epoch = float(self.trainer.state.epoch or 0.0)
        step_s = time.monotonic() - measured.window.began_s
        self.report.step(measured, step, epoch, step_s, self.trainer.args.device)
        self.report.trip(trip, step)
        limit = "" if trip.limit is None else f", over the limit {quantities.exact(trip.limit)}"
        raise GuardTrippedError(
            f"{trip.guard} at step {step}: {quantities.number(trip.value, 6)}{limit}"
            f"{of_one_process(measured.losses)}; the step was not applied"
            + ("" if self.step > self.resumed_step else damage(self.trainer.model))
        )
