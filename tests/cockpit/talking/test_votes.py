"""Votes are kept one by one and continue; nothing shows which side is which before the end; the result is exact."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from cockpit.talking.votes import LEFT, RIGHT, SKIP, TIE, Pair, Pairs, Votes, read_pairs
from engines.chatting.lines import PairsJob, Side
from engines.chatting.pairs import make_pairs
from engines.judging.shares.counts import mcnemar, wilson
from engines.judging.task import prompt_key
from recipes.problems import OperatorError


def pairs(count: int, equal: int = 0) -> Pairs:
    made = []
    for at in range(count):
        turn = {"role": "user", "content": f"p{at}"}
        made.append(Pair(f"k{at}", [turn], (f"A{at}", f"B{at}" if at >= equal else f"A{at} ")))
    return Pairs(("base", "tuned"), "0" * 64, tuple(made))


def side_of(votes: Votes, pair: Pair, model: int) -> str:
    return LEFT if votes.sides_of(pair)[0] == pair.answers[model] else RIGHT


def test_votes_name_models_whatever_the_sides_were(tmp_path: Path) -> None:
    votes = Votes(tmp_path / "v", pairs(40, equal=2), seed=5)
    lefts, order = [], []
    for at in range(38):
        pair = votes.at
        assert pair is not None
        order.append(pair.key)
        lefts.append(votes.sides_of(pair)[0][0])
        votes.vote(
            side_of(votes, pair, 1) if at < 24 else side_of(votes, pair, 0) if at < 34 else TIE if at < 36 else SKIP
        )
    count = votes.count()
    assert (count.wins, count.ties, count.skipped, count.equal, count.open) == ((10, 24), 2, 2, 2, 0)
    assert count.interval == wilson(10, 34)
    assert count.p_value == mcnemar(10, 24)
    assert set(lefts) == {"A", "B"}, "the sides are shuffled"
    assert order != sorted(order, key=lambda key: int(key[1:])), "and so is the order"
    assert votes.finished
    again = Votes(tmp_path / "v", pairs(40, equal=2), seed=99)
    assert (again.count(), again.seed) == (count, 5)


def test_a_kill_loses_no_vote_and_an_undone_one_stays_undone(tmp_path: Path) -> None:
    votes = Votes(tmp_path / "v", pairs(6), seed=1)
    for choice in (LEFT, TIE, RIGHT):
        votes.vote(choice)
    assert votes.undo()
    with (tmp_path / "v").open("ab") as file:
        file.write(b'{"key": "k')  # a line that a kill cut short
    again = Votes(tmp_path / "v", pairs(6), seed=2)
    assert again.votes == votes.votes
    assert again.at == votes.at
    assert again.undo()
    again.vote(SKIP)
    third = Votes(tmp_path / "v", pairs(6), seed=3)
    assert third.votes == again.votes
    third.end()
    assert third.finished
    assert not third.undo()
    ended = Votes(tmp_path / "v", pairs(6), seed=3)
    assert ended.finished
    assert ended.count().open == 4


def test_no_vote_changes_after_every_pair_has_one(tmp_path: Path) -> None:
    """The result names the models, so a changed vote would not be blind."""
    votes = Votes(tmp_path / "v", pairs(2), seed=1)
    for choice in (LEFT, TIE):
        votes.vote(choice)
    count = votes.count()
    assert not votes.undo()
    key = next(iter(votes.votes))
    with (tmp_path / "v").open("a") as file:  # as an older Cockpit, or a hand, wrote it
        file.write(json.dumps({"key": key, "vote": "undo"}) + "\n" + json.dumps({"key": key, "vote": RIGHT}) + "\n")
    assert Votes(tmp_path / "v", pairs(2), seed=1).count() == count


def test_votes_of_two_windows_and_of_unknown_pairs_do_not_confuse_undo(tmp_path: Path) -> None:
    votes = Votes(tmp_path / "v", pairs(4), seed=1)
    pair = votes.at
    assert pair is not None
    with (tmp_path / "v").open("a") as file:
        for key, vote in ((pair.key, LEFT), (pair.key, TIE), ("another", LEFT), ("another", "undo")):
            file.write(json.dumps({"key": key, "vote": vote}) + "\n")
    again = Votes(tmp_path / "v", pairs(4), seed=1)
    assert again.votes == {pair.key: TIE}, "the later vote counts"
    assert again.undo()
    assert not again.undo()
    assert again.at == pair


def test_the_file_does_not_say_which_model_was_chosen(tmp_path: Path) -> None:
    first, second = (Votes(tmp_path / name, pairs(8), seed=7) for name in ("1", "2"))
    for votes in (first, second):
        while (pair := votes.at) is not None:
            votes.vote(side_of(votes, pair, 0 if votes is first else 1))
    given = [
        [json.loads(line)["vote"] for line in (tmp_path / name).read_text().splitlines()[1:]] for name in ("1", "2")
    ]
    assert set(given[0]) == set(given[1]) == {LEFT, RIGHT}


def test_votes_on_other_answers_are_refused(tmp_path: Path) -> None:
    Votes(tmp_path / "v", pairs(3), seed=1)
    other = Pairs(("base", "other"), "0" * 64, pairs(3).pairs)
    with pytest.raises(OperatorError, match="other answers"):
        Votes(tmp_path / "v", other, seed=1)
    (tmp_path / "w").write_text("hello\n")
    with pytest.raises(OperatorError, match="not a file of votes"):
        Votes(tmp_path / "w", other, seed=1)


def test_the_result_is_exported_with_every_row(tmp_path: Path) -> None:
    votes = Votes(tmp_path / "v", pairs(4, equal=1), seed=1)
    while (pair := votes.at) is not None:
        votes.vote(side_of(votes, pair, 1))
    value = json.loads(votes.as_json())
    assert (value["second_wins"], value["equal"]) == (3, 1)
    rows = list(csv.reader(io.StringIO(votes.as_csv())))
    assert rows[0] == ["key", "winner", "prompt", "base", "tuned"]
    assert [row[1] for row in rows[1:]] == ["equal", "second", "second", "second"]


def test_an_answer_is_no_formula_in_a_spreadsheet(tmp_path: Path) -> None:
    pair = Pair("k", [{"role": "user", "content": "p"}], ("=1+1", "two"))
    votes = Votes(tmp_path / "v", Pairs(("base", "tuned"), "0" * 64, (pair,)), seed=1)
    votes.vote(LEFT)
    assert next(iter(csv.reader(io.StringIO(votes.as_csv().splitlines()[1]))))[3:] == ["'=1+1", "two"]


def test_files_of_answers_make_pairs_without_a_model(tmp_path: Path) -> None:
    prompts = ["one", "two", "three"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    keys = [prompt_key(({"role": "user", "content": text},), ()) for text in prompts]
    results = {"rows": [{"key": key, "answer": f"r{at}", "passed": True} for at, key in enumerate(keys)]}
    (tmp_path / "a.json").write_text(json.dumps(results))
    kept = [{"format": 1, "identity": {}}] + [
        {"key": key, "answer": f"k{at}", "ended": True, "prompt_tokens": 1, "tokens": 1, "first_token_s": 0.1,
         "latency_s": 0.2}
        for at, key in enumerate(keys[:2])
    ]  # fmt: skip
    (tmp_path / "b.answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in kept))
    sides = (
        Side(title="a", answers=str(tmp_path / "a.json")),
        Side(title="b", answers=str(tmp_path / "b.answers.jsonl")),
    )
    job = PairsJob(sides=sides, prompts=str(tmp_path / "p.jsonl"), output=str(tmp_path / "out"))
    assert make_pairs(job, lambda _line: None) == {"pairs": 2, "missing": 1}
    found = read_pairs(tmp_path / "out")
    assert found.sides == ("a", "b")
    assert [pair.answers for pair in found.pairs] == [("r0", "k0"), ("r1", "k1")]
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(OperatorError, match="not a file of answers"):
        make_pairs(job, lambda _line: None)
