"""A conversation of very many turns is labelled in requests of a bounded size, like any other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.chat.rendering import Chat, Rendered, render_each
from engines.labels import conversation
from engines.labels.skeleton import common_beginning
from engines.labels.vocabulary import view_of_folder
from tests.engines.labels.labelling import Turns, labelled, scored_texts
from tests.engines.training.tiny import write_tokenizer

pytestmark = pytest.mark.torch


def test_its_probes_are_asked_for_in_several_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: Turns = []
    for number in range(30):
        turns += [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}]
    sizes: list[int] = []

    def counted(template: str, special: Mapping[str, Any], chats: list[Chat], **more: Any) -> list[Rendered]:
        sizes.append(sum(len(chat.messages) for chat in chats))
        return render_each(template, special, chats, **more)

    monkeypatch.setattr(conversation, "render_each", counted)
    monkeypatch.setattr(conversation, "_REQUEST_TURNS", 100)
    row = labelled(turns, view_of_folder(write_tokenizer(tmp_path)))
    assert scored_texts(row) == [f"a{number}<|im_end|>" for number in range(30)]
    assert max(sizes) <= 100
    assert len(sizes) > 15


CONTROL = re.compile(re.escape("<|end|>"))


@given(
    st.lists(st.sampled_from(["<|end|>", "a", "b", "<|", "é"]), max_size=12), st.integers(0, 12), st.text(max_size=4)
)
def test_the_common_beginning_of_two_texts_ends_between_two_tokens(parts: list[str], kept: int, rest: str) -> None:
    one, other = "".join(parts), "".join(parts[:kept]) + rest
    same = common_beginning(one, other, CONTROL)
    assert one[:same] == other[:same]
    inside = [found for text in (one, other) for found in CONTROL.finditer(text) if found.start() < same < found.end()]
    assert inside == [] or same == min(len(one), len(other))
    if same < min(len(one), len(other)) and one[same] == other[same]:
        assert any(found.start() == same for text in (one, other) for found in CONTROL.finditer(text))
