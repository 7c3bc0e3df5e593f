"""What may stand where a file of the user's is looked for, and is none."""

import os
from pathlib import Path

ODD = ("folder", "fifo", "endless", "loop")


def make_odd(path: Path, what: str) -> None:
    """Put one of `ODD` at `path`."""
    match what:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "endless":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path)
        case _:
            raise ValueError(what)
