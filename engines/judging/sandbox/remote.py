"""Objects that stand for those of the other process.

Comparisons with plain values are decided here: they ask the other process nothing, and do not show it the value. So a
program's object equals no expected value, whatever its class says. Two objects of the other process are compared there.
"""

from __future__ import annotations

from typing import Any

from engines.judging.sandbox.peer import Peer


class Remote:
    """An object of the other process."""

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    @staticmethod
    def number_of(value: Any, peer: Peer) -> int | None:
        """The number of an object that stands for one of this peer's other end; None for other objects."""
        if type(value) is not Remote or object.__getattribute__(value, "_peer") is not peer:
            return None
        number: int = object.__getattribute__(value, "_number")
        return number

    def _ask(self, what: str, *arguments: Any, **named: Any) -> Any:
        peer: Peer = object.__getattribute__(self, "_peer")
        return peer.ask(what, object.__getattribute__(self, "_number"), *arguments, **named)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._ask("call", *arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return self._ask("get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, value)

    def __iter__(self) -> Any:
        return self._ask("do", "iter")

    def __next__(self) -> Any:
        return self._ask("do", "next")

    def __len__(self) -> int:
        return int(self._ask("do", "len"))

    def __getitem__(self, key: Any) -> Any:
        return self._ask("do", "item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("do", "setitem", key, value)

    def __delitem__(self, key: Any) -> None:
        self._ask("do", "delitem", key)

    def __contains__(self, item: Any) -> bool:
        return any(one is item or one == item for one in self)

    def __bool__(self) -> bool:
        return self._ask("do", "bool") is True

    def __str__(self) -> str:
        return str(self._ask("do", "str"))

    def __repr__(self) -> str:
        return str(self._ask("do", "repr"))

    def __hash__(self) -> int:
        return int(self._ask("do", "hash"))

    def __eq__(self, other: object) -> bool:
        return self is other or (type(other) is Remote and self._ask("do", "equal", other) is True)

    def __lt__(self, other: Any) -> Any:
        return self._ask("do", "less", other) is True if type(other) is Remote else NotImplemented

    def __instancecheck__(self, instance: Any) -> bool:
        return type(instance) is Remote and self._ask("do", "isinstance", instance) is True

    def __enter__(self) -> Any:
        return self._ask("do", "enter")

    def __exit__(self, *_error: object) -> None:
        self._ask("do", "exit")
