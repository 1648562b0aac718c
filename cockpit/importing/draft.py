"""A recipe in the making: what each key of a configuration became, and the fields of the stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cockpit.importing.config import Config, Entry
from cockpit.importing.script import Expression
from recipes.explain import check_values
from recipes.fields import fields_of
from recipes.problems import closest, printable, shown
from recipes.stages.dpo import DPO, DpoStage
from recipes.stages.finetune import FINETUNE, FinetuneStage, QuantizedFields
from recipes.stages.registry import STAGE_TYPES
from recipes.toml_scan import KeyPath

Status = Literal["imported", "default", "unneeded", "unset", "different", "missing", "unknown"]
"""`imported`: a field has the value. `default`: not in the file; the program's own default, which differs from
Cockpit's. `unneeded`: changes nothing that is trained. `unset`: the key has no value. `different`: left out, and the
recipe trains differently without it. `missing`: a method that no stage kind has. `unknown`: a key that is not known
here."""

TUNED = "tuned"
DATA = "data"
MERGED = "merged"
TAGS = {TUNED: FINETUNE.kind, DATA: "prepare-messages", MERGED: "merge"}
"""The stages that an import makes, and their types."""
ADAPTER, ALL_WEIGHTS = FINETUNE.tag_of("adapter"), FINETUNE.tag_of("model")
PAIRS, ALL_WEIGHTS_ON_PAIRS = DPO.tag_of("adapter"), DPO.tag_of("model")
"""The types that the stage that trains can have."""
_NO_PAIRS = "belongs to training on pairs of answers"
_NO_ADAPTER = "belongs to an adapter, and all weights are trained"
_NOT_QUANTIZED = "a model of which all weights are trained is not quantized"


@dataclass(frozen=True)
class Outcome:
    """What became of one key; `line` is 0 if it is not in the file, `fields` are `stage.field` names."""

    key: str
    value: Any
    line: int
    status: Status
    fields: tuple[str, ...] = ()
    says: str = ""


@dataclass(frozen=True)
class Rule:
    """What one key means here.

    Attributes:
        kind: what to do with a value that is not off: set `field`, or report. A `switch` is a field that is set only
            by a value that is not off.
        field: `stage.field`, for a value that a recipe can have.
        convert: the recipe's value; raises a ValueError that says what is wrong.
        says: what it means that the key is left out.
        off: values, besides false, 0 and none, that ask for what a recipe does anyway.
    """

    kind: Literal["field", "switch", "unneeded", "different", "missing"]
    field: str = ""
    convert: Callable[[Any], Any] = lambda value: value
    says: str = ""
    off: tuple[Any, ...] = ()


def to(name: str, convert: Callable[[Any], Any], says: str = "") -> Rule:
    """The key sets a field of the finetune stage, or `stage.field`."""
    return Rule("field", name if "." in name else f"{TUNED}.{name}", convert, says)


def switch(name: str, convert: Callable[[Any], Any], says: str = "") -> Rule:
    """The key sets a field of the stage that trains, unless it is off."""
    return Rule("switch", f"{TUNED}.{name}", convert, says)


def unneeded(says: str) -> Rule:
    """The key changes nothing that is trained."""
    return Rule("unneeded", says=says)


def different(says: str, *off: Any) -> Rule:
    """The recipe trains differently without the key."""
    return Rule("different", says=says, off=off)


def missing(says: str, *off: Any) -> Rule:
    """The key selects a method that no stage kind has."""
    return Rule("missing", says=says, off=off)


def each(names: str, rule: Rule) -> dict[str, Rule]:
    """The same rule for several keys, separated by spaces."""
    return dict.fromkeys(names.split(), rule)


@dataclass
class Draft:
    """The stages and outcomes so far. Every key ends as exactly one outcome."""

    config: Config
    program: str
    method: str = ADAPTER
    """The type of the stage that trains."""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    waiting: dict[str, Entry] = field(init=False)
    """Keys without an outcome."""

    def __post_init__(self) -> None:
        self.waiting = dict(self.config.entries)

    # ---- keys

    def value(self, key: str) -> Any:
        """The value of a key, whether or not it has an outcome; None if it is not in the file."""
        entry = self.config.entries.get(key)
        return None if entry is None or isinstance(entry.value, Expression) else entry.value

    def take(self, key: str) -> Entry | None:
        """The entry of a key that has a value and no outcome yet; the caller gives it one."""
        entry = self.waiting.get(key)
        if entry is None:
            return None
        if entry.value is None:
            self.note(entry, "unset")
            return None
        if isinstance(entry.value, Expression):
            self.note(entry, "different", says=f"the script computes {entry.value}; set the field yourself")
            return None
        return entry

    def read(self, key: str, convert: Callable[[Any], Any]) -> tuple[Entry, Any] | None:
        """The entry of a key and its converted value; a value that cannot be converted is reported."""
        entry = self.take(key)
        if entry is None:
            return None
        try:
            return entry, convert(entry.value)
        except ValueError as error:
            self.note(entry, "different", says=str(error))
            return None

    def note(self, entry: Entry, status: Status, fields: Sequence[str] = (), says: str = "") -> None:
        """Give a key its outcome."""
        self.waiting.pop(entry.key, None)
        self.outcomes.append(Outcome(entry.key, entry.value, entry.line, status, tuple(fields), says))

    def again(self, key: str, status: Status, says: str) -> None:
        """Give a key that has an outcome another one, with the same fields."""
        self.outcomes = [
            one if one.key != key else Outcome(one.key, one.value, one.line, status, one.fields, says)
            for one in self.outcomes
        ]

    def note_nested(self, path: KeyPath, value: Any, status: Status, says: str, fields: Sequence[str] = ()) -> None:
        """An outcome of a key inside a table or a list, whose own key has an outcome too."""
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
        self.outcomes.append(Outcome(key, value, self.config.line(*path), status, tuple(fields), says))

    def apply(self, rules: Mapping[str, Rule]) -> None:
        """Apply each rule to its key."""
        for key, rule in rules.items():
            if rule.kind == "unneeded":
                entry = self.waiting.get(key)
                if entry is not None:
                    if entry.value is None:
                        self.note(entry, "unset")
                    else:
                        self.note(entry, "unneeded", says=rule.says)
            elif (entry := self.take(key)) is not None:
                self._apply(rule, entry)

    def apply_nested(self, key: str, rules: Mapping[str, Rule]) -> None:
        """Apply each rule to its key inside a table; the others are unknown."""
        entry = self.take(key)
        if entry is None:
            return
        if not isinstance(entry.value, dict):
            self.note(entry, "different", says="a table is needed to know what is asked for")
            return
        self.note(entry, "unneeded", says="its keys are listed one by one")
        for name, value in entry.value.items():
            inner = Entry(f"{key}.{name}", value, self.config.line(key, name))
            rule = rules.get(name)
            if value is None:
                self.note(inner, "unset")
            elif rule is None:
                self.note(inner, "unknown", says=f"not a key of {self.program} that is known here")
            elif rule.kind == "unneeded":
                self.note(inner, "unneeded", says=rule.says)
            else:
                self._apply(rule, inner)

    def _apply(self, rule: Rule, entry: Entry) -> None:
        if rule.kind != "field" and (is_off(entry.value) or entry.value in rule.off):
            self.note(entry, "unneeded", says="asks for what a recipe does anyway")
            return
        if rule.kind != "field" and rule.kind != "switch":
            self.note(entry, rule.kind, says=rule.says)
            return
        try:
            value = rule.convert(entry.value)
        except ValueError as error:
            self.note(entry, "different", says=f"{error}; {rule.field} is left at its default")
            return
        self.set(entry, rule.field, value, rule.says)

    def set(self, entry: Entry, name: str, value: Any, says: str = "") -> bool:
        """Set `stage.field` from a key; False if the field does not accept the value, which is then reported."""
        other = self._of_another_method(name)
        if other:
            quantized = other == _NOT_QUANTIZED and not is_off(value)
            self.note(entry, "different" if quantized else "unneeded", says=other)
            return False
        problem = self.put(name, value)
        if problem:
            self.note(entry, "different", says=problem)
        else:
            self.note(entry, "imported", [name], says)
        return not problem

    def put(self, name: str, value: Any) -> str:
        """Set `stage.field`; returns why it cannot be set, empty if it was."""
        stage, _, key = name.partition(".")
        problem = problem_with(self.tag(stage), key, value)
        if not problem:
            self.stages.setdefault(stage, {})[key] = value
        return f"{name} — {problem}" if problem else ""

    @property
    def on_pairs(self) -> bool:
        """Whether pairs of answers are trained."""
        return self.method in (PAIRS, ALL_WEIGHTS_ON_PAIRS)

    @property
    def all_weights(self) -> bool:
        """Whether all weights are trained, and no adapter."""
        return self.method in (ALL_WEIGHTS, ALL_WEIGHTS_ON_PAIRS)

    def choose(self, *, pairs: bool, all_weights: bool) -> None:
        """Set the type of the stage that trains; that of an adapter on answers is the first one."""
        if pairs:
            self.method = ALL_WEIGHTS_ON_PAIRS if all_weights else PAIRS
        elif all_weights:
            self.method = ALL_WEIGHTS

    def tag(self, stage: str) -> str:
        """The type of a stage."""
        return self.method if stage == TUNED else TAGS[stage]

    def _of_another_method(self, name: str) -> str:
        """Why a field does not belong to the method of the stage that trains; empty if it does."""
        stage, _, key = name.partition(".")
        if stage != TUNED or key in {spec.path for spec in fields_of(self.method)}:
            return ""
        if key in FinetuneStage.model_fields:
            return _NOT_QUANTIZED if key in QuantizedFields.model_fields else _NO_ADAPTER
        return _NO_PAIRS if key in DpoStage.model_fields else ""

    def drop(self, name: str, status: Status, says: str) -> bool:
        """Take a field out of its stage again, and give the keys that set it another outcome; False if it is not
        set."""
        stage, _, key = name.partition(".")
        if key not in self.stages.get(stage, {}):
            return False
        del self.stages[stage][key]
        self.outcomes = [
            one if name not in one.fields else Outcome(one.key, one.value, one.line, status, (), says)
            for one in self.outcomes
            if name not in one.fields or one.status != "default"
        ]
        return True

    def settle(self) -> None:
        """Drop the fields that the other fields of the stage that trains exclude, each with its reason."""
        if self.on_pairs and self.get(f"{TUNED}.disable_dropout") is not False:
            self.drop(f"{TUNED}.lora_dropout", "unneeded", "training on pairs turns all dropout off, as here")
        if self.on_pairs:
            self.drop(f"{TUNED}.packing", "unneeded", "pairs are never packed")
            self.drop(f"{TUNED}.train_sampling_strategy", "different", "pairs are taken in random order")
            self.drop(
                f"{TUNED}.backend", "unneeded", "pairs are trained with TRL's own trainer, which computes the same"
            )
        if self.get(f"{TUNED}.backend") == "unsloth" and self.get(f"{TUNED}.load_in_4bit"):
            self._double_quantization()
        for _ in range(len(self.stages.get(TUNED, {}))):
            found = self.problems_together(self.stages[TUNED])
            if not any(self.drop(f"{TUNED}.{key}", "different", f"{key} — {problem}") for key, problem in found):
                return

    def problems_together(self, fields: Mapping[str, Any]) -> list[tuple[str, str]]:
        """What is wrong with fields of the stage that trains beside each other, each with its key.

        Checks of several fields need a stage that has all that it requires.
        """
        required = {"name": "x", "model": "m", "data": "d", **({"output": "model"} if self.all_weights else {})}
        return problems_with(self.method, required | dict(fields))

    def _double_quantization(self) -> None:
        """Unsloth quantizes the scales of 4-bit blocks too, whatever it is asked for."""
        name = f"{TUNED}.bnb_4bit_use_double_quant"
        if self.get(name) is not True:
            says = "Unsloth always quantizes the scales too"
            self.drop(name, "different", says)
            self.put(name, True)
            self.outcomes.append(Outcome("bnb_4bit_use_double_quant", True, 0, "default", (name,), says))

    def get(self, name: str) -> Any:
        """The value of `stage.field`; None if it is not set."""
        stage, _, key = name.partition(".")
        return self.stages.get(stage, {}).get(key)

    def default(self, name: str, value: Any, key: str = "") -> None:
        """The program's own default for a field that no key set; `key` is the program's name of it."""
        given = self.config.entries.get(key or name.partition(".")[2])
        if given is not None and given.value is not None:
            return  # a value that the field refused, which is reported
        if self.get(name) is None and not self.put(name, value):
            says = f"{self.program}'s default; Cockpit's differs"
            self.outcomes.append(Outcome(name.partition(".")[2], value, 0, "default", (name,), says))

    def finish(self, known: Sequence[str]) -> None:
        """Report the keys that nothing understood, and those that stand in the file twice."""
        for entry in list(self.waiting.values()):
            hint = closest(entry.key, known)
            self.note(
                entry, "unknown", says=f"not a key of {self.program} that is known here" + (f"; {hint}" if hint else "")
            )
        for key, first, last in self.config.repeated:
            says = f"stands in lines {first} and {last}; the value of line {last} counts"
            self.outcomes.append(Outcome(key, ..., last, "different", (), says))


def is_off(value: Any) -> bool:
    """Whether a value asks for nothing."""
    return value in (None, False, "", "none", "no", "null", "false") or (not isinstance(value, str) and not value)


def problem_with(tag: str, key: str, value: Any) -> str:
    """Why a field cannot have a value; empty if it can."""
    if key not in {spec.path for spec in fields_of(tag)}:
        return "recipes have no such field"
    return next((problem for _, problem in problems_with(tag, {key: value})), "")


def problems_with(tag: str, table: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with the fields of a stage, each with its key; fields that are missing are not reported."""
    found: list[tuple[str, str]] = []

    def report(loc: KeyPath, message: str, got: str, allowed: str, hint: str) -> None:
        parts = [message, f"got {got}" if got else "", f"allowed {allowed}" if allowed else "", hint]
        found.append((str(loc[0]) if loc else "", "; ".join(part for part in parts if part)))

    check_values(STAGE_TYPES[tag], table, tag, report)
    return found


