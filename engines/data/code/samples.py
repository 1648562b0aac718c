"""Questions for the text of files whose path contains a keyword."""

from __future__ import annotations

from collections.abc import Sequence

from engines.data.code.questions import Fact, chosen

FILE = "file"
_WHOLE = ("Show me `{path}`.", "What is in the file `{path}`?", "Print the source of `{path}`.")
_START = (
    "Show me the first {count} lines of `{path}`.",
    "What are the first {count} lines of `{path}`?",
    "Print the first {count} lines of `{path}`.",
)


def has_keyword(path: str, keywords: Sequence[str]) -> bool:
    """Whether a path contains one of the words, in any case."""
    return any(word.lower() in path.lower() for word in keywords)


def file_fact(path: str, text: str, language: str, max_chars: int) -> Fact | None:
    """The question for the text of a file: for the whole text, or for the first lines that fit; None when none fits.

    Args:
        path: the file, relative to the source.
        text: its text.
        language: its language, for the mark of the code block.
        max_chars: most characters of the answer.
    """
    lines = text.replace("\r\n", "\n").rstrip().split("\n")
    fence = "```"
    while fence in text:
        fence += "`"
    opening = f"{fence}{language}\n"
    left = max_chars - len(opening) - len(fence) - 1
    count = 0
    for line in lines:
        left -= len(line) + 1
        if left < 0:
            break
        count += 1
    while count and not lines[count - 1].strip():
        count -= 1
    if not count:
        return None
    phrasings = _WHOLE if count == len(lines) else _START
    question = chosen(phrasings, f"{FILE}:{path}").format(path=path, count=count)
    return Fact(FILE, question, opening + "\n".join(lines[:count]) + f"\n{fence}")
