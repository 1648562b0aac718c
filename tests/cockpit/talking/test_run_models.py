"""A chat from a run's checkpoints offers its result and its GGUF models, and no adapters or parts of files."""

from __future__ import annotations

from pathlib import Path

from cockpit.one_stage.sources import Source
from cockpit.runs.stage_view import StageView
from cockpit.talking.run_models import run_models
from engines.events.results import ArtifactCommitted
from engines.run_dir.paths import RunDir
from engines.words import StageStatus

FILES = (
    "m-Q4_K_M.gguf", "m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf", "m-F16-LoRA.gguf", "../../m.gguf",
    "gone.gguf",
)  # fmt: skip


def test_results_and_gguf_models_that_exist_are_offered(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    made = StageView("files", "export", StageStatus.SUCCEEDED)
    (run.out("files")).mkdir(parents=True)
    for name in FILES:
        made.all_artifacts.append(
            ArtifactCommitted(
                stage="files", attempt=1, name="x", kind="gguf", path=f"stages/files/out/{name}", bytes=1, sha256=""
            )
        )
        if not name.startswith(("gone", "..")):
            (run.out("files") / name).touch()
    (tmp_path / "stages" / "m.gguf").touch()
    failed = StageView("again", "export", StageStatus.FAILED, all_artifacts=list(made.all_artifacts))
    source = Source("model", "merged", tmp_path / "merged", "a" * 64)
    assert run_models(run, [made, failed], source) == [
        ("merged (result)", tmp_path / "merged"),
        ("files: m-Q4_K_M.gguf", run.out("files") / "m-Q4_K_M.gguf"),
        ("files: m-F16-00001-of-00002.gguf", run.out("files") / "m-F16-00001-of-00002.gguf"),
    ]
    assert run_models(run, [], None) == []
