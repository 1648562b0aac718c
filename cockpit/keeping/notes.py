"""One line of the operator's about a run, stored beside its journal."""

from __future__ import annotations

import os
from contextlib import suppress

from cockpit.keeping.hold import require_known_format
from engines.files import fsync_folder, write_durably
from engines.run_dir.paths import RunDir
from recipes.problems import OperatorError, printable

MAX_CHARACTERS = 500


def write_note(run: RunDir, text: str) -> str:
    """Store a note; an empty text removes it. Returns it as stored: one line, without control characters.

    Raises:
        OperatorError: it is too long, or the run is another user's, of a newer format, or cannot be written.
    """
    require_known_format(run)
    words = printable(" ".join(text.split()), len(text) + 1)
    if len(words) > MAX_CHARACTERS:
        raise OperatorError(f"the note has {len(words)} characters; allowed: at most {MAX_CHARACTERS}")
    try:
        if run.root.stat().st_uid != os.geteuid():
            raise OperatorError(f"{run.id} belongs to another user", "only its owner can change it")
        if words:
            write_durably(run.note, words.encode())
        else:
            with suppress(FileNotFoundError):
                run.note.unlink()
                fsync_folder(run.root)
    except OSError as error:
        raise OperatorError(f"the note of {run.id} could not be written: {error.strerror or error}") from error
    return words
