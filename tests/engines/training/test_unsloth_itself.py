"""Unsloth as it is installed: the arguments that it takes, and a training with it against one without.

Opt-in: COCKPIT_UNSLOTH_PYTHON names an interpreter with the versions of `recipes.stages.kind.TESTED`. It runs this file
as a program.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PYTHON = os.environ.get("COCKPIT_UNSLOTH_PYTHON", "")
METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "dropout": {"lora_dropout": 0.1},
    "packed": {"packing": True},
    "DoRA": {"use_dora": True, "use_rslora": True},
    "QLoRA": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "checkpointing": {"gradient_checkpointing": True},
    "embeddings": {"modules_to_save": ["embed_tokens"]},
    "all weights": {"output": "model"},
}
LOAD = {"model_name", "max_seq_length", "dtype", "load_in_4bit", "full_finetuning", "use_gradient_checkpointing",
        "random_state", "fix_tokenizer"}  # fmt: skip
ADAPT = {"r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "target_modules", "modules_to_save",
         "bias", "use_gradient_checkpointing", "random_state"}  # fmt: skip
FUNCTIONS = {
    ("unsloth/models/loader.py", "FastLanguageModel", "from_pretrained"): LOAD,
    ("unsloth/models/llama.py", "FastLlamaModel", "get_peft_model"): ADAPT,
    ("unsloth_zoo/cpu/loader.py", "FastCPUModel", "from_pretrained"): LOAD - {"random_state", "fix_tokenizer"},
    ("unsloth_zoo/cpu/loader.py", "FastCPUModel", "get_peft_model"): ADAPT,
}
"""Named arguments, by source file: on an accelerator, and on the CPU, which takes the others in **kwargs."""


def arguments_of(file: Path, class_name: str, function: str) -> tuple[set[str], bool]:
    """The names of a function's arguments, by its source, and whether it takes others too."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and inner.name == function:
                    taken = inner.args
                    return {one.arg for one in [*taken.args, *taken.kwonlyargs]}, taken.kwarg is not None
    return set(), False


def contract() -> list[str]:
    """What the installed Unsloth does not take."""
    from importlib.metadata import version

    from recipes.stages.kind import TESTED

    missing = [
        f"{name} {version(name)}" for name, one in TESTED["unsloth"].items() if not version(name).startswith(f"{one}.")
    ]
    for (path, class_name, function), wanted in FUNCTIONS.items():
        package, _, rest = path.partition("/")
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        taken, others = arguments_of(Path(spec.submodule_search_locations[0]) / rest, class_name, function)
        missing += [f"{path} {class_name}.{function}({name})" for name in sorted(wanted - taken)]
        if not others:
            missing.append(f"{path} {class_name}.{function}(**kwargs)")
    return missing


def trained(backend: str, folder: Path) -> dict[str, Any]:
    """Losses, gradient norms, validation losses and names of output files by method; whether a resume is exact."""
    from engines.events.results import Evaluated
    from engines.events.steps import Step
    from tests.engines.training import tiny
    from tests.engines.training.attempts import context, of_kind, resume_point, run_stage, trajectory

    inputs = {"model": tiny.write_model(folder / "model"), "data": tiny.write_messages(folder / "messages")}
    found: dict[str, Any] = {}
    for name, change in METHODS.items():
        stage = {**tiny.FINETUNE, "lora_dropout": 0.0, "eval_steps": 6, "max_steps": 6, "backend": backend, **change}
        if "output" in change:
            stage = {key: value for key, value in stage.items() if key not in ("r", "lora_alpha", "lora_dropout")}
        whole = context(folder / name, stage, inputs)
        run_stage(whole)
        later = context(folder / name, stage, inputs, attempt=2, resume=resume_point(whole, 3))
        run_stage(later)
        found[name] = {
            "steps": [[step.loss, step.grad_norm, step.learning_rate] for step in of_kind(whole, Step, 1)],
            "evaluated": of_kind(whole, Evaluated)[0].loss,
            "files": sorted(path.name for path in whole.out.iterdir()),
            "exact resume": trajectory(later, 2) == trajectory(whole, 1, after=3) != [],
        }
    return found


def main(backend: str) -> None:
    """Print the contract's gaps and the trainings of a backend, as JSON."""
    from pathlib import Path as Folder

    if backend == "unsloth":
        import unsloth  # noqa: F401 - before transformers
    with tempfile.TemporaryDirectory() as folder:
        result = {"missing": contract() if backend == "unsloth" else [], "trained": trained(backend, Folder(folder))}
    print("\n" + json.dumps(result))


def asked(python: str, backend: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        environment |= {"UNSLOTH_DISABLE_STATISTICS": "1", "UNSLOTH_COMPILE_LOCATION": f"{folder}/compiled"}
        answer = subprocess.run(
            [python, str(Path(__file__).resolve()), backend],
            capture_output=True, text=True, cwd=folder, env=environment,
        )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main(sys.argv[1])
else:
    import pytest

    @pytest.mark.torch
    @pytest.mark.skipif(not PYTHON, reason="COCKPIT_UNSLOTH_PYTHON names an interpreter with Unsloth")
    def test_unsloth_takes_what_it_is_given_and_trains_as_hf_does() -> None:
        found, plain = asked(PYTHON, "unsloth"), asked(sys.executable, "hf")
        assert found["missing"] == []
        assert found["trained"].keys() == METHODS.keys()
        for name, one in found["trained"].items():
            other = plain["trained"][name]
            assert one["files"] == other["files"], name
            assert one["exact resume"], name
            assert one["evaluated"] == pytest.approx(other["evaluated"], rel=1e-6), name
            for mine, theirs in zip(one["steps"], other["steps"], strict=True):
                assert mine == pytest.approx(theirs, rel=1e-6), name
