"""Sets aside the files of an export that a proof refused; the others are delivered."""

from __future__ import annotations

from engines.llama.gguf_file import part_paths
from engines.run_dir.paths import REFUSED_FILES
from exporters.gguf.quant_types import FilePlan
from exporters.stages.export_job import Export
from recipes.problems import printable


def set_aside(export: Export) -> list[FilePlan]:
    """Record every file's verdict, move the refused files to their folder, and warn; return the accepted plans."""
    for name, record in export.files.items():
        reasons = export.reasons.get(name, [])
        record |= {"verdict": "refused" if reasons else "accepted", "reasons": reasons}
    accepted = export.accepted
    for name, reasons in export.reasons.items():
        folder = export.ctx.out / REFUSED_FILES
        folder.mkdir(exist_ok=True)
        for path in part_paths(export.ctx.out / name):
            path.rename(folder / path.name)
        export.ctx.warn(f"{name} is refused and moved to {REFUSED_FILES}/: {printable('; '.join(reasons), 2000)}")
    export.metrics["files_refused"] = float(len(export.reasons))
    return accepted


def all_reasons(export: Export) -> str:
    """Every reason, as one line."""
    return "; ".join(f"{name}: {text}" for name, found in export.reasons.items() for text in found)
