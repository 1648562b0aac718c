"""Whether the disk has room for a preparation, before the work that needs it."""

from __future__ import annotations

import shutil
from pathlib import Path

from engines.data.preparing.spool import Spool
from recipes import quantities
from recipes.problems import OperatorError

SORTED_BYTES = 144
"""Most bytes of a row in sorted runs at one time: three columns of the content, twice while they are merged, beside the
tables of groups."""
BAND_BYTES = 48
"""Bytes of a row and band of signatures, twice while they are merged."""
SPARE_BYTES = 64 * 1024 * 1024


def refuse_without_room_to_read(folder: Path, input_bytes: int) -> None:
    """Refuse to read data whose rows and whose splits do not both fit; packed data needs more, which is seen later.

    Args:
        folder: where the rows are written.
        input_bytes: size of the data's files.

    Raises:
        OperatorError: there is too little space.
    """
    _refuse(folder, 2 * input_bytes + SPARE_BYTES, f"{quantities.size(input_bytes)} of data, as rows and as splits")


def refuse_without_room_to_divide(folder: Path, spool: Spool, bands: int) -> None:
    """Refuse to divide rows when the splits and the sorted numbers of rows do not fit beside them.

    Args:
        folder: where the splits are written.
        spool: the rows.
        bands: number of bands of signatures; 0 where near duplicates are not searched.

    Raises:
        OperatorError: there is too little space.
    """
    sorted_bytes = len(spool) * (SORTED_BYTES + bands * BAND_BYTES)
    what = f"{len(spool)} rows of {quantities.size(spool.bytes)}, as splits, and the numbers by which they are divided"
    _refuse(folder, spool.bytes + sorted_bytes + SPARE_BYTES, what)


def refuse_a_full_disk(folder: Path) -> None:
    """Refuse to let a command write on when its output has almost filled the disk.

    Raises:
        OperatorError: there is too little space.
    """
    _refuse(folder, SPARE_BYTES, "what the command still writes, and the rows made of it,")


def _refuse(folder: Path, need: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if need > free:
        raise OperatorError(
            f"{folder} has {quantities.size(free)} free; {what} need {quantities.size(need)}",
            "free some space, or set XDG_DATA_HOME or --runs-dir to a larger disk",
        )
