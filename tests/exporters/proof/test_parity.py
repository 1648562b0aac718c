"""The comparison passes for the model itself, and fails for every file that is only close to it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from engines.data.hard_strings import HARD_STRINGS
from engines.events.results import Evaluated
from engines.events.writers import Warned
from engines.llama.library import NativeError
from engines.llama.process import LlamaProcess
from engines.run_dir.paths import FIXTURE_FILE, REFUSED_FILES
from exporters.gguf import metadata as gguf_metadata
from exporters.gguf import write as gguf_write
from exporters.gguf.vocab import read_vocabulary
from exporters.proof.behaviour import Expected, Limits, check_behaviour, limits_of
from exporters.proof.parity import Comparison, Difference, Reference, compare
from exporters.proof.parity_data import ParityData, Sample, encode
from exporters.proof.token_check import check_tokens
from tests.exporters.exporting import export, failed_export, parity
from tests.exporters.small_models import build_byte_level_tokenizer, build_model
from tests.recipes.recipe_texts import problems_of

pytestmark = pytest.mark.torch

YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
VARIANTS: dict[str, dict[str, Any]] = {
    "untied": {"tie_word_embeddings": False},
    "head-width": {"head_dim": 48},
    "biases": {"attention_bias": True},
    "rope-base": {"rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}},
    "llama3-rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "yarn": {"rope_parameters": YARN},
    "yarn, own magnitude": {"rope_parameters": {**YARN, "attention_factor": 1.3}},
    "yarn, magnitude of two scales": {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}},
    "linear-rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    "all-heads": {"num_key_value_heads": 8},
}


def test_f32_and_f16_are_the_model(tmp_path: Path, base: Path) -> None:
    ctx, result = export(tmp_path, base, "F32", "F16")
    assert result.metrics["f32_mean_kl"] < 1e-9
    assert result.metrics["f16_mean_kl"] < 1e-6
    record = parity(ctx)
    assert record["passed"] is True
    assert [file["verdict"] for file in record["files"]] == ["accepted", "accepted"]
    assert record["files"][0]["meaning"]["tokenizer"]["different"] == []
    assert record["data"]["positions"] >= 400
    assert record["llama"]["cache"] == "f32"
    assert len(record["llama"]["sha256"]) == 64
    assert [artifact.kind for artifact in result.artifacts] == ["gguf", "gguf", "report", "report"]
    evaluated = [event for event in ctx.events() if isinstance(event, Evaluated)]
    assert [event.protocol for event in evaluated] == ["parity:f32", "parity:f16"]
    assert evaluated[1].metrics["mean_kl"] == result.metrics["f16_mean_kl"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_setting_of_the_family_arrives(tmp_path: Path, tokenizer: Path, variant: str) -> None:
    model = build_model(tmp_path / "model", tokenizer, **VARIANTS[variant])
    _, result = export(tmp_path, model, "F32", "F16")
    assert result.metrics["f32_mean_kl"] < 1e-9


def test_mistral_is_the_model_too(tmp_path: Path, tokenizer: Path) -> None:
    model = build_model(tmp_path / "model", tokenizer, family="Mistral", sliding_window=None)
    _, result = export(tmp_path, model, "F32", "F16")
    assert result.metrics["f32_mean_kl"] < 1e-9


@pytest.mark.parametrize(("family", "fields"), [("Qwen2", {}), ("Qwen3", {"head_dim": 64})])
def test_qwen_is_the_model_too(tmp_path: Path, family: str, fields: dict[str, Any]) -> None:
    tokenizer = build_byte_level_tokenizer(tmp_path / "tokenizer")
    model = build_model(tmp_path / "model", tokenizer, family=family, **fields)
    ctx, result = export(tmp_path, model, "F32", "F16")
    assert result.metrics["f32_mean_kl"] < 1e-9
    ids = parity(ctx)["files"][0]["meaning"]["tokenizer"]
    assert ids["different"] == []
    assert ids["normalized"] == 9, "three texts of decomposed letters, which llama.cpp does not compose"
    assert any("normalizer (NFC)" in event.message for event in ctx.events() if isinstance(event, Warned))


def test_gpt2_words_with_single_digits_have_equal_ids(tmp_path: Path) -> None:
    tokenizer = build_byte_level_tokenizer(tmp_path / "tokenizer", individual_digits=True)
    model = build_model(tmp_path / "model", tokenizer)
    ctx, _ = export(tmp_path, model, "F16")
    assert parity(ctx)["files"][0]["meaning"]["tokenizer"]["different"] == []


def test_bfloat16_weights_are_the_model(tmp_path: Path, tokenizer: Path) -> None:
    model = build_model(tmp_path / "model", tokenizer, dtype="bfloat16")
    _, result = export(tmp_path, model, "F32", "F16", "BF16")
    assert result.metrics["f32_mean_kl"] < 1e-9


def test_unpermuted_heads_fail(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_write, "_interleaved", lambda _heads, _rows, start, stop: np.arange(start, stop))
    assert "behaviour: mean KL of llama.cpp's answers is" in failed_export(tmp_path, base, "F16")


@pytest.mark.parametrize(
    ("field", "wrong"), [("rope_parameters", {"rope_type": "default", "rope_theta": 11_000.0}), ("rms_norm_eps", 1e-6)]
)
def test_a_silently_wrong_setting_fails(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, field: str, wrong: Any
) -> None:
    original = gguf_metadata.model_keys

    def spoiled(architecture: Any, config: dict[str, Any], **names: Any) -> Any:
        return original(architecture, {**config, field: wrong}, **names)

    monkeypatch.setattr(gguf_write, "model_keys", spoiled)
    message = failed_export(tmp_path, base, "F16")
    assert "behaviour: mean KL of llama.cpp's answers is" in message
    assert "times the limit of" in message


def test_a_failed_comparison_is_written_down_and_offers_no_file(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exporters.stages import export_stage
    from tests.stage_context import make_context

    monkeypatch.setattr(gguf_write, "_interleaved", lambda _heads, _rows, start, stop: np.arange(start, stop))
    stage = {
        "name": "gguf",
        "kind": "export",
        "model": "x",
        "file_types": ["F16"],
        "parity_positions": 200,
        "max_length": 64,
    }
    ctx = make_context(tmp_path, stage, inputs={"model": base})
    with pytest.raises(Exception, match="differ from the model"):
        export_stage.run(ctx)
    record = parity(ctx)
    assert record["passed"] is False
    (file,) = record["files"]
    assert file["verdict"] == "refused"
    found = file["behaviour"]
    assert found["top1_differences"] > 0
    assert found["differences"][0]["gap"] == found["widest_gap"]
    assert [path.name for path in ctx.out.glob("**/*.gguf")] == ["run-F16.gguf"]
    assert not (ctx.out / "run-F16.gguf").exists()


def test_wrong_token_scores_fail(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = read_vocabulary

    def spoiled(folder: Path, config: dict[str, Any]) -> Any:
        vocabulary = original(folder, config)
        vocabulary.scores = [-1000.0] * len(vocabulary.scores)
        return vocabulary

    monkeypatch.setattr(gguf_write, "read_vocabulary", spoiled)
    assert "token ids differ" in failed_export(tmp_path, base, "F16")


def test_ids_are_equal_on_hard_strings(tmp_path: Path, base: Path) -> None:
    from sentencepiece import SentencePieceProcessor
    from transformers import AutoTokenizer

    ctx, _ = export(tmp_path, base, "F16", parity_positions=0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    pieces = SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    with LlamaProcess(ctx.out / "run-F16.gguf", 64, 1) as llama:
        for text in HARD_STRINGS:
            assert llama.tokenize(text, parse_special=True) == encode(tokenizer, text, special=True), text
            assert llama.tokenize(text, parse_special=False) == encode(tokenizer, text, special=False), text
            assert llama.tokenize(text, parse_special=False) == pieces.encode(text), text
        assert llama.tokenize("", parse_special=False) == []


def test_a_crash_of_the_native_side_is_an_exception(tmp_path: Path, base: Path) -> None:
    ctx, _ = export(tmp_path, base, "F16", parity_positions=0)
    with LlamaProcess(ctx.out / "run-F16.gguf", 64, 1) as llama:
        assert llama.logits([1, 2, 3]).shape == (3, 640)
        with pytest.raises(NativeError, match="do not fit"):
            llama.logits([1] * 65)
        with pytest.raises(NativeError, match="outside the vocabulary"):
            llama.logits([640])
        os.kill(llama.pid, signal.SIGSEGV)
        with pytest.raises(NativeError, match=r"killed by SIGSEGV; its last lines: .*\w"):
            llama.logits([1, 2, 3])
    (tmp_path / "bad.gguf").write_bytes((ctx.out / "run-F16.gguf").read_bytes()[:50_000])
    with pytest.raises(NativeError, match=r"^llama\.cpp cannot load .*bad\.gguf: .*error loading model: "):
        LlamaProcess(tmp_path / "bad.gguf", 64, 1)


def test_limits_judge_what_they_should() -> None:
    exact: Any = Expected(None, "file", 0.0)  # type: ignore[arg-type]
    tie, wide = Difference(0, 1, 2, 3, 0.009), Difference(0, 1, 2, 3, 0.01)
    limits = limits_of("F16", exact)
    assert check_behaviour(Comparison(10, mean_kl=9e-7, differences=[tie]), limits) == []
    assert len(check_behaviour(Comparison(10, mean_kl=9e-7, differences=[wide]), limits)) == 1
    assert len(check_behaviour(Comparison(10, mean_kl=1e-6), limits)) == 1
    assert check_behaviour(Comparison(10, mean_kl=9e-5, differences=[wide]), limits_of("Q8_0", exact)) == []
    assert len(check_behaviour(Comparison(10, mean_kl=1e-5), limits_of("BF16", exact))) == 1
    assert len(check_behaviour(Comparison(10, mean_kl=0.5), limits_of("Q4_K_M", exact))) == 1
    assert len(check_behaviour(Comparison(10, mean_kl=float(np.nan)), Limits(None, None))) == 1


def test_experts_that_a_last_bit_exchanges_do_not_refuse_a_correct_file_and_a_fault_does(tmp_path: Path) -> None:
    logits = np.random.default_rng(1).normal(size=(400, 16)).astype(np.float32)
    windows = [list(range(16)) * 25]

    def found(changed: int) -> Comparison:
        reference, other = (Reference(tmp_path / name, windows, 16) for name in ("reference", "other"))
        reference.logits[:], other.logits[:] = logits, logits
        other.logits[:changed] = logits[:changed, ::-1]
        return reference.compare(other)

    dense, routed = (limits_of("F16", Expected(None, "file", 0.0, routed)) for routed in (False, True))  # type: ignore[arg-type]
    assert found(3).mean_kl > 1e-3
    assert len(check_behaviour(found(3), dense)) == 2
    assert check_behaviour(found(3), routed) == []
    assert len(check_behaviour(found(40), routed)) == 2


def test_a_model_that_amplifies_rounding_has_wider_limits_in_proportion() -> None:
    flat, sharp = (limits_of("Q8_0", Expected(None, "file", kl)).mean_kl for kl in (1e-9, 3e-3))  # type: ignore[arg-type]
    assert flat == 1e-4
    assert sharp == pytest.approx(1.8e-2)


def test_a_file_of_unknown_tensor_names_is_judged_only_in_a_plain_type() -> None:
    unknown: Any = Expected(None, "model", None)  # type: ignore[arg-type]
    assert limits_of("Q4_K_M", unknown) == Limits(None, None)
    assert limits_of("F16", unknown).mean_kl == 1e-6


class Ids:
    """A tokenizer and a llama.cpp that disagree on every text with a `<`, and on the end of an answer."""

    all_special_tokens: ClassVar[list[str]] = ["<s>"]
    chat_template = None

    def __call__(self, text: str, **_flags: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(char) for char in text]}

    def tokenize(self, text: str, parse_special: bool, add_special: bool = False) -> list[int]:
        return [0] if "<" in text else [ord(char) for char in text]

    def convert_ids_to_tokens(self, token: int) -> str:
        return f"<{token}>"

    def ends(self) -> list[int]:
        return [2]


def test_only_control_names_in_plain_text_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporters.proof.token_check.HARD_STRINGS", ("a <s> b", "plain"))
    ids: Any = Ids()
    data = ParityData("text", "test", [Sample("x < y", [1], special=False)], [[1]])
    check = check_tokens(ids, ids, data, ends=[2, 7])
    assert (check.texts, check.literals) == (7, 1)
    assert check.different == ["'x < y' (plain)", "'a <s> b' (chat)", "'a <s> b' (with added tokens)"]
    assert "3 of 7 texts" in check.problems()[0]
    assert "does not end at <7>" in check.problems()[1]


def test_one_refused_file_is_set_aside_and_the_others_are_delivered(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exporters.stages import files_step

    original = gguf_write.write_gguf

    def spoil_one(model: Any, plan: Any, path: Path, *rest: Any) -> None:
        original(model, plan, path, *rest)
        if plan.file_type == "Q8_0":
            with path.open("r+b") as file:
                file.seek(-2000, os.SEEK_END)
                byte = file.read(1)[0]
                file.seek(-2000, os.SEEK_END)
                file.write(bytes([byte ^ 0x55]))

    monkeypatch.setattr(files_step, "write_gguf", spoil_one)
    ctx, result = export(tmp_path, base, "F16", "Q8_0", parity_positions=100)
    assert result.metrics["files_refused"] == 1
    assert [item.name for item in result.artifacts if item.kind == "gguf"] == ["F16"]
    assert [path.name for path in ctx.out.glob("*.gguf")] == ["run-F16.gguf"]
    assert [path.name for path in (ctx.out / REFUSED_FILES).iterdir()] == ["run-Q8_0.gguf"]
    kept, refused = parity(ctx)["files"]
    assert (kept["verdict"], kept["reasons"]) == ("accepted", [])
    assert refused["verdict"] == "refused"
    assert refused["reasons"][0].startswith("bytes: ")
    assert parity(ctx)["passed"] is False
    assert any("run-Q8_0.gguf is refused" in event.message for event in ctx.events() if isinstance(event, Warned))
    fixture = json.loads((ctx.out / FIXTURE_FILE).read_text())
    assert [file["file"] for file in fixture["files"]] == ["run-F16.gguf"]
    assert "Q8_0" not in (ctx.out / "Modelfile").read_text()


def test_a_gate_may_name_a_files_quality_and_nothing_that_is_not_measured() -> None:
    gated = (
        'schema = 1\nname = "x"\n[[stage]]\nname = "g"\nkind = "export"\nmodel = "a/b"\nfile_types = ["Q4_K_M"]\n{more}'
        '[[stage.gate]]\nmetric = "{metric}"\nop = "<"\nvalue = 1.0\n'
    )
    for metric in ("q4_k_m_mean_kl", "q4_k_m_top1", "q4_k_m_perplexity_ratio", "q4_k_m_bytes"):
        assert problems_of(gated.format(more="", metric=metric), Path("x.toml")) == []
    (problem,) = problems_of(gated.format(more="", metric="q8_0_kl_mean"), Path("x.toml"))
    assert problem.key == "g.gate[0].metric"
    assert problems_of(gated.format(more="parity_positions = 0\n", metric="q4_k_m_top1"), Path("x.toml"))


@pytest.mark.parametrize("length", [2, 64, 65, 129])
def test_a_window_of_any_length_is_compared(length: int, tmp_path: Path) -> None:
    """The next token of a window's last position is unknown: a part of one position has none."""
    window = [number % 7 for number in range(length)]
    logits = np.random.default_rng(length).normal(size=(length, 7)).astype(np.float32)

    class Same:
        def logits(self, _ids: object) -> np.ndarray[Any, Any]:
            return logits

    reference = Reference(tmp_path / "r", [window], 7)
    reference.logits[:] = logits
    found = compare(reference, Same(), lambda _count: None)
    assert (found.positions, found.loss_tokens) == (length, length - 1)
    assert found.mean_kl == 0
    assert found.loss == pytest.approx(found.reference_loss)
