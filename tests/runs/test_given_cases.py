"""Real cases in a folder outside the repository: `cockpit check` says of each what is right.

`COCKPIT_CASES` names the folder; without it the test is skipped. A case is a folder with a recipe and data beside it.
The repository's own tests of the same kinds are listed in tests/engines/data/test_kinds_of_data.py.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from engines.words import ExitCode
from tests.cockpit.command_line import CommandLine

CASES = Path(os.environ.get("COCKPIT_CASES", "no cases are given"))

pytestmark = [pytest.mark.thorough, pytest.mark.skipif(not CASES.is_dir(), reason="COCKPIT_CASES names no folder")]

TRAINS = "4 steps; evaluations at:"
EXPECTED: dict[str, str] = {
    "00-good": r"4 steps; evaluations at: 2, 4; checkpoints at: 4",
    "01-sharegpt": r"sharegpt in JSON Lines",
    "02-alpaca-null": r"alpaca in JSON Lines",
    "03-bom-crlf": r"UTF-8 with a byte-order mark, CRLF line ends",
    "04-json-array": r"messages in a JSON array",
    "05-json-name": TRAINS,
    "06-weight-zero": TRAINS,
    "07-tool-calls-null": TRAINS,
    "08-tool-calls-final": TRAINS,
    "10-think-multi-turn": r"the template adds '<think>.*not counted by the loss",
    "11-think-single": r"the template adds '<think>.*not counted by the loss",
    "12-system-refused": r"train\.jsonl:17: .*System role not supported.*fold_system = true",
    "13-roles-not-alternating": r"train\.jsonl:17: .*Conversation roles must alternate",
    "14-marker-in-text": TRAINS,
    "15-html-s-tag": TRAINS,
    "16-all-cut": r"none of the 8 rows of the train split has an answer within 256 tokens",
    "17-empty-answers": r"train\.jsonl:17: the assistant's turn 2 has no content",
    "18-duplicate-keys": r"train\.jsonl:17: an object has the key messages twice",
    "19-encoding": r"train\.jsonl:17: not UTF-8.*latin-1",
    "20-utf16": r"UTF-16-LE with a byte-order mark",
    "21-long-line": r"1 of 17 rows were left out.*1217020 tokens",
    "22-content-parts": TRAINS,
    "23-preference": r"columns = \{user = \"prompt\", assistant = \"chosen\"\}",
    "24-plain-text": TRAINS,
    "25-prompt-completion": r"prompt-completion in JSON Lines",
    "26-eos-is-pad": TRAINS,
    "27-no-template": r'set chat_template = "chatml"',
    "28-template-ends-with-eos": TRAINS,
    "30-pad-outside": r"pad_token '\[PAD\]' is token 1203, and the model's embedding has 1203 rows",
    "31-base-4bit": r"quantized weights \(bitsandbytes\).*16-bit base",
    "32-continue-adapter": r"is an adapter.*merge it first",
    "33-nan-weight": TRAINS,
    "34-base-bin": TRAINS,
    "35-target-modules": r'target_modules\[0\].*no linear layer.*"qkv_proj"',
    "56-late-bad-row": r"train\.jsonl:20001: (?s:.*)val\.jsonl:1: ",
    "59-parquet": r"messages in Parquet",
}
REFUSED = {
    "12-system-refused", "13-roles-not-alternating", "16-all-cut", "17-empty-answers", "18-duplicate-keys",
    "19-encoding", "23-preference", "27-no-template", "30-pad-outside", "31-base-4bit", "32-continue-adapter",
    "35-target-modules", "56-late-bad-row",
}  # fmt: skip
"""What no run may begin with; all other cases train."""


@pytest.mark.parametrize("case", EXPECTED)
def test_a_check_of_a_real_case_says_what_is_right(tmp_path: Path, case: str) -> None:
    done = CommandLine(tmp_path).run("check", str((CASES / case / "recipe.toml").resolve()))
    printed = done.stdout + done.stderr
    if "there is no such path" in printed:
        pytest.skip(f"the model of this case is not made: {printed}")
    assert done.returncode == (ExitCode.MISTAKE if case in REFUSED else ExitCode.DONE), printed
    assert re.search(EXPECTED[case], printed), printed
