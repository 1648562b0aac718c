"""The fixture for other runtimes: its content, and the comparison of programs with it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.identity import Identity
from engines.run_dir.paths import FIXTURE_FILE
from exporters.proof.fixture import Fixture, Position, Prompt, load_fixture
from exporters.proof.parity_run import compare_runtimes, read_job
from exporters.proof.runner import Answer, ForeignRuntime, RunnerError
from exporters.proof.runner_check import agree
from recipes import quantities
from recipes.problems import OperatorError
from tests.exporters.exporting import export
from tests.exporters.proof.planted import read_content, write_content
from tests.runs.harness import wait_for

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    ctx, result = export(tmp_path_factory.mktemp("export"), base, "F16", "Q4_0")
    assert FIXTURE_FILE in {artifact.path for artifact in result.artifacts}
    return ctx.out


@pytest.fixture(scope="module")
def fixture(exported: Path) -> Fixture:
    return load_fixture(exported / FIXTURE_FILE)


def compare(exported: Path, *types: str, **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines: list[dict[str, Any]] = []
    files = [str(exported / f"run-{name}.gguf") for name in types]
    job = {"fixture": str(exported / FIXTURE_FILE), "files": files, "threads": 1, **fields}
    return compare_runtimes(read_job(json.dumps(job)), lines.append), lines


ROOT = Path(__file__).resolve().parents[3]


def program(folder: Path, body: str) -> str:
    """A runtime in Python; it finds the prompt in `ids` and the fixture's prompt in `known`."""
    path = folder / "runtime.py"
    path.write_text(
        f"import json, os, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "ids = [int(word) for word in sys.argv[2].split(',')]\n"
        "fixture = json.load(open(os.path.join(os.path.dirname(sys.argv[1]), 'fixture.json')))\n"
        "known = next(item for item in fixture['prompts'] if item['ids'] == ids)\n" + body
    )
    return f"{sys.executable} {path} {{gguf}} {{prompt_ids}}"


