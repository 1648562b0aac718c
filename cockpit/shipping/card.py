"""The report about a judged file as Markdown: a model card with its verdict, figures, data, recipe and licence.

Texts from elsewhere stand in code spans, in which Markdown and HTML have no meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from cockpit.shipping.check import Check
from cockpit.shipping.evaluations import Chosen
from cockpit.shipping.judge import Judged
from engines.files import read_regular_text
from recipes import quantities
from recipes.problems import printable

EXPORT_CARD = "README.md"
_MAX_CARD_BYTES = 1024 * 1024
_ORIGIN = "## Origin"


def card_text(judged: Judged, pictures: Sequence[str]) -> str:
    """The card.

    Args:
        judged: the file.
        pictures: names of the files with its curves, beside the card.
    """
    card = _export_card(judged.subject.out)
    parts = judged.evidence["parts"]
    sha256 = parts[0]["sha256"] if parts else ""
    lines = [
        *_front(card),
        f"# {_code(judged.subject.name)}",
        "",
        "**Verdict: passed.**" if judged.passed else "**Verdict: refused.**",
        "",
        f"- SHA-256 {_code(sha256)}",
        f"- size {quantities.size_in_both(judged.evidence['bytes'])}",
        *(f"- refused: {_code(check.name)}: {_text(check.reason)}" for check in judged.checks if not check.passed),
        "",
        "## Checks",
        "",
        *_table(("check", "result", "measured", "allowed", "from"), [_row(check) for check in judged.checks]),
        "## Evaluations",
        "",
        *_evaluation("Task", judged.task),
        *_evaluation("General questions", judged.general),
        *_curves(pictures),
        *_origin(card),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(check: Check) -> tuple[str, ...]:
    shown = check.measured if len(check.measured) <= 60 else check.measured[:12] + "…"
    cells = [_code(text) if text else "" for text in (shown, check.limit, check.source)]
    return (check.name, str(check.result), *cells)


def _evaluation(title: str, chosen: Chosen | None) -> Iterator[str]:
    yield f"### {title}"
    yield ""
    if chosen is None:
        yield "Not evaluated."
        yield ""
        return
    metrics, results = chosen.metrics, chosen.results
    success = f"{quantities.percent(metrics['success'], 1)} of {quantities.whole(metrics['test_rows'])} rows passed"
    low, high = (quantities.percent(metrics[f"success_{end}"], 1) for end in ("low", "high"))
    yield f"- {success} (95 %: {low} to {high})"
    if results["baseline"] is not None and "difference" in metrics:
        ends = f"{quantities.points(metrics['difference_low'])} to {quantities.points(metrics['difference_high'])}"
        yield (
            f"- against {_code(results['baseline']['name'])} on the same rows: "
            f"{quantities.points(metrics['difference'])} points (95 %: {ends}), "
            f"won {quantities.whole(metrics['won_rows'])}, lost {quantities.whole(metrics['lost_rows'])}"
        )
    yield f"- answered by {_code(results['runtime'])}, chat template {_code(results['template'][:12])}, greedy"
    if "latency_p95_s" in metrics:
        p50, p95 = (quantities.duration(metrics[f"latency_{name}_s"]) for name in ("p50", "p95"))
        rate = quantities.rate(metrics.get("answer_tokens_per_second"))
        machine = _code("; ".join(results["machines"]) or "an unknown machine")
        yield f"- latency p50 {p50}, p95 {p95}, {rate}, on {machine}"
    if "peak_rss_bytes" in metrics:
        yield f"- memory {quantities.size(metrics['peak_rss_bytes'])} at most"
    yield f"- figures from {_code(chosen.source)}, SHA-256 {_code(results['sha256'])}"
    yield from (f"- {_text(note)}" for note in results["notes"])
    yield ""


def _curves(pictures: Sequence[str]) -> Iterator[str]:
    if pictures:
        yield "## Training"
        yield ""
        for name in pictures:
            yield f"![Loss and learning rate]({name})"
            yield ""


def _export_card(out: Path) -> str:
    """The card that the export wrote; empty without one."""
    try:
        return read_regular_text(out / EXPORT_CARD, _MAX_CARD_BYTES)
    except (OSError, ValueError):
        return ""


def _front(card: str) -> list[str]:
    """The front matter of the export's card: licence and base model, for model hubs."""
    lines = card.splitlines()
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        return []
    return [*lines[: lines.index("---", 1) + 1], ""]


def _origin(card: str) -> list[str]:
    """The origin as the export's card has it: base model, licence, data and recipe of the trainings."""
    _, found, rest = card.partition(f"\n{_ORIGIN}\n")
    if not found:
        return [_ORIGIN, "", "The export wrote no card."]
    return [_ORIGIN, *rest.partition("\n## ")[0].splitlines()]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"|{'|'.join('---' for _ in titles)}|"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def _code(text: object) -> str:
    shown = printable(str(text), 300)
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    space = " " if shown.startswith("`") or shown.endswith("`") or not shown.strip() else ""
    return f"{fence}{space}{shown}{space}{fence}"


def _text(text: str) -> str:
    """A sentence of Cockpit's that quotes names from elsewhere."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", printable(text, 600))
