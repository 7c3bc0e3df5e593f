"""Files that appear whole or not at all, on any disk, and small ones that others may have tampered with."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from pathlib import Path


def write_whole(path: Path, data: bytes, *, mode: int = 0o600, replace: bool = True) -> None:
    """Write `path`, whose folder is there: with `mode` from the first, and never seen in part.

    If the disk does not take it, nothing is left behind. Unless `replace`, a file that is there already stays, also
    one that was made meanwhile.

    Raises: OSError.
    """
    # a file of our own: process ids are not unique where containers share a folder
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name[:32]}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
        if replace:
            os.replace(partial, path)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def read_small(path: Path, most: int) -> bytes:
    """The first `most` bytes of a file. Raises: OSError, also for what only looks like a file and might never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        return file.read(most)
