"""Check the checkpoint of a resume: whether it is the chosen one, and whether the resume can be bit-exact."""

from __future__ import annotations

import torch

from engines.artifacts.manifest import ManifestError, manifest_sha256, read_manifest, verify_manifest
from engines.context import ResumePoint, StageContext
from engines.forward.rows_attention import OWN
from engines.ranks.placement import strategy_asked
from engines.training.devices import place
from engines.training.precision import ATTENTION, BFLOAT16, KERNELS, RECORD, kernels
from engines.training.saving import STRATEGY, versions
from engines.world import World
from recipes.problems import OperatorError
from recipes.stages.training import TrainingFields


def check_resume(ctx: StageContext[TrainingFields], resume: ResumePoint) -> None:
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
    elsewhere = _elsewhere(manifest)
    if elsewhere:
        ctx.warn(f"resumed from step {resume.step} elsewhere: {'; '.join(elsewhere)}")
    differences = _differences(manifest, ctx.stage, ctx.world)
    if differences:
        ctx.warn(
            f"resumed from step {resume.step}; results may differ from an uninterrupted run: " + "; ".join(differences)
        )


def _elsewhere(manifest: dict[str, object]) -> list[str]:
    """In what the attempt's place differs from that of the checkpoint; older checkpoints do not say theirs.

    Another card of the same kind computes the same, so this alone is no reason to expect other results.
    """
    now = place()
    found = []
    if isinstance(manifest.get("host"), str) and manifest["host"] != now["host"]:
        found.append(f"host was {manifest['host']}, now {now['host']}")
    if isinstance(manifest.get("cards"), list) and _identities(manifest["cards"]) != _identities(now["cards"]):
        found.append(f"GPU was {_cards_words(manifest['cards'])}, now {_cards_words(now['cards'])}")
    return found


def _cards_words(cards: object) -> str:
    """`NVIDIA H100 (GPU-…)`; "none" for a training on the CPU."""
    assert isinstance(cards, list)
    known = [card for card in cards if isinstance(card, dict)]
    return ", ".join(f"{card.get('name')} ({card.get('id')})" for card in known) or "none"


def _identities(cards: object) -> list[object]:
    assert isinstance(cards, list)
    return [(card.get("name"), card.get("id")) for card in cards if isinstance(card, dict)]


def _names(cards: object) -> list[object]:
    return [card.get("name") for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []


def _differences(manifest: dict[str, object], stage: TrainingFields, world: World) -> list[str]:
    now: dict[str, object] = {
        "world_size": world.size,
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    if STRATEGY in manifest:
        now[STRATEGY] = strategy_asked(stage, world)
    found = [
        f"{name} was {manifest.get(name)}, now {value}" for name, value in now.items() if manifest.get(name) != value
    ]
    before, after = _names(manifest.get("cards")), _names(place()["cards"])
    if before and after and before != after:
        found.append(f"the kind of GPU was {before[0]}, now {after[0]}")
    used = manifest.get(KERNELS)
    if isinstance(used, dict):
        used = {ATTENTION: OWN, **used}
        recorded = manifest.get(RECORD)
        bf16 = isinstance(recorded, dict) and recorded.get("compute") == BFLOAT16
        found += [
            f"{name} was {used[name]}, now {value}"
            for name, value in kernels(stage, bf16=bf16).items()
            if name in used and used[name] != value
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
