"""`python -m engines.shipping.job JOB`: prints the evidence about one GGUF file. JOB is JSON; see `Given`."""

from __future__ import annotations

import json
import sys

from engines.llama.job_lines import Send, run_job
from engines.shipping.evidence import Given, collect
from engines.words import ExitCode


def _work(text: str, send: Send) -> ExitCode:
    send({"result": collect(Given(**json.loads(text)))})
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(run_job(sys.argv, _work))