def test_the_fixture_has_the_models_answers_and_names_the_files(exported: Path, fixture: Fixture, base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    assert len(fixture.prompts) == 6, "three given prompts, and three shortened windows"
    for prompt in fixture.prompts:
        ids = torch.tensor([[*prompt.ids, *prompt.greedy_ids[:-1]]])
        with torch.inference_mode():
            logits = model(ids).logits[0].double()
        assert logits[len(prompt.ids) - 1 :].argmax(1).tolist() == prompt.greedy_ids
        best = torch.topk(logits, 10, dim=1)
        for row, position in enumerate(prompt.positions):
            assert [value for _, value in position.top] == pytest.approx(best.values[row].tolist(), abs=1e-4)
            assert position.logsumexp == pytest.approx(float(torch.logsumexp(logits[row], 0)), abs=1e-4)
    manifest = {item["file"]: item["sha256"] for item in fixture.files}
    assert set(manifest) == {"run-F16.gguf", "run-Q4_0.gguf"}
    assert all(len(value) == 64 for value in manifest.values())
    assert fixture.protocol["limit"] == 48
    assert fixture.protocol["stops"]
    assert fixture.strings


def test_the_text_of_a_prompt_has_its_ids(fixture: Fixture, base: Path) -> None:
    from transformers import AutoTokenizer

    from exporters.proof.parity_data import encode

    tokenizer = AutoTokenizer.from_pretrained(base)
    for prompt in fixture.prompts:
        assert prompt.text is not None
        assert encode(tokenizer, prompt.text, special=prompt.special) == prompt.ids


def test_llama_cpp_is_the_second_runtime_and_agrees_on_f16(exported: Path) -> None:
    report, lines = compare(exported, "F16", "Q4_0")
    assert report["passed"]
    exact, rounded = report["files"]
    assert exact["runtimes"][0]["judged"]
    assert exact["runtimes"][0]["equal"] == exact["runtimes"][0]["tokens"]
    assert exact["runtimes"][0]["max_delta"] < 0.01
    assert not rounded["runtimes"][0]["judged"]
    assert [line["file"]["file"] for line in lines if "file" in line] == ["run-F16.gguf", "run-Q4_0.gguf"]


ANSWERS = {
    "as JSON": "print(json.dumps({'ids': known['greedy_ids']}))",
    "as numbers": "print('loading…'); print(*known['greedy_ids'])",
    "with commas": "print(known['greedy_ids'])",
    "after the prompt": "print(*ids, *known['greedy_ids'])",
    "without the end": "print(*[t for t in known['greedy_ids'] if t not in fixture['protocol']['stops']])",
}


@pytest.mark.parametrize("form", ANSWERS)
def test_a_runtime_may_answer_in_these_forms(form: str, exported: Path, tmp_path: Path) -> None:
    report, _ = compare(exported, "F16", runner=program(tmp_path, ANSWERS[form]))
    assert report["passed"], report
    assert report["files"][0]["runtimes"][1]["against"] == "transformers"


def test_a_runtime_on_rounded_weights_is_compared_with_llama_cpp_on_the_same_file(
    exported: Path, tmp_path: Path
) -> None:
    body = (
        "from pathlib import Path\n"
        "from engines.llama.process import LlamaProcess\n"
        "with LlamaProcess(Path(sys.argv[1]), 512, 1) as llama:\n"
        "    print(*llama.generate(ids, 48, fixture['protocol']['stops']).ids)\n"
    )
    report, _ = compare(exported, "Q4_0", runner=program(tmp_path, body))
    assert report["passed"], report
    result = report["files"][0]["runtimes"][1]
    assert (result["against"], result["judged"], result["equal"]) == ("llama.cpp", True, result["tokens"])


WRONG = {
    "another token": ("g = known['greedy_ids']; g[2] = (g[2] + 1) % 100; print(*g)", "token 3 of"),
    "nothing": ("pass", "the program printed nothing"),
    "words": ("print('hello')", "the program's last line is 'hello'"),
    "a failure": ("sys.exit('no such layer')", "exit code 1: no such layer"),
    "a crash": ("os.kill(os.getpid(), 11)", "signal 11"),
    "negative ids": ("print(json.dumps({'ids': [-1]}))", "expected numbers"),
    "NaN": (
        "print(json.dumps({'ids': known['greedy_ids'], 'top_logprobs': [[[t, float('nan')] for t in "
        "range(500)]] * 48}))",
        "not finite",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_runtime_fails_with_the_reason(fault: str, exported: Path, tmp_path: Path) -> None:
    body, message = WRONG[fault]
    report, _ = compare(exported, "F16", runner=program(tmp_path, body))
    assert not report["passed"]
    assert message in " ".join(report["files"][0]["problems"])


def test_a_runtime_that_hangs_is_stopped_with_all_its_children(exported: Path, tmp_path: Path) -> None:
    body = (
        "import subprocess\n"
        f"child = subprocess.Popen(['sleep', '3600']); open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "child.wait()\n"
    )
    (tmp_path / "pid").touch()
    for timeout_s in (0.5, 5.0, 50.0):  # the least in which this machine has started both
        report, _ = compare(exported, "F16", runner=program(tmp_path, body), timeout_s=timeout_s)
        assert f"took more than {quantities.duration(timeout_s)} and was stopped" in report["files"][0]["problems"][0]
        if pid := (tmp_path / "pid").read_text():
            break
    wait_for(lambda: Identity.of(int(pid)) is None, "the child's end")


def test_log_probabilities_of_a_runtime_are_compared(exported: Path, tmp_path: Path) -> None:
    body = (
        "n = len(ids) - 1\n"
        "rows = [[[t, v - p['logsumexp'] + 0.25] for t, v in p['top']] for p in known['positions'][n:]]\n"
        "print(json.dumps({'ids': known['greedy_ids'], 'top_logprobs': rows}))"
    )
    report, _ = compare(exported, "F16", runner=program(tmp_path, body))
    assert report["files"][0]["runtimes"][1]["max_delta"] == pytest.approx(0.25, abs=1e-5)


def test_a_prompt_never_reaches_a_shell(exported: Path, fixture: Fixture, tmp_path: Path) -> None:
    hostile = Prompt("$(touch pwned) {seed}; `x`", False, [1, 2], [3], fixture.prompts[0].positions[:2])
    path = tmp_path / "echo.py"
    path.write_text("import sys, json; open(sys.argv[1], 'w').write(sys.argv[3]); print(3)")
    runtime = ForeignRuntime(f"{sys.executable} {path} {tmp_path}/said {{gguf}} {{prompt}}", 30)
    assert runtime.answer(exported / "run-F16.gguf", hostile, fixture).ids == [3]
    assert (tmp_path / "said").read_text() == hostile.text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run {prompt_ids}", r"has no \{gguf\}"),
        ("run {gguf}", r"has no \{prompt_ids\}"),
        ("run {gguf} {ids}", r"got \{ids\}; allowed \{gguf\}, \{prompt_ids\}"),
        ("run '{gguf} {prompt_ids}", "cannot be split"),
        ("no-such-program {gguf} {prompt_ids}", "program not found: no-such-program"),
    ],
)
def test_a_command_that_cannot_work_is_refused_before_anything_runs(command: str, message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        ForeignRuntime(command, 1)


def test_a_file_that_was_changed_since_the_fixture_is_named(exported: Path, tmp_path: Path) -> None:
    data = bytearray((exported / "run-F16.gguf").read_bytes())
    data[-1] ^= 1
    (tmp_path / "run-F16.gguf").write_bytes(data)
    (tmp_path / FIXTURE_FILE).write_bytes((exported / FIXTURE_FILE).read_bytes())
    report, _ = compare(tmp_path, "F16")
    assert "is not the file that the fixture was written with" in report["files"][0]["problems"][0]


def test_files_from_elsewhere_are_held_against_the_folder_they_claim_to_be(
    exported: Path, base: Path, tmp_path: Path
) -> None:
    lines: list[dict[str, Any]] = []
    content = read_content(exported / "run-F16.gguf")
    del content.keys["llama.context_length"]
    job = {
        "model": str(base),
        "files": [str(exported / "run-F16.gguf"), str(write_content(content, tmp_path / "broken.gguf"))],
        "threads": 1,
        "positions": 300,
        "save": str(tmp_path / "kept.json"),
    }
    report = compare_runtimes(read_job(json.dumps(job)), lines.append)
    record, broken = report["files"]
    assert record["passed"], record
    assert record["quality"]["mean_kl"] < 1e-6
    assert record["behaviour"]["weights"] == "file"
    assert (record["bytes"]["passed"], record["meaning"]["passed"]) == (True, True)
    assert record["tokenizer"]["different"] == []
    assert load_fixture(tmp_path / "kept.json").files[0]["file_type"] == "F16"
    assert (report["passed"], broken["passed"], broken["bytes"]["passed"]) == (False, False, True)
    assert "llama.context_length is missing" in broken["problems"][0]
    assert "its behaviour was not compared: " in broken["problems"][1], "llama.cpp refuses the file, and says why"


@pytest.mark.parametrize("draft", ["right", "wrong", "none"])
def test_answers_are_the_models_own_whatever_is_guessed(draft: str, base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from exporters.hf_model.tensor_files import SafetensorsFolder
    from exporters.proof import fixture
    from exporters.proof.inference import LIMIT
    from exporters.reference.streamed_model import StreamedModel

    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    asked = [[5, 9, 33, 101, 7], [8, 1, 40]]

    def greedy(ids: list[int], limit: int) -> list[int]:
        made = whole.generate(
            torch.tensor([ids]), max_new_tokens=limit, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        return [int(token) for token in made[0, len(ids) :]]

    def wrong(ids: list[int], limit: int) -> list[int]:
        guess = greedy(ids, limit)
        return [token if place % 20 else (token + 1) % 640 for place, token in enumerate(guess, start=1)]

    drafts = {"right": greedy, "wrong": wrong, "none": fixture.no_draft}
    passes: list[int] = []

    def scratch(positions: int) -> Any:
        passes.append(positions)
        return np.empty((positions, 640), np.float32)

    model = StreamedModel(base, SafetensorsFolder(base), 1)
    tokenizer = AutoTokenizer.from_pretrained(base)
    stop = greedy(asked[1], 30)[20]
    found = fixture.answers(model, tokenizer, asked, [stop], scratch, drafts[draft])
    for prompt, ids in zip(found, asked, strict=True):
        wanted = greedy(ids, LIMIT)
        end = wanted.index(stop) + 1 if stop in wanted else LIMIT
        assert prompt.greedy_ids == wanted[:end]
        assert len(prompt.positions) == len(ids) + end - 1
    assert len(passes) < 6 or draft == "none"


def test_a_file_of_another_model_is_found_out(exported: Path, tmp_path: Path, tokenizer: Path) -> None:
    from tests.exporters.small_models import build_model

    other = build_model(tmp_path / "other", tokenizer, intermediate_size=256)
    job = {"model": str(other), "files": [str(exported / "run-F16.gguf")], "threads": 1, "positions": 100}
    report = compare_runtimes(read_job(json.dumps(job)), lambda _line: None)
    assert not report["passed"]
    assert any("mean KL" in problem for problem in report["files"][0]["problems"])


def test_a_file_with_another_vocabulary_is_refused_by_name(exported: Path, tmp_path: Path) -> None:
    body = json.loads((exported / FIXTURE_FILE).read_text())
    body["model"]["vocab_size"] += 1
    (tmp_path / FIXTURE_FILE).write_text(json.dumps(body))
    (tmp_path / "run-F16.gguf").write_bytes((exported / "run-F16.gguf").read_bytes())
    with pytest.raises(OperatorError, match=r"run-F16\.gguf has 640 tokens, but the fixture's model has 641"):
        compare(tmp_path, "F16")


DAMAGE = {
    "not JSON": lambda body: "{",
    "another file": lambda body: json.dumps({"kind": "x"}),
    "a newer format": lambda body: json.dumps({**body, "format": 99}),
    "a path for a name": lambda body: json.dumps({**body, "files": [{"file": "../../etc/passwd"}]}),
    "ids of 2^60": lambda body: json.dumps({**body, "prompts": [{**body["prompts"][0], "ids": [2**60]}]}),
    "too few positions": lambda body: json.dumps({**body, "prompts": [{**body["prompts"][0], "positions": []}]}),
    "no prompts": lambda body: json.dumps({**body, "prompts": []}),
    "a limit of words": lambda body: json.dumps({**body, "protocol": {**body["protocol"], "limit": "many"}}),
    "deep": lambda body: "[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_fixture_is_refused_by_name(damage: str, exported: Path, tmp_path: Path) -> None:
    body = json.loads((exported / FIXTURE_FILE).read_text())
    path = tmp_path / "fixture.json"
    path.write_text(DAMAGE[damage](body))
    with pytest.raises(OperatorError, match=r"fixture\.json"):
        load_fixture(path)


def made(ids: list[int], greedy: list[int]) -> Prompt:
    positions = [Position([(7, 2.0), (8, 1.995), (9, 0.0)], 2.5) for _ in range(len(ids) + len(greedy) - 1)]
    return Prompt(None, False, ids, greedy, positions)


@pytest.mark.parametrize(
    ("ids", "gap", "passed"),
    [
        ([7, 7, 7], None, True),
        ([7, 8, 1], 0.005, True),
        ([7, 9, 7], 2.0, False),
        ([7, 55, 7], None, False),
        ([7, 7], None, False),
        ([7, 7, 7, 7, 7], None, True),
    ],
)
def test_another_token_passes_only_as_a_tie(ids: list[int], gap: float | None, passed: bool) -> None:
    found = agree(made([1], [7, 7, 7]), Answer(ids, None, 0.0), [2], limit=3, tie_gap=0.01)
    assert found.passed is passed
    if gap is not None:
        assert found.difference is not None
        assert found.difference.gap == pytest.approx(gap)


def test_going_on_after_the_end_is_a_difference() -> None:
    found = agree(made([1], [7, 2]), Answer([7, 2, 5], None, 0.0), [2], limit=48, tie_gap=0.01)
    assert not found.passed
    assert found.difference is not None
    assert (found.difference.expected, found.difference.got) == (None, 5)


def test_logits_become_log_probabilities() -> None:
    prompt = made([1], [7])
    values = [0.0] * 10
    values[7] = 3.0
    body = json.dumps({"ids": [7], "logits": [values]})
    from exporters.proof.runner import _parse

    answer = _parse(body, prompt, 0.0)
    assert answer.log_probabilities is not None
    assert answer.log_probabilities[0][7] == pytest.approx(3.0 - math.log(math.exp(3.0) + 9))
    with pytest.raises(RunnerError, match="the program's logits cannot be read"):
        _parse(json.dumps({"ids": [7], "logits": ["x"]}), prompt, 0.0)
