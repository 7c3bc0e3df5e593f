"""What was typed in chats, kept for the next one: a bounded file of the user's own, a JSON string on each line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import platformdirs

from protocol.files import read_small, write_whole

ENTRIES: Final = 1000
# What is longer is rather a document than something to recall.
_LINE_BYTES: Final = 16 * 1024
# Of this the newest half is kept when it is full.
_FILE_BYTES: Final = 1024 * 1024


class History:
    """What was typed, oldest first. A file that fails costs one line, said through `complain`, and the memory."""

    def __init__(self, path: Path, complain: Callable[[str], None]) -> None:
        self._path = path
        self._complain = complain
        self._whole = True  # whether the file ends with a whole line
        self._lost = False
        self.entries: list[str] = []
        try:
            self._load()
        except (OSError, ValueError, RecursionError) as error:
            self._lose(error)

    def add(self, entry: str) -> None:
        """Keep what was typed, unless it is blank, what came last, or too long."""
        line = _line(entry)
        if not entry.strip() or entry in self.entries[-1:] or len(line) > _LINE_BYTES:
            return
        self.entries.append(entry)
        if self._lost:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._append(line)
        except OSError as error:
            self._lose(error)

    def _load(self) -> None:
        try:
            data = read_small(self._path, 2 * _FILE_BYTES)
        except FileNotFoundError:
            return
        *lines, rest = data.split(b"\n")
        self._whole = not rest  # a disk that was full, or a machine that went down, leaves part of a line
        self.entries = [_entry(line) for line in lines][-ENTRIES:]

    def _append(self, line: bytes) -> None:
        # Opened each time: another chat may have put a new file in its place.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600)
        with open(descriptor, "wb", buffering=0) as file:
            os.fchmod(descriptor, 0o600)
            if self._whole and os.fstat(descriptor).st_size + len(line) <= _FILE_BYTES:
                self._whole = file.write(line) == len(line)
                return
        write_whole(self._path, _newest(self.entries))
        self._whole = True

    def _lose(self, error: Exception) -> None:
        self._lost = True
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self._complain(f"what is typed here is not kept for the next chat: {self._path}: {why}")


def history_path() -> Path:
    """Where it is kept: in SWARM_HOME, else where this system has what programs remember."""
    home = os.environ.get("SWARM_HOME")
    return (Path(home) if home else platformdirs.user_state_path("swarm")) / "history"


def _newest(entries: list[str]) -> bytes:
    """The last entries, as many as half a file holds."""
    kept: list[bytes] = []
    left = _FILE_BYTES // 2
    for line in map(_line, reversed(entries[-ENTRIES:])):
        left -= len(line)
        if left < 0:
            break
        kept.append(line)
    return b"".join(reversed(kept))


def _line(entry: str) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _entry(line: bytes) -> str:
    """Raises: ValueError; RecursionError."""
    entry = json.loads(line)
    if not isinstance(entry, str):
        raise ValueError("it is of another format")
    entry.encode()  # half a surrogate is no text
    return entry
