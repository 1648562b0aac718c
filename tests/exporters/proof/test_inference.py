"""Greedy answers of a file are the model's own, with speed, memory and end."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.llama.drawing import Drawer, DrawRules
from engines.llama.library import NativeError
from engines.llama.process import LlamaProcess
from exporters.gguf.adapter import plan_adapter, write_adapter
from exporters.gguf.write import read_model, write_gguf
from exporters.lora.adapter import read_adapter
from exporters.proof.inference import LIMIT, measure, prompts_of
from exporters.proof.quality import light_of, usual_top1
from recipes.file_types import FILE_TYPES
from tests.exporters.exporting import export, parity

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    path = tmp_path_factory.mktemp("f32") / "m.gguf"
    model = read_model(base)
    write_gguf(model, model.plan("F32"), path, None)
    return path


def test_the_answer_is_transformers_greedy_answer(gguf_file: Path, base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    prompt = [5, 9, 33, 101, 7]
    wanted = model.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    with LlamaProcess(gguf_file, 64, 1) as llama:
        found = llama.generate(prompt, 20, ())
        assert found.ids == wanted[0, len(prompt) :].tolist()
        assert found.prompt_s > 0
        assert found.generation_s > 0
        assert found.rss_bytes > gguf_file.stat().st_size / 2
        stopped = llama.generate(prompt, 20, [found.ids[3]])
        assert stopped.ids == found.ids[: found.ids.index(found.ids[3]) + 1], "the token that ends it is its last"
        assert llama.generate(prompt, 20, ()).ids == found.ids, "nothing is left of the one before"
        with pytest.raises(NativeError, match="do not fit"):
            llama.generate(prompt, 100, ())


def test_what_is_measured_is_what_was_generated(gguf_file: Path) -> None:
    with LlamaProcess(gguf_file, 128, 1) as llama:
        first = llama.generate([5, 6, 7], LIMIT, ()).ids
        found = measure(llama, [[5, 6, 7], [8, 9]], stops=[first[0]])
        assert found is not None
        assert found.answers[0] == first[:1]
        assert (found.prompts, found.limit) == (2, LIMIT)
        assert found.ended >= 1
        assert found.tokens_per_second >= 0
        assert measure(llama, [], stops=[]) is None


def test_prompts_end_where_answers_begin() -> None:
    windows = [[1, 2, 8, 9, 3, 4], [5, 6, 7, 8], [1] * 500]
    assert prompts_of(windows, 100, cut_after=[8, 9]) == [[1, 2, 8, 9], [5, 6]]
    assert prompts_of(windows, 100, cut_after=[]) == [[1, 2, 8], [5, 6]]
    assert prompts_of(windows, 20, cut_after=[]) == []


def test_every_quantized_type_with_a_published_figure_has_a_light() -> None:
    unpublished = {row.name for row in FILE_TYPES.values() if row.quantized and row.usual_kl is None}
    assert unpublished == {row.name for row in FILE_TYPES.values() if row.ternary or row.outside_experts}
    lights = [light_of("Q4_K_M", kl) for kl in (0.0, 0.031, 0.07, 0.1, 0.2, float("nan"))]
    assert lights == ["green", "green", "green", "yellow", "red", "red"]
    assert light_of("F16", 0.0) is None
    ordered = [
        FILE_TYPES[name].usual_kl or 0 for name in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ2_XXS")
    ]
    assert ordered == sorted(ordered)


def test_a_light_weighs_the_most_likely_token_too() -> None:
    assert light_of("IQ2_XXS", 0.1, 0.05) == "red"
    assert not any(light_of(name, 0.0, 0.05) == "green" for name in FILE_TYPES)
    assert light_of("Q4_K_M", 0.03, 0.92) == "green"
    assert light_of("Q4_K_M", 0.03, 0.75) == "yellow"
    assert light_of("Q8_0", 1e-3, 0.93) == "yellow"


def test_the_usual_share_of_equal_tokens_is_the_published_one_and_falls_with_the_bits() -> None:
    assert usual_top1(0.001355) == pytest.approx(0.97674)
    assert usual_top1(0.445132) == pytest.approx(0.71138)
    shares = [usual_top1(kl) for kl in (1e-4, 1e-3, 1e-2, 0.1, 0.8, 2.2)]
    assert shares == sorted(shares, reverse=True)
    assert 0.3 < shares[-1] < shares[0] < 1


def test_an_export_says_how_each_file_serves(tmp_path: Path, base: Path) -> None:
    ctx, result = export(tmp_path, base, "F16", "Q4_K_M")
    for record in parity(ctx)["files"]:
        prefix = record["file_type"].lower()
        assert record["inference"]["tokens_per_second"] == result.metrics[f"{prefix}_tokens_per_second"] > 0
        assert record["inference"]["rss_bytes"] == result.metrics[f"{prefix}_rss_bytes"] > 0
        assert (
            result.metrics[f"{prefix}_answers_ended"] == record["inference"]["ended"] / record["inference"]["prompts"]
        )
    lights = [record["quality"]["light"] for record in parity(ctx)["files"]]
    assert lights[0] is None
    assert lights[1] in ("green", "yellow")


def fed(llama: LlamaProcess, prompt: list[int], rules: DrawRules, count: int, *, adapter: bool = True) -> list[int]:
    """An answer that is drawn token by token."""
    llama.begin(prompt, rules, adapter=adapter)
    ids = list(prompt)
    for _ in range(count):
        while llama.feed(ids) < len(ids):
            pass
        ids.append(llama.draw())
    return ids[len(prompt) :]


def test_an_answer_drawn_token_by_token_is_the_whole_one_whatever_the_cache_has(gguf_file: Path) -> None:
    prompt, longer = [5, 9, 33, 101, 7], [5, 9, 33, 8, *range(20, 40)]
    with LlamaProcess(gguf_file, 64, 1) as llama:
        wanted = [llama.generate(ids, 8, ()).ids for ids in (prompt, longer)]
    with LlamaProcess(gguf_file, 64, 1, n_batch=4) as llama:
        greedy = DrawRules()
        assert [fed(llama, ids, greedy, 8) for ids in (prompt, longer, prompt, longer[:-1] + longer[-1:])] == [
            *wanted,
            *wanted,
        ]
        assert llama.generate(prompt[:2], 3, (), last_only=True).ids
        assert fed(llama, prompt, greedy, 8) == wanted[0], "after another use of the cache"
        with pytest.raises(NativeError, match="do not fit"):
            llama.feed([5] * 65)
        drawn = DrawRules(temperature=2.0, top_k=50, top_p=0.9, repetition_penalty=1.2, seed=1)
        first = fed(llama, prompt, drawn, 12)
        assert first == fed(llama, prompt, drawn, 12) != fed(llama, prompt, replace(drawn, seed=2), 12)


def test_an_adapter_is_switched_off_and_on(gguf_file: Path, base: Path, adapter: Path, tmp_path: Path) -> None:
    model = read_model(base)
    write_adapter(model, plan_adapter(model, read_adapter(adapter)), tmp_path / "a.gguf", "F32")
    prompt, greedy = [5, 9, 33, 101, 7], DrawRules()
    with LlamaProcess(gguf_file, 64, 1) as llama:
        alone = fed(llama, prompt, greedy, 12)
    with LlamaProcess(gguf_file, 64, 1, tmp_path / "a.gguf") as llama:
        with_it = llama.generate(prompt, 12, ()).ids
        both = [fed(llama, prompt, greedy, 12, adapter=on) for on in (True, False, True, False)]
    assert both[0] == both[2] == with_it != alone
    assert both[1] == both[3] == alone


@pytest.mark.parametrize("rules", [{"top_k": 5}, {"top_p": 0.7}, {"temperature": 0.6, "top_k": 9, "top_p": 0.8}])
def test_tokens_are_drawn_from_those_that_transformers_keeps_with_its_probabilities(rules: dict[str, Any]) -> None:
    import torch
    from transformers import (
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    given = {"temperature": 1.3, "repetition_penalty": 1.4, **rules}
    logits = np.random.default_rng(0).normal(0, 3, 60).astype(np.float32)
    seen = [3, 7, 11]
    scores = torch.tensor(logits)[None]
    scores = RepetitionPenaltyLogitsProcessor(1.4)(torch.tensor([seen]), scores)
    scores = TemperatureLogitsWarper(given["temperature"])(None, scores)
    if "top_k" in rules:
        scores = TopKLogitsWarper(rules["top_k"])(None, scores)
    if "top_p" in rules:
        scores = TopPLogitsWarper(rules["top_p"])(None, scores)
    wanted = scores.softmax(-1)[0].numpy()
    drawn = Counter(Drawer(DrawRules(**given, seed=seed), seen).draw(logits) for seed in range(4000))
    assert set(drawn) <= set(np.flatnonzero(wanted))
    assert all(abs(drawn[at] / 4000 - wanted[at]) < 0.04 for at in range(60))
    assert Drawer(DrawRules(), []).draw(logits) == int(logits.argmax())
