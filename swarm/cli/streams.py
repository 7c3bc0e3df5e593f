"""The process's own three streams: all there from the start, and what it means when one of them fails."""

from __future__ import annotations

import contextlib
import errno
import io
import locale
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TextIO

from protocol.errors import ConfigError

# A stream that was closed (`>&-`) is made up for, lest the next socket take its number. Reading then ends, complaints
# go nowhere, and what is written to standard output fails as it would have (glibc does so for setuid programs).
_STAND_INS: Final = ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY))


class OutputLost(Exception):
    """Standard output takes nothing any more. No error of the swarm: nobody may go on as if it were one."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {error.strerror}")
        self.reader_left = error.errno == errno.EPIPE


class _Outlet(io.FileIO):
    """What one of the streams writes to. `ignoring` says whether what it does not take is dropped without a word."""

    def __init__(self, number: int, *, ignoring: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self.ignoring = ignoring

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # a pipe that somebody made non-blocking is full
                select.select([], [self], [])
            return written
        except OSError as error:
            if not self.ignoring:
                raise OutputLost(error) from None
            return memoryview(data).nbytes


@contextmanager
def own_streams() -> Iterator[None]:
    """Around the whole of a command: inside it sys.stdin, stdout and stderr are there.

    What cannot be written to standard output raises OutputLost, to standard error is dropped. At the end both are
    given up, whatever they still hold.
    """
    for number, flags in _STAND_INS:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest number that is free
    before = sys.stdin, sys.stdout, sys.stderr
    outlets = []
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - it is not ours to close
    for number, name in ((1, "stdout"), (2, "stderr")):
        current: TextIO | None = getattr(sys, name)
        if current is not getattr(sys, f"__{name}__"):
            continue  # whoever put another in its place wants to have it
        if current is not None:
            with contextlib.suppress(OSError):
                current.flush()
        outlets.append(_Outlet(number, ignoring=name == "stderr"))
        setattr(sys, name, _text(outlets[-1], current))
    try:
        yield
    finally:
        for outlet in outlets:
            outlet.ignoring = True
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdin, sys.stdout, sys.stderr = before


def read_input(*, line: bool = False) -> str:
    """What standard input has, or its next line; bytes that are no UTF-8 become question marks.

    Raises: ConfigError, if it cannot be read.
    """
    try:
        return sys.stdin.readline() if line else sys.stdin.read()
    except OSError as error:
        raise ConfigError(f"cannot read standard input: {error.strerror or error}") from error


def stop_at_eof() -> None:
    """From now on, leave as by SIGTERM when standard input ends: whoever started this has ended, however it did."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="stdin", daemon=True).start()


def _text(outlet: _Outlet, like: TextIO | None) -> TextIO:
    terminal = outlet.isatty()
    return io.TextIOWrapper(
        io.BufferedWriter(outlet),
        encoding=like.encoding if like is not None else locale.getencoding(),
        errors="replace",
        line_buffering=terminal or outlet.ignoring,
        write_through=bool(getattr(like, "write_through", False)),
    )
