"""A whole run with a really exported file and planted answers, and what changes it consistently."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cockpit.launching.launch import resolve
from cockpit.provenance.trust import seal
from engines.artifacts.manifest import manifest_sha256
from engines.artifacts.model_files import sha256_of, weights_of
from engines.commit import commit_output
from engines.context import Artifact, Input, StageContext, StageResult
from engines.emitter import EventWriter
from engines.evaluate.results import evaluate_tasks, write_results
from engines.events.attempts import AttemptEnded, AttemptStarted
from engines.events.results import Evaluated, GateChecked
from engines.events.runs import RunEnded, RunStarted, StageStarted
from engines.events.steps import Step
from engines.files import file_sha256
from engines.judging.answers import Kept
from engines.judging.checks import Judges
from engines.judging.sets.general import general_set
from engines.judging.task import Task
from engines.judging.test_file import read_tests
from engines.llama.gguf_file import read_gguf
from engines.run_dir.creation import create_run_dir
from engines.run_dir.paths import RunDir
from engines.words import EndReason, GateResult, RunStatus, StartReason, WriterRole
from recipes.load import load_recipe_text
from tests.engines.judging.test_general_set import right as right_answer
from tests.exporters.small_models import build_adapter, build_model, copy_folder

RECIPE = """schema = 1
name = "mine"

[ship]
file = "Q8_0"

[[stage]]
name = "tuned"
kind = "finetune"
model = "./base"
data = "./data"
max_steps = 4

[[stage]]
name = "merged"
kind = "merge"
model = "./base"
adapter = "tuned"

[[stage]]
name = "gguf"
kind = "export"
model = "merged"
file_types = ["F16", "Q8_0"]
parity_positions = 200
max_length = 64
threads = 1
file_name = "mine"

[[stage]]
name = "before"
kind = "evaluate"
model = "./base"
data = "./data"
test_data = "./task.jsonl"
checks = ["number"]

[[stage]]
name = "judge"
kind = "evaluate"
model = "merged"
data = "./data"
test_data = "./task.jsonl"
checks = ["number"]
files = "gguf"
baseline = "before"

[[stage.gate]]
metric = "success_low.Q8_0"
op = ">="
value = 0.5

[[stage]]
name = "general-before"
kind = "evaluate"
model = "./base"
data = "./data"
tests = "general"

