"""The arguments that a Python script gives to the classes of TRL, PEFT, transformers and Unsloth.

The script is parsed, never executed: literals are read, names that the script sets once to a literal are looked up, and
everything else is an `Expression`.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.json_text import parse_json
from recipes.problems import OperatorError, printable

CONFIGS = frozenset(
    {"SFTConfig", "DPOConfig", "TrainingArguments", "UnslothTrainingArguments", "LoraConfig", "BitsAndBytesConfig",
     "ModelConfig", "ScriptArguments"}
)  # fmt: skip
"""Classes whose keyword arguments are entries, besides trainers."""
PAIRS = frozenset({"DPOConfig", "DPOTrainer"})
"""Classes of what a dpo stage does."""
TRAINERS = frozenset({"SFTTrainer", "UnslothTrainer", "DPOTrainer"})
"""Trainers of what a finetune or a dpo stage does."""
PATCHES = frozenset({"PatchDPOTrainer"})
"""Functions that are called like trainers."""
TYPES = frozenset({"float32", "bfloat16", "float16"})
"""Types of PyTorch, which stand for themselves."""
OTHER_CONFIGS = frozenset(
    {"KTOConfig", "ORPOConfig", "CPOConfig", "BCOConfig", "GRPOConfig", "RLOOConfig", "PPOConfig",
     "RewardConfig", "PRMConfig", "GKDConfig", "OnlineDPOConfig", "NashMDConfig", "XPOConfig", "DistillationConfig"}
)  # fmt: skip
"""Classes of methods that no stage kind has; so is every trainer that is not one of `TRAINERS`."""
MODELS = frozenset({"FastLanguageModel", "FastModel", "FastVisionModel", "AutoModelForCausalLM"})
"""Classes whose `from_pretrained` and `get_peft_model` give entries."""
OBJECTS = frozenset({"args", "model", "tokenizer", "processing_class", "data_collator", "peft_config", "callbacks"})
"""Arguments that hand one object of the script to another; each object's own arguments are entries."""
MAX_CODE = 1024 * 1024
"""Characters of code that are parsed."""


@dataclass(frozen=True)
class Expression:
    """A value that only running the script would give."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass
class Arguments:
    """Arguments by name, with value and line; names given more than once with different values; the calls."""

    values: dict[str, tuple[Any, int]] = field(default_factory=dict)
    repeated: list[tuple[str, int, int]] = field(default_factory=list)
    calls: frozenset[str] = frozenset()

    def add(self, name: str, value: Any, line: int) -> None:
        """Take an argument; the first of several counts."""
        known = self.values.setdefault(name, (value, line))
        if known[0] != value:
            self.repeated.append((name, line, known[1]))


def code_of(notebook: str, path: Path) -> str:
    """The code cells of a notebook, one after another; lines for the notebook's shell become empty.

    Raises:
        OperatorError: the text is not a notebook.
    """
    try:
        value = parse_json(notebook)
    except ValueError as error:
        raise OperatorError(f"{printable(str(path), 400)}: not a notebook: {printable(str(error), 200)}") from None
    cells = value.get("cells") if isinstance(value, dict) else None
    lines: list[str] = []
    for cell in cells if isinstance(cells, list) else []:
        if not isinstance(cell, dict) or cell.get("cell_type") != "code":
            continue
        source = cell.get("source", "")
        if isinstance(source, list):
            source = "".join(part for part in source if isinstance(part, str))
        code = str(source).splitlines()
        foreign = bool(code) and code[0].startswith("%%") and not code[0].startswith(("%%capture", "%%time"))
        lines += ["" if foreign or line.lstrip().startswith(("%", "!")) else line for line in code]
    return "\n".join(lines) + "\n"


def arguments_of(text: str, path: Path) -> Arguments:
    """The arguments in a script.

    Raises:
        OperatorError: the text is not Python, or has none of the known calls.
    """
    shown = printable(str(path), 400)
    if len(text) > MAX_CODE:
        raise OperatorError(f"{shown}: too much code; got {len(text)} characters; allowed: at most {MAX_CODE}")
    try:
        with warnings.catch_warnings():  # about the script's own literals
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except SyntaxError as error:
        raise OperatorError(f"{shown}:{error.lineno or 0}: not Python: {printable(error.msg, 200)}") from None
    except (RecursionError, MemoryError, ValueError) as error:
        raise OperatorError(f"{shown}: not Python that is read here: {printable(str(error), 200)}") from None
    found = Arguments()
    try:
        constants = _constants(tree)
        calls = set()
        for name, call in _calls(tree):
            calls.add(name)
            _take(found, name, call, constants)
        for dictionary in _dictionaries(tree):
            calls.add("dict")
            for key, value in zip(dictionary.keys, dictionary.values, strict=True):
                if isinstance(key, ast.Constant):
                    found.add(str(key.value), _literal(value, constants), key.lineno)
    except RecursionError:
        raise OperatorError(f"{shown}: not Python that is read here: nested too deeply") from None
    if not found.values:
        raise OperatorError(
            f"{shown}: no arguments that are read here",
            f"a script gives keyword arguments to {', '.join(sorted(CONFIGS))}, or has a dictionary of them",
        )
    found.calls = frozenset(calls)
    return found


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    """Names that the script's top level sets exactly once, with what it sets them to."""
    found: dict[str, ast.expr] = {}
    often = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            if node.id in found:
                often.add(node.id)
            found.setdefault(node.id, ast.Constant(value=...))
    for line in tree.body:
        if isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name):
            found[line.targets[0].id] = line.value
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
            found[line.target.id] = line.value
    return {name: value for name, value in found.items() if name not in often}


