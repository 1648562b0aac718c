"""A name with an underscore belongs to the module that defines it: no other module of the product reads it.

So a class has its methods in its own file, and a subclass does without the private names of a base elsewhere.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("recipes", "engines", "exporters", "cockpit")
NOT_OURS = {
    "_exit": "os",
    "_replace": "named tuples",
    "_name_": "enum",
    "_value_": "enum",
    "_actions": "argparse",
    "_positionals": "argparse",
    "_SubParsersAction": "argparse",
    "_AppendAction": "argparse",
    "_n_gpu": "transformers.TrainingArguments",
    "_models": "accelerate.Accelerator",
    "_load_rng_state": "transformers.Trainer",
    "_load_from_checkpoint": "transformers.Trainer",
    "_is_mkldnn_bf16_supported": "torch.ops.mkldnn",
    "_flash_attention_forward": "torch.ops.aten",
    "_flash_attention_backward": "torch.ops.aten",
    "_log_softmax": "torch.ops.aten",
    "_softmax": "torch.ops.aten",
    "_softmax_backward_data": "torch.ops.aten",
    "_log_softmax_backward_data": "torch.ops.aten",
    "_last_lr": "torch schedulers",
    "_cdata": "torch storages: what two views share",
    "_metrics": "trl.DPOTrainer",
    "_prepare_inputs": "transformers.Trainer",
    "_found_inf_per_device": "torch.amp.GradScaler",
    "_is_overflow": "accelerate.AcceleratedOptimizer",
}
"""Names of libraries that have no public one for the same thing."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.AST) -> set[str]:
    """Names that a module gives to functions, classes, variables and attributes."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def foreign_names(tree: ast.AST) -> Iterator[str]:
    """Private names that a module reads, sets or imports and does not define."""
    own = defined(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            yield node.attr
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if is_private(alias.name))


def test_no_module_uses_a_private_name_of_another() -> None:
    used = {
        (path.relative_to(ROOT).as_posix(), name)
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in foreign_names(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert {(file, name) for file, name in used if name not in NOT_OURS} == set()
    assert {name for _, name in used} == set(NOT_OURS), "names that nothing uses any more"


@pytest.mark.parametrize(
    "text",
    [
        "from cockpit.runs.state import _fold",
        "def more(session):\n    session._step += 1",
        "class Sub(Base):\n    def f(self):\n        return self._rows",
        "def f(x):\n    x._secret = 1",
    ],
)
def test_a_private_name_of_another_module_is_found(text: str) -> None:
    assert list(foreign_names(ast.parse(text)))


def test_a_module_s_own_private_names_are_left_alone() -> None:
    text = (
        "class A:\n    def __init__(self):\n        self._x = 1\n    def copy(self, other):\n        other._x = self._x"
    )
    assert not list(foreign_names(ast.parse(text)))
