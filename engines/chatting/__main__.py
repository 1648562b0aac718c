"""`python -m engines.chatting`: loads one model and answers requests until stdin ends.

The first line of stdin is a `Job`, each other one a request; each line of stdout is an event: `engines.chatting.lines`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from functools import partial

import msgspec

from engines.chatting.courtesy import Courtesy
from engines.chatting.lines import Event, Failed, Job, Loading, Ready, Slowed, Warned
from engines.chatting.manners import give_way, half_of_the_free
from engines.chatting.opening import open_talk
from engines.chatting.serve import Requests, answer
from engines.llama.library import NativeError, die_with_parent
from engines.processor import usable_cores
from engines.words import ExitCode
from recipes.problems import OperatorError, printable


def main() -> ExitCode:
    """Serve on the standard streams."""
    die_with_parent()
    give_way()
    started_s = time.monotonic()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no event
    lock = threading.Lock()

    def send(event: Event) -> None:
        with lock:
            answers.write(msgspec.json.encode(event) + b"\n")
            answers.flush()

    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    courtesy = Courtesy(lambda slow: send(Slowed(slow=slow)))
    courtesy.watch()
    threads = job.threads or (1 if courtesy.slow else half_of_the_free(usable_cores(), os.getloadavg()[0]))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when the libraries below are first imported
    send(Loading(phase="importing libraries"))
    try:
        talk = open_talk(job, threads, send, lambda text: send(Warned(text=text)))
    except OperatorError as error:
        send(Failed(error=error.message, hint=error.hint))
        return ExitCode.MISTAKE
    except NativeError as error:
        send(Failed(error=str(error)))
        return ExitCode.FAILED
    except Exception as error:  # noqa: BLE001 - libraries raise anything for a model that is damaged
        what = printable(str(error).partition("\n")[0], 300)
        send(Failed(error=f"the model cannot be loaded: {type(error).__name__}: {what}"))
        return ExitCode.FAILED
    courtesy.answers_with(lambda: talk.workers, threads)
    send(
        Ready(
            runtime=talk.runtime,
            dtype=talk.dtype,
            plain=talk.plain,
            adapter=talk.has_adapter,
            context=talk.context,
            threads=threads,
            load_s=time.monotonic() - started_s,
        )
    )
    # Not a return at the end of stdin: an answer may compute in the other thread, and there is nothing to save.
    requests = Requests(sys.stdin.buffer, lambda: os._exit(ExitCode.DONE))

    def stopped(number: int) -> bool:
        courtesy.rest(lambda: requests.is_stopped(number))
        return requests.is_stopped(number)

    while True:
        ask = requests.next()
        answer(talk, ask, send, partial(stopped, ask.id))


if __name__ == "__main__":
    sys.exit(main())