[[stage]]
name = "general-after"
kind = "evaluate"
model = "merged"
data = "./data"
tests = "general"
files = "gguf"
baseline = "general-before"
"""
TASK_ROWS = 40
GENERAL = 84
_HERE = "here"


class Planted:
    """A model whose answers are planted: right ones to some tasks, by their place."""

    batch_size, longest, limit = 1, 1 << 30, 32

    def __init__(self, identity: Mapping[str, Any], right: Sequence[int], latency_s: float) -> None:
        self.identity, self._right, self._latency_s = identity, set(right), latency_s
        self.places: dict[str, int] = {}

    def encode(self, _task: Task) -> list[int]:
        return [1]

    def prepare(self, _longest_prompt: int) -> None:
        pass

    def answer(self, tasks: Sequence[tuple[Task, list[int]]], _waiting: Callable[[], None]) -> list[Kept]:
        return [
            Kept(
                key=task.key,
                answer=right_answer(task) if self.places[task.key] in self._right else "I do not know.",
                ended=True,
                prompt_tokens=9,
                tokens=5,
                first_token_s=0.1,
                latency_s=self._latency_s,
            )
            for task, _ in tasks
        ]

    def measured(self) -> dict[str, float]:
        return {"peak_rss_bytes": 2e6, "size_bytes": 1e6}


class Whole:
    """A run and the files around it, all in one folder that may be copied."""

    def __init__(self, root: Path, outside: Path) -> None:
        self.root, self.outside = root, outside

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def run(self) -> RunDir:
        return RunDir(next(path for path in sorted(self.runs.iterdir()) if path.is_dir()))

    def file(self, file_type: str = "Q8_0") -> Path:
        return self.run.out("gguf") / f"mine-{file_type}.gguf"

    def identity(self, model: str, template: str | None = None) -> dict[str, Any]:
        """The identity of a model's answers: `base`, `merged`, or a file type."""
        own = "no-such-template" if template is None else template
        if model in ("base", "merged"):
            folder = self.outside / "base" if model == "base" else self.run.out("merged")
            return {"model": sha256_of(weights_of([folder])), "runtime": "transformers", "template": own}
        text = str(read_gguf(self.file(model)).scalar("tokenizer.chat_template", ""))
        shown = hashlib.sha256(text.encode()).hexdigest() if template is None else template
        return {"model": file_sha256(self.file(model)), "adapter": "", "runtime": "llama.cpp", "template": shown}

    # ---- making it

    def context(self, stage: str, attempt: int, inputs: Mapping[str, str]) -> StageContext[Any]:
        """A real context of a stage; inputs are stages, or names of files outside."""
        fields = next(
            one for one in load_recipe_text(RECIPE, self.outside / "r.toml").recipe.stage if one.name == stage
        )
        folder = self.run.attempt_dir(stage, attempt)
        for path in (folder / "out.tmp", folder / "work", self.run.checkpoints(stage, attempt)):
            path.mkdir(parents=True, exist_ok=True)
        return StageContext(
            stage=fields,
            inputs={name: self._input(name, value) for name, value in inputs.items()},
            out=folder / "out.tmp",
            work=folder / "work",
            attempt=attempt,
            resume=None,
            learning_rate_scale=1.0,
            checkpoints=self.run.checkpoints(stage, attempt),
            run_id=self.run.id,
            stage_name=stage,
            run_root=self.run.root,
            writer=EventWriter(self.run.journal, None, role=WriterRole.ENGINE, stage=stage, attempt=attempt, launch=1),
        )

    def _input(self, field: str, name: str) -> Input:
        if (self.outside / name).exists():
            path = self.outside / name
            files = [path] if path.is_file() else sorted(one for one in path.iterdir() if one.is_file())
            listed = tuple((one.name, one.stat().st_size, file_sha256(one)) for one in files)
            digest = hashlib.sha256(repr(listed).encode()).hexdigest()
            return Input(field, "path", name, path, None, digest, "content", listed)
        out = self.run.out(name)
        return Input(field, "stage", name, out, None, manifest_sha256(out))

    def commit(
        self, ctx: StageContext[Any], artifacts: list[Artifact], metrics: Mapping[str, float] | None = None
    ) -> None:
        """End a stage as its host does, with its gates passed."""
        for gate in ctx.stage.gate:
            self.gate(ctx, gate, GateResult.PASS)
        commit_output(ctx, StageResult({}, artifacts), dict(metrics or {}), refused="")
        ctx.emit(AttemptEnded(stage=ctx.stage_name, attempt=ctx.attempt, reason=EndReason.SUCCEEDED))
        ctx.writer.close()

    def gate(self, ctx: StageContext[Any], gate: Any, result: GateResult, value: float | None = 0.9) -> None:
        ctx.emit(
            GateChecked(
                stage=ctx.stage_name, metric=gate.metric, op=gate.op, limit=gate.value, value=value, result=result
            )
        )

    def begin(self, stage: str, attempt: int, inputs: Mapping[str, str]) -> StageContext[Any]:
        ctx = self.context(stage, attempt, inputs)
        ctx.emit(AttemptStarted(stage=stage, kind=ctx.stage.kind, attempt=attempt, launch=1))
        return ctx

    def evaluate(
        self,
        stage: str,
        *,
        model: str,
        right: Sequence[int],
        attempt: int = 1,
        baseline: str | None = None,
        general: bool = False,
        rows: int = TASK_ROWS,
        identity: Mapping[str, Any] | None = None,
        latency_s: float = 0.5,
        change: Callable[[dict[str, Any]], None] | None = None,
        pass_gates: bool = True,
    ) -> None:
        """An evaluate stage with planted answers: really asked, judged, compared and committed.

        Args:
            stage: its name.
            model: whose answers: base, or a file type.
            right: places of the rows that are answered rightly.
            attempt: of the stage.
            baseline: the stage to compare with.
            general: asks the general set.
            rows: of the task.
            identity: of the answers, if not the model's.
            latency_s: of each answer.
            change: changes the results before they are committed.
            pass_gates: whether its gates pass.
        """
        tests = general_set() if general else self.task(rows)
        inputs = {"model": "base" if model == "base" else "merged", "data": "data"}
        inputs |= {} if general else {"test_data": tests.name}
        inputs |= {"files": "gguf"} if model != "base" else {}
        inputs |= {"baseline": baseline} if baseline else {}
        ctx = self.begin(stage, attempt, inputs)
        name = "results.json" if model == "base" else f"results-{model}.json"
        compared = self.run.out(baseline) / "results.json" if baseline else None
        given = identity or self.identity(model)
        results = ask(tests, Planted(given, right, latency_s), ctx.out / name, compared, model)
        if change is not None:
            change(results)
            (ctx.out / name).write_text(json.dumps(results))
        if pass_gates:
            self.commit(ctx, [Artifact(stage, "report", name)])
            return
        for gate in ctx.stage.gate:
            self.gate(ctx, gate, GateResult.FAIL, 0.1)
        commit_output(ctx, StageResult({}, []), {}, refused="")
        ctx.writer.close()

    def task(self, rows: int = TASK_ROWS) -> Path:
        file = self.outside / f"task{'' if rows == TASK_ROWS else rows}.jsonl"
        if not file.is_file():
            lines = (json.dumps({"prompt": f"What is {n} + 1?", "answer": str(n + 1)}) for n in range(rows))
            file.write_text("".join(line + "\n" for line in lines))
        return file


