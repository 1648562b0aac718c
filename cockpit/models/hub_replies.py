"""What a hub replies: its errors as an operator's, without a traceback or its headers, and a bound on its length."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipes.problems import OperatorError, printable

_REPLY_BYTES = 1024 * 1024 * 1024
"""Memory for the list of a revision's files: 100,000 files take a tenth of it."""


@contextmanager
def limited_memory() -> Iterator[None]:
    """Raise MemoryError where this process takes more than 1 GiB besides what it has.

    huggingface_hub reads a reply whole, however long it is.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    limit = pages * resource.getpagesize() + _REPLY_BYTES
    if hard != resource.RLIM_INFINITY or soft != resource.RLIM_INFINITY:
        limit = min(limit, *(one for one in (soft, hard) if one != resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def hub_errors(hub_id: str, revision: str, file: str = "") -> Iterator[None]:
    """Say what the hub refuses as an operator's error, without its headers: they have the token."""
    from huggingface_hub import errors

    what = f"{hub_id}@{printable(revision, 60)}" + (f", {printable(file, 200)}" if file else "")
    kept = "; what was transferred is kept" if file else ""
    try:
        yield
    except errors.GatedRepoError as error:
        raise OperatorError(
            f"{what} is gated: your account may not read it",
            "accept its conditions on the model's page, and log in: hf auth login",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise OperatorError(
            f"{hub_id} has no revision {printable(revision, 60)}", "name a branch, tag or commit"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise OperatorError(
            f"the hub has no model {hub_id}, or it is private and no valid token is set",
            "check the id; for a private model log in: hf auth login, or set HF_TOKEN",
        ) from error
    except errors.HfHubHTTPError as error:
        raise OperatorError(f"{what}: the hub answered {_status(error)}{kept}", _what_to_do(error)) from error
    except errors.HTTPError as error:  # type: ignore[attr-defined]
        raise OperatorError(
            f"{what}: the hub cannot be reached or broke off: {type(error).__name__}{kept}",
            "run the same command again to continue; a mirror is set with HF_ENDPOINT",
        ) from error
    except OSError as error:
        said = printable(error.strerror or str(error).partition("\n")[0], 300)
        raise OperatorError(f"{what}: {said}{kept}", "run the same command again to continue") from error
    except MemoryError as error:
        raise OperatorError(f"{what}: the reply is too long{kept}", "check HF_ENDPOINT") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise OperatorError(
            f"{what}: the reply is not that of a hub: {type(error).__name__}: {printable(str(error), 200)}{kept}",
            "check HF_ENDPOINT",
        ) from error


def _status(error: Any) -> str:
    response = getattr(error, "response", None)
    return "with an error" if response is None else f"with status {response.status_code}"


def _what_to_do(error: Any) -> str:
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if status == 401:
        return "the token is not valid: hf auth login, or set HF_TOKEN"
    if status == 403:
        return "your account may not read it"
    if status == 429:
        wait = error.response.headers.get("Retry-After", "")
        return f"too many requests; wait {wait + ' seconds' if wait.isdecimal() else 'a while'} and run it again"
    return "run the same command again to continue"
