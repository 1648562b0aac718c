"""Check the checkpoint of a resume: whether it is the chosen one, and whether the resume can be bit-exact."""

from __future__ import annotations

import torch

from engines.artifacts.manifest import ManifestError, manifest_sha256, read_manifest, verify_manifest
from engines.context import ResumePoint, StageContext
from engines.training.saving import versions
from recipes.problems import OperatorError
from recipes.stages.fields import StageFields


def check_resume(ctx: StageContext[StageFields], resume: ResumePoint) -> None:
    """Refuse a checkpoint that has changed; warn where the arithmetic may differ from an uninterrupted run.

    Raises:
        OperatorError: the checkpoint is damaged, or is not the chosen one.
    """
    try:
        problems = verify_manifest(resume.path, hashes=False)
        if not problems and manifest_sha256(resume.path) != resume.sha256:
            problems = ["its manifest has changed since the checkpoint was chosen"]
        manifest = {} if problems else read_manifest(resume.path)
    except ManifestError as error:
        raise OperatorError(f"checkpoint {resume.path}: {error}", "resume from another checkpoint") from error
    if problems:
        raise OperatorError(f"checkpoint {resume.path}: {'; '.join(problems)}", "resume from another checkpoint")
    differences = _differences(manifest)
    if differences:
        ctx.warn(
            f"resumed from step {resume.step}; results may differ from an uninterrupted run: " + "; ".join(differences)
        )


def _differences(manifest: dict[str, object]) -> list[str]:
    now = {
        "world_size": 1,
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    found = [
        f"{name} was {manifest.get(name)}, now {value}" for name, value in now.items() if manifest.get(name) != value
    ]
    then = manifest.get("versions")
    if isinstance(then, dict):
        here = versions()
        found += [
            f"{name} was {then.get(name, 'absent')}, now {here.get(name, 'absent')}"
            for name in sorted({*then, *here})
            if then.get(name) != here.get(name)
        ]
    return found
