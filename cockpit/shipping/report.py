"""Writes what a judgement leaves: the report, the card, pictures of the curves, and the verdict beside the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cockpit.curves.figure import figure_of
from cockpit.curves.png import png
from cockpit.shipping.card import card_text
from cockpit.shipping.judge import Judged
from cockpit.shipping.verdict import beside, sealed, text_of
from engines.files import write_durably
from recipes.problems import OperatorError, printable
from recipes.stages.registry import STAGE_KINDS

SHIP_JSON = "ship.json"
CARD = "MODEL_CARD.md"
_CURVES = ("loss", "learning_rate")


@dataclass(frozen=True)
class Written:
    """What was written: the folder of the report, the sealed verdict, and what could not be written."""

    folder: Path
    verdict: Mapping[str, Any]
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def write_report(judged: Judged, out: Path | None, key: bytes | None) -> Written:
    """Write the report into a folder, and the verdict beside the file and into the run where these can be written.

    Args:
        judged: the file.
        out: the folder of the report; None for one in the run.
        key: signs the verdict.

    Raises:
        OperatorError: the report cannot be written.
    """
    verdict = sealed(judged.verdict(), key)
    folder = out if out is not None else _folder(judged)
    files: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = _pictures(judged)
        for name, data in (
            *pictures.items(),
            (CARD, card_text(judged, list(pictures)).encode("utf-8", "replace")),
            (SHIP_JSON, text_of(verdict)),
        ):
            write_durably(folder / name, data)
            files.append(folder / name)
    except OSError as error:
        raise OperatorError(
            f"--out — {printable(str(folder), 400)} cannot be written: {error.strerror or error}",
            "give a folder that you can write: --out DIR",
        ) from error
    notes: list[str] = []
    sha256 = str(verdict["file"]["sha256"])
    places = [beside(judged.subject.file)]
    if judged.subject.run is not None and sha256:
        places.append(judged.subject.run.verdict(sha256, str(verdict["sha256"])))
    for number, place in enumerate(places):
        try:
            if number:
                place.parent.mkdir(exist_ok=True)
            write_durably(place, text_of(verdict))
            files.append(place)
        except OSError as error:
            notes.append(f"no verdict in {printable(str(place.parent), 300)}: {error.strerror or error}")
    return Written(folder, verdict, tuple(files), tuple(notes))


def _folder(judged: Judged) -> Path:
    run = judged.subject.run
    if run is None:
        raise OperatorError("--out — required, because the run of the file is not here", "give a folder: --out DIR")
    return run.shipped(judged.subject.file.stem)


def _pictures(judged: Judged) -> dict[str, bytes]:
    """The loss and learning rate of each training of the run, as PNG by file name."""
    state = judged.state
    if state is None:
        return {}
    trained = [stage.name for stage in state.stages if stage.kind in STAGE_KINDS and STAGE_KINDS[stage.kind].trains]
    return {
        f"curves-{name}.png": png(figure_of(state, stages=[name], metrics=_CURVES))
        for name in trained
        if len(state.series(name, "loss"))
    }
