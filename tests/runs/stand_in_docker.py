"""Stands in for docker's client: `run [OPTIONS] IMAGE COMMAND…` starts the command in a namespace of processes of its
own, with the environment of the options alone, and ends with its status, 128 and the number for a signal.

There is no image: files are those outside. A path that is to be mounted must exist.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ALONE = {"--rm", "--init"}


def main(words: list[str]) -> int:
    """Start the command and wait for its end."""
    assert words.pop(0) == "run"
    environment = {"PATH": "/usr/bin:/bin"}
    while words[0].startswith("--"):
        name = words.pop(0)
        value = "" if name in ALONE else words.pop(0)
        if name == "--env":
            environment[value] = os.environ[value]
        elif name == "--volume":
            assert Path(value.split(":")[0]).exists(), value
        elif name == "--workdir":
            os.chdir(value)
    if words.pop(0) == "missing":
        sys.stderr.write("Unable to find image 'missing'\n")
        return 125
    first = ["/bin/sh", "-c", '"$@"; exit $?', "init"]  # process 1, as with --init
    child = subprocess.Popen([*namespace(), *first, *words], env=environment, start_new_session=True)
    status = child.wait()
    return 128 - status if status < 0 else status


def namespace() -> Sequence[str]:
    """The command that starts another one as process 1 of a namespace."""
    user = ["--user", "--map-current-user"] if os.getuid() else []
    return ["unshare", *user, "--pid", "--fork", "--mount-proc", "--"]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(main(sys.argv[1:]))
