"""Secrets in source text: keys, tokens and passwords, by patterns that seldom match anything else.

The forms are those that the services document for their tokens. An example that contains a secret is left out as a
whole; metadata counts them by rule and never contains one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

_NOT_WORD = r"(?<![A-Za-z0-9_])"
_END = r"(?![A-Za-z0-9_])"
RULES: dict[str, re.Pattern[str]] = {
    name: re.compile(pattern)
    for name, pattern in {
        "aws_access_key": rf"{_NOT_WORD}(?:AKIA|ASIA)[A-Z0-9]{{16}}{_END}",
        "github_token": rf"{_NOT_WORD}(?:gh[pousr]_[A-Za-z0-9]{{36,255}}|github_pat_[A-Za-z0-9_]{{22,255}}){_END}",
        "gitlab_token": rf"{_NOT_WORD}glpat-[A-Za-z0-9_-]{{20,64}}",
        "slack_token": rf"{_NOT_WORD}xox[abeoprs]-[A-Za-z0-9-]{{10,250}}",
        "slack_webhook": r"https://hooks\.slack\.com/services/T[A-Z0-9]{6,12}/B[A-Z0-9]{6,12}/[A-Za-z0-9]{20,30}",
        "google_api_key": rf"{_NOT_WORD}AIza[A-Za-z0-9_-]{{35}}{_END}",
        "hugging_face_token": rf"{_NOT_WORD}hf_[A-Za-z0-9]{{30,64}}{_END}",
        "openai_key": rf"{_NOT_WORD}sk-(?:proj-|ant-[a-z0-9]{{1,10}}-|svcacct-)?[A-Za-z0-9_-]{{32,200}}",
        "stripe_key": rf"{_NOT_WORD}[rs]k_live_[A-Za-z0-9]{{20,247}}{_END}",
        "npm_token": rf"{_NOT_WORD}npm_[A-Za-z0-9]{{36}}{_END}",
        "pypi_token": rf"{_NOT_WORD}pypi-AgE[A-Za-z0-9_-]{{50,1000}}",
        "sendgrid_key": rf"{_NOT_WORD}SG\.[A-Za-z0-9_-]{{16,32}}\.[A-Za-z0-9_-]{{16,64}}",
        "json_web_token": rf"{_NOT_WORD}eyJ[\w-]{{10,2000}}\.eyJ[\w-]{{10,4000}}\.[\w-]{{10,2000}}",
        "private_key": r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----",
        "password_in_url": r"\b[a-z][a-z0-9+.-]{1,15}://[^\s:/@\"'<>{}$%]{1,64}:[^\s:/@\"'<>{}$%*]{3,128}@[\w.-]{3,255}",
    }.items()
}
"""The pattern of each rule. Every one begins with a fixed text or is bounded, so it takes no long time."""
ASSIGNED = re.compile(
    r"(?i)(?:api[_-]?key|secret(?:[_-]?key)?|access[_-]?key|token|passw(?:or)?d|pwd|private[_-]?key)"
    r"[\"']?[ \t]{0,8}(?::=|=>|[:=])[ \t]{0,8}[\"'`]?([A-Za-z0-9+/_=.~!@#$%^&*-]{12,200})"
)
"""A value that is assigned to a name of a secret; it counts if its characters look random."""
_HINT = re.compile(
    r"AKIA|ASIA|gh[pousr]_|github_pat_|glpat-|xox|hooks\.slack|AIza|hf_|sk-|k_live_|npm_|pypi-|SG\.|eyJ|-----BEGIN|://"
    r"|[Kk][Ee][Yy]|[Ss][Ee][Cc][Rr][Ee][Tt]|[Tt][Oo][Kk][Ee][Nn]|[Pp][Aa][Ss][Ss][Ww]|[Pp][Ww][Dd]"
)
"""What every secret's text or name contains; a text without it needs no other search."""
_PLACEHOLDER = re.compile(
    r"(?i)example|placeholder|dummy|changeme|your[_-]|xxxx|\*\*\*\*|<|>|\$\{|%\(|test[_-]?(?:key|token)"
)
_LEAST_ENTROPY_BITS = 4.0
_KEY_BLOCK_LINES = 200
_KEY_LINE = re.compile(r"^[A-Za-z0-9+/=]{20,}$")


def secrets_in(text: str) -> list[tuple[str, str]]:
    """The secrets of a text as (rule, value), in the order of the rules.

    Of a private key, every line of its body is a value, so that a part of it is known too.
    """
    if not _HINT.search(text):
        return []
    found = [(rule, match[0]) for rule, pattern in RULES.items() for match in pattern.finditer(text)]
    if any(rule == "private_key" for rule, _ in found):
        found += [("private_key", line) for line in _key_lines(text)]
    found += [("assigned_secret", value) for value in _assigned(text)]
    return found


def _key_lines(text: str) -> Iterator[str]:
    inside = 0
    for line in text.splitlines():
        if RULES["private_key"].search(line):
            inside = _KEY_BLOCK_LINES
        elif "-----END" in line:
            inside = 0
        elif inside:
            inside -= 1
            bare = line.strip(" \t\"'+,;#/*\\n")
            if _KEY_LINE.match(bare):
                yield bare


def _assigned(text: str) -> Iterator[str]:
    for match in ASSIGNED.finditer(text):
        value = match[1]
        mixed = any(one.isdigit() for one in value) and any(one.isalpha() for one in value)
        if mixed and not _PLACEHOLDER.search(value) and entropy_bits(value) > _LEAST_ENTROPY_BITS:
            yield value


def entropy_bits(text: str) -> float:
    """Shannon's entropy of the characters of a text, in bits per character."""
    counts = Counter(text)
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts.values())
