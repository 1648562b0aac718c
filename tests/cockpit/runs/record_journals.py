"""`python -m tests.cockpit.runs.record_journals`: write the journals of the present version into `released/`."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import msgspec

import cockpit
from engines.events.event import Event
from engines.events.kinds import AnyEvent
from engines.events.records import encode_record
from tests.runs.harness import fake_recipe, launch_text, nothing_left, wait_for_end

RELEASED = Path(__file__).parent / "released"
HEADER = {"v", "w", "seq", "t", "m"}
STAGES = (
    {"name": "base", "max_steps": 12, "step_s": 0.0, "save_steps": 4, "eval_steps": 4, "save_total_limit": 1,
     "nan_at_step": 7, "retry": {"max_attempts": 2}},
    {"name": "again", "data": "base", "max_steps": 3, "step_s": 0.0},
)  # fmt: skip


def some_value(info: Any, name: str) -> Any:
    """A value of a field's type that is not its default."""
    match info:
        case msgspec.inspect.FloatType():
            return 0.5
        case msgspec.inspect.IntType():
            return 3
        case msgspec.inspect.BoolType():
            return True
        case msgspec.inspect.StrType():
            return f"{name} “quoted”"
        case msgspec.inspect.EnumType():
            return list(info.cls)[-1]
        case msgspec.inspect.UnionType():
            return some_value(next(one for one in info.types if not isinstance(one, msgspec.inspect.NoneType)), name)
        case msgspec.inspect.ListType():
            return [some_value(info.item_type, name)]
        case msgspec.inspect.DictType():
            return {"a": 1.5, "b": None, "c": math.nan}
        case msgspec.inspect.StructType():
            return filled(info.cls)
        case _:
            raise AssertionError(f"no value for {info}")


def filled(kind: type[msgspec.Struct]) -> Any:
    """An instance with every field set; an event's header is the writer's."""
    fields = {
        field.name: some_value(msgspec.inspect.type_info(field.type), field.name)
        for field in msgspec.structs.fields(kind)
        if not (issubclass(kind, Event) and field.name in HEADER)
    }
    return kind(**fields)


def one_of_each() -> bytes:
    """One record of every kind."""
    return b"".join(
        encode_record(filled(kind), writer="every", seq=seq, t=1_795_000_000.0 + seq, m=float(seq))
        for seq, kind in enumerate(AnyEvent.__args__)
    )


def main() -> None:
    """Run a small recipe and write both files."""
    version = ".".join(cockpit.__version__.split(".")[:2])
    folder = Path(tempfile.mkdtemp())
    with nothing_left(folder / "runs"):
        run = launch_text(fake_recipe(*STAGES), folder)
        wait_for_end(run)
        (RELEASED / f"{version}-run.jsonl").write_bytes(run.journal.read_bytes())
    (RELEASED / f"{version}-kinds.jsonl").write_bytes(one_of_each())


if __name__ == "__main__":
    main()