def ask(tests: Path, planted: Planted, output: Path, baseline: Path | None, model: str) -> dict[str, Any]:
    """Ask planted answers and write the results file; returns what stands in it."""
    from engines.judging.compare import read_baseline

    judges = Judges()
    try:
        tasks = read_tests(tests, ["number"], judges)
        planted.places = {task.key: at for at, task in enumerate(tasks)}
        given: Any = planted
        done = evaluate_tasks(
            given,
            tasks,
            judges,
            output.with_name(f"{output.name}.answers.jsonl"),
            baseline=read_baseline(baseline) if baseline else None,
        )
    finally:
        judges.close()
    return write_results(output, done, model=model, tests=tests, baseline=baseline)


def build(folder: Path, tokenizer: Path) -> Whole:
    """A whole run whose Q8_0 file may ship."""
    from exporters.stages import export_stage, merge_stage

    outside = folder / "outside"
    outside.mkdir(parents=True)
    build_model(
        outside / "base", tokenizer, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    (outside / "data").mkdir()
    (outside / "data" / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    whole = Whole(folder, outside)
    whole.task()
    loaded = load_recipe_text(RECIPE, outside / "mine.toml")
    run = create_run_dir(
        whole.runs, name="mine", recipe="mine", recipe_toml=RECIPE, recipe_json=resolve(loaded).to_json(), plan_json={},
        version="1", seal=seal,
    )  # fmt: skip
    supervisor = EventWriter(run.journal, None, role=WriterRole.SUPERVISOR, launch=1)
    names = [stage.name for stage in loaded.recipe.stage]
    kinds = [stage.kind for stage in loaded.recipe.stage]
    supervisor.emit(
        RunStarted(run=run.id, recipe="mine", reason=StartReason.LAUNCH, stages=names, kinds=kinds, launch=1)
    )
    for name, kind in zip(names, kinds, strict=True):
        supervisor.emit(StageStarted(stage=name, kind=kind, launch=1))
    train(whole, [2.0, 1.5, 1.2])
    ctx = whole.begin("merged", 1, {"model": "base", "adapter": "tuned"})
    merged = merge_stage.run(ctx)
    whole.commit(ctx, list(merged.artifacts), merged.metrics)
    ctx = whole.begin("gguf", 1, {"model": "merged"})
    exported = export_stage.run(ctx)
    whole.commit(ctx, list(exported.artifacts), exported.metrics)
    whole.evaluate("before", model="base", right=range(10))
    whole.evaluate("judge", model="Q8_0", right=range(38), baseline="before")
    whole.evaluate("general-before", model="base", right=range(60), general=True)
    whole.evaluate("general-after", model="Q8_0", right=range(1, 61), general=True, baseline="general-before")
    supervisor.emit(RunEnded(state=RunStatus.SUCCEEDED, launch=1))
    supervisor.close()
    return whole


def train(whole: Whole, losses: Sequence[float]) -> None:
    """The output of a fine-tuning, with its curves."""
    ctx = whole.begin("tuned", 1, {"model": "base", "data": "data"})
    for step, loss in enumerate(losses, start=1):
        ctx.emit(
            Step(
                stage="tuned", attempt=1, step=step, epoch=1.0, loss=loss + 0.1, learning_rate=1e-4, grad_norm=1.0,
                tokens=9 * step, loss_tokens=9 * step, step_s=0.1,
            )
        )  # fmt: skip
        ctx.emit(
            Evaluated(stage="tuned", attempt=1, step=step, loss=loss, perplexity=2.0, tokens=9, protocol="answers")
        )
    adapter = build_adapter(whole.outside / f".adapter-{len(losses)}", whole.outside / "base")
    for file in adapter.iterdir():
        if file.is_file():
            shutil.copyfile(file, ctx.out / file.name)
    base = ctx.inputs["model"]
    record = {"path": str(base.path), "manifest_sha256": base.manifest_sha256, "method": "content"}
    (ctx.out / "base.json").write_text(json.dumps(record))
    whole.commit(ctx, [Artifact("tuned", "adapter", ".")], {})


def copied(whole: Whole, target: Path) -> Whole:
    """A copy of the run to spoil; the files around it are shared. The folder was moved, so old paths lead nowhere."""
    shutil.copytree(whole.runs, target / "runs", ignore=shutil.ignore_patterns("*.fifo"))
    return Whole(target, whole.outside)


__all__ = ["GENERAL", "TASK_ROWS", "Planted", "Whole", "ask", "build", "copied", "copy_folder", "train"]