def _calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
        name = _name(call.func)
        of, _, method = name.rpartition(".")
        if method in CONFIGS or method in TRAINERS or is_other_method(method):
            yield method, call
        elif method in ("from_pretrained", "get_peft_model") and of.rpartition(".")[2] in MODELS:
            yield f"{of.rpartition('.')[2]}.{method}", call
        elif method == "load_dataset":
            yield method, call


def is_other_method(name: str) -> bool:
    """Whether a class belongs to a method that no stage kind has; transformers' own `Trainer` says nothing."""
    neutral = TRAINERS | PATCHES | {"Trainer"}
    return name in OTHER_CONFIGS or (name.endswith("Trainer") and name not in neutral)


def _take(found: Arguments, name: str, call: ast.Call, constants: dict[str, ast.expr]) -> None:
    if name.endswith(".from_pretrained") and call.args:
        found.add("model_name", _literal(call.args[0], constants), call.lineno)
    if name == "load_dataset":
        if call.args:
            found.add("dataset_name", _literal(call.args[0], constants), call.lineno)
        words = {word.arg: word for word in call.keywords}
        for here, there in (("data_files", "data_files"), ("name", "dataset_config"), ("split", "dataset_train_split")):
            if here in words:
                found.add(there, _literal(words[here].value, constants), words[here].value.lineno)
        return
    for word in call.keywords:
        value = Expression("**…") if word.arg is None else _literal(word.value, constants)
        key = word.arg or "**"
        if isinstance(value, Expression) and key in OBJECTS:
            continue
        found.add(key, value, word.value.lineno)


def _dictionaries(tree: ast.Module) -> Iterator[ast.Dict]:
    """Dictionaries of arguments: the script's top level gives them a name, and all their keys are words."""
    for line in tree.body:
        value = line.value if isinstance(line, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Dict) and len(value.keys) > 1:
            keys = [key.value if isinstance(key, ast.Constant) else None for key in value.keys]
            if all(isinstance(key, str) and key.isidentifier() for key in keys):
                yield value


def _literal(node: ast.expr, constants: dict[str, ast.expr], depth: int = 0) -> Any:
    """The value of a literal, of a name of one, or of `-literal`; else the expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | bool | None):
        return node.value
    if isinstance(node, ast.Attribute) and _name(node) == f"torch.{node.attr}" and node.attr in TYPES:
        return node.attr
    if isinstance(node, ast.Name) and node.id in constants and depth < 10:
        return _literal(constants[node.id], constants, depth + 1)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand, constants, depth + 1)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return -value
    if isinstance(node, ast.List | ast.Tuple):
        items = [_literal(item, constants, depth + 1) for item in node.elts]
        if not any(isinstance(item, Expression) for item in items):
            return items
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        values = [_literal(value, constants, depth + 1) for value in node.values]
        if not any(isinstance(value, Expression) for value in values):
            keys = [str(key.value) for key in node.keys if isinstance(key, ast.Constant)]
            return dict(zip(keys, values, strict=True))
    return Expression(printable(ast.unparse(node), 80))


def _name(node: ast.expr) -> str:
    """`a.b.c` of an expression of names; empty for any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        above = _name(node.value)
        return f"{above}.{node.attr}" if above else ""
    return ""