# ---- values


def number(value: Any) -> float:
    """A number; YAML reads 1e-4 as text, which is one too."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"got {shown(value)}; allowed: a number")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"got {shown(value)}; allowed: a number") from None


def whole(value: Any) -> int:
    """A whole number."""
    found = number(value)
    if not found.is_integer():
        raise ValueError(f"got {shown(value)}; allowed: a whole number")
    return int(found)


def flag(value: Any) -> bool:
    """True or false, also as text."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value in (0, 1):
        return bool(value)
    raise ValueError(f"got {shown(value)}; allowed: true or false")


def text(value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"got {shown(value)}; allowed: text")
    return value.strip()


def names(value: Any) -> list[str]:
    """A list of names, also as one text with commas."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        raise ValueError(f"got {shown(value)}; allowed: names")
    return [part.strip() for part in parts]


def numbers(value: Any) -> list[float]:
    """A list of numbers, also a single one."""
    return [number(item) for item in (value if isinstance(value, list) else [value])]


def choice(words: Mapping[str, str]) -> Callable[[Any], str]:
    """A conversion of one of several words."""

    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError(f"got {shown(value)}; allowed: {', '.join(words)}")
        return words[value]

    return convert


def plain(value: Any, limit: int = 60) -> str:
    """A value of a configuration on one line, for reports and comments."""
    if isinstance(value, Expression):
        return printable(value.text, limit)
    return "(no value)" if value is None else printable(shown(value), limit)
