"""A pull leaves a whole, verified model at a fixed commit in the hub's cache, or says why not and keeps what it has."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cockpit.cli import main
from cockpit.models import hub_replies
from cockpit.models import pull as pulling
from cockpit.models.needed import RemoteFile, needed
from cockpit.models.pull import Plan, plan_of, pull
from engines.inputs.hub_cache import cached_model
from engines.training.inputs import cached_folder
from engines.words import ExitCode
from recipes.problems import OperatorError
from tests.cockpit.models.hub import COMMIT, Hub, serving

WEIGHTS = bytes(range(256)) * 2000
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"a pickle",
    "modeling_x.py": b"raise SystemExit",
    "onnx/model.onnx": b"another form",
    "consolidated.safetensors": b"a copy",
}
TAKEN = {"config.json", "tokenizer.json", "model.safetensors"}
TOKEN = "hf_" + "s3cret" * 5


def only_here(instead: Callable[[float], None]) -> Callable[[float], None]:
    """A sleep for this thread; other threads sleep as always, or they would use the processor without a pause."""
    here, sleep = threading.current_thread(), time.sleep
    return lambda seconds: instead(seconds) if threading.current_thread() is here else sleep(seconds)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub(dict(FILES), large={"model.safetensors"})) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("time.sleep", only_here(lambda _seconds: None))
        yield running


def pulled() -> Plan:
    plan = plan_of("org/name", "main", ())
    pull(plan, lambda _done, _all: None)
    return plan


def test_the_needed_files_are_in_the_cache_verified_and_found_by_id_and_by_commit(hub: Hub, tmp_path: Path) -> None:
    plan = pulled()
    assert {file.name for file in plan.snapshot.iterdir()} == TAKEN
    assert (plan.snapshot / "model.safetensors").read_bytes() == WEIGHTS
    assert cached_model("org/name") == cached_model(f"org/name@{COMMIT}") == plan.snapshot
    assert cached_folder("org/name") == cached_folder(f"org/name@{COMMIT}") == plan.snapshot
    assert cached_model("org/name@" + "b" * 40) is None
    record = json.loads((plan.home / f"{COMMIT}.cockpit-pull.json").read_text())
    assert {file["name"] for file in record["files"]} == TAKEN
    assert TOKEN not in (plan.home / f"{COMMIT}.cockpit-pull.json").read_text()
    assert all(authorization == f"Bearer {TOKEN}" for _, _, authorization in hub.asked)
    before = len(hub.asked)
    pulled()
    assert [path for path, _, _ in hub.asked[before:]] == ["/api/models/org/name/revision/main"]


def test_a_transfer_that_breaks_off_continues_where_it_was(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.cut["model.safetensors"] = 100_000
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 16 * 1024)
    monkeypatch.setattr(
        "time.sleep", only_here(lambda _seconds: (_ for _ in ()).throw(KeyboardInterrupt))
    )  # a process that ends
    with pytest.raises(KeyboardInterrupt):
        pulled()
    plan = plan_of("org/name", "main", ())
    part = plan.part(next(one for one in plan.files if one.sha256))
    assert part.read_bytes() == WEIGHTS[: part.stat().st_size]
    have = part.stat().st_size
    assert 0 < have <= 100_000
    assert cached_model("org/name") is None, "an incomplete model is not in the cache"
    told: list[tuple[int, int]] = []
    pull(plan, lambda done, total: told.append((done, total)))
    assert hub.asked[-1][1] == f"bytes={have}-"
    assert told[-1] == (len(WEIGHTS) - have, len(WEIGHTS) - have)
    assert (plan.snapshot / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_with_another_content_is_refused_and_not_kept(hub: Hub, name: str) -> None:
    hub.swapped[name] = bytes(len(FILES[name]))
    with pytest.raises(OperatorError, match=f"content of {name} is not what the hub says"):
        pulled()
    assert cached_model("org/name") is None
    hub.swapped.clear()
    assert (pulled().snapshot / name).read_bytes() == FILES[name]


@pytest.mark.parametrize("damage", [b"", b"cut", b"\1" + WEIGHTS[1:], None])
def test_a_damaged_content_in_the_cache_is_never_called_verified(hub: Hub, damage: bytes | None) -> None:
    plan = pulled()
    blob = (plan.snapshot / "model.safetensors").resolve()
    if damage is None:
        blob.unlink()
    else:
        blob.write_bytes(damage)
    hub.status = 503
    with pytest.raises(OperatorError):
        pulled()
    hub.status, hub.swapped["model.safetensors"] = 200, bytes(len(WEIGHTS))
    with pytest.raises(OperatorError, match="is not what the hub says"):
        pulled()
    hub.swapped.clear()
    assert (pulled().snapshot / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    "reply",
    [b"[]", b"[" * 100_000, b"<html>", b"null", b'{"id": "org/name", "siblings": [null]}', b'{"siblings": 7}'],
    ids=["list", "deep", "html", "null", "null file", "no list"],
)
def test_a_reply_that_is_not_a_hubs_is_refused_without_a_traceback(hub: Hub, reply: bytes) -> None:
    hub.reply = reply
    with pytest.raises(OperatorError, match=r"the reply is not that of a hub|the hub answered with commit"):
        pulled()


def test_a_reply_without_an_end_is_refused_before_the_memory_is_used_up(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_replies, "_REPLY_BYTES", 64 * 1024 * 1024)
    hub.reply = b" " * (256 * 1024 * 1024)
    with pytest.raises(OperatorError, match="the reply is too long"):
        pulled()
    hub.reply = None
    assert pulled().snapshot.is_dir()


@pytest.mark.parametrize(
    "entry",
    [{"size": None}, {"size": -1}, {"size": "big"}, {"size": 3}, {"lfs": {"sha256": 7, "size": 3, "pointerSize": 1}}],
)
def test_a_needed_file_that_cannot_be_verified_refuses_the_model(hub: Hub, entry: dict[str, object]) -> None:
    hub.extra = [{"rfilename": "merges.txt", "size": 3, **entry}]
    with pytest.raises(OperatorError, match=r"no hash of merges\.txt"):
        pulled()
    assert cached_model("org/name") is None


@pytest.mark.parametrize("name", ["config.json", "config.json/sub.json"])
def test_a_name_that_the_hub_lists_twice_or_as_a_folder_is_refused(hub: Hub, name: str) -> None:
    hub.extra = [{"rfilename": name, "size": 3, "blobId": "0" * 40}]
    with pytest.raises(OperatorError, match=r"lists config\.json more than once, or as a folder too"):
        plan_of("org/name", "main", ("*",))


def test_a_cache_that_cannot_be_written_is_an_operators_mistake(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hub" / "models--org--name").mkdir(parents=True)
    (tmp_path / "hub" / "models--org--name" / "snapshots").write_text("a file")
    assert main(["pull", "org/name"]) == ExitCode.MISTAKE
    assert "HF_HUB_CACHE" in capsys.readouterr().err


@pytest.mark.parametrize(("said", "problem"), [(1000, "longer than the 1000 bytes"), (10**6, "should be of size")])
def test_a_size_that_is_not_true_ends_the_transfer(hub: Hub, said: int, problem: str) -> None:
    hub.lies["model.safetensors"] = said
    with pytest.raises(OperatorError, match=problem):
        pulled()
    assert cached_model("org/name") is None


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (401, "has no model org/name, or it is private|the token is not valid"),
        (403, "gated"),
        (404, "no revision main"),
        (429, "status 429"),
        (500, "status 500"),
    ],
)
def test_what_the_hub_refuses_is_said_with_a_way_out_and_without_the_token(
    hub: Hub, status: int, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.status = status
    assert main(["pull", "org/name"]) == ExitCode.MISTAKE
    said = capsys.readouterr()
    assert re.search(problem, said.err), said.err
    assert TOKEN not in said.out + said.err
    if status == 429:
        assert "wait 7 seconds" in said.err


def test_a_loop_of_redirects_ends(hub: Hub) -> None:
    hub.loops = True
    with pytest.raises(OperatorError, match="cannot be reached or broke off: TooManyRedirects"):
        pulled()


def test_a_model_that_does_not_fit_the_disk_is_not_begun(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pulling, "disk_free", lambda _folder: 1000)
    assert main(["pull", "org/name"]) == ExitCode.MISTAKE
    assert "has 1000 B free" in capsys.readouterr().err
    assert not (tmp_path / "hub").exists()


def test_the_command_prints_the_commit_that_a_recipe_pins(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "org/name@main", "--dry-run"]) == ExitCode.DONE
    assert "model.safetensors" in capsys.readouterr().out
    assert cached_model("org/name") is None
    assert main(["pull", "org/name@main"]) == ExitCode.DONE
    assert f'model = "org/name@{COMMIT}"' in capsys.readouterr().out
    hub.commit = "../../x"
    assert main(["pull", "org/name"]) == ExitCode.MISTAKE
    assert main(["pull", "../name"]) == ExitCode.MISTAKE
    assert main(["pull", "org/name@../x"]) == ExitCode.MISTAKE


def test_without_network_nothing_is_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OperatorError, match="HF_HUB_OFFLINE is set"):
        pulled()
    assert hub.asked == []


def remote(*names: str) -> list[RemoteFile]:
    return [RemoteFile(name, 1, "0" * 64) for name in names]


def test_pickles_are_taken_only_where_nothing_else_is_there_and_code_never() -> None:
    pickles = remote("config.json", "pytorch_model.bin", "run.sh", "modeling.py", ".hidden.json", "a/../b.json")
    assert [one.name for one in needed(pickles, ())] == ["config.json", "pytorch_model.bin"]
    both = [*pickles, *remote("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")]
    assert "pytorch_model.bin" not in [one.name for one in needed(both, ())]
    with pytest.raises(OperatorError, match="2 GGUF files and no model folder"):
        needed(remote("x-Q4_K_M.gguf", "x-Q8_0.gguf"), ())
    assert [one.name for one in needed(remote("x-Q4_K_M.gguf", "x-Q8_0.gguf"), ("*Q4_K_M.gguf",))] == ["x-Q4_K_M.gguf"]
    with pytest.raises(OperatorError, match="is code"):
        needed(both, ("modeling.py",))
    with pytest.raises(OperatorError, match="no weights"):
        needed(remote("README.md"), ())
