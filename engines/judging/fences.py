"""Code blocks between fences (```) in an answer."""

from __future__ import annotations

FENCE = "```"


def code_of(answer: str, *languages: str) -> str:
    """The text of the first code block of one of these languages, else of the first block; without any block the whole
    answer.

    A block that the answer does not close goes to its end, so a cut answer is judged by what it has.
    """
    blocks = _blocks(answer)
    named = [text for language, text in blocks if language in languages]
    if named:
        return named[0]
    return blocks[0][1] if blocks else answer.strip("\n")


def _blocks(answer: str) -> list[tuple[str, str]]:
    """Language (lower case, empty without one) and text of each block."""
    blocks: list[tuple[str, list[str]]] = []
    inside = False
    for line in answer.split("\n"):
        start = line.lstrip(" ")
        if start.startswith(FENCE) and len(line) - len(start) < 4:
            inside = not inside
            if inside:
                blocks.append((start.strip().strip("`").strip().lower(), []))
        elif inside:
            blocks[-1][1].append(line)
    return [(language, "\n".join(lines)) for language, lines in blocks]
