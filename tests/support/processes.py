"""Real processes under test: their output line by line, the signals that make faults, and a sure end."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, TypeVar

T = TypeVar("T")

REAP_S = 10.0  # SIGKILL needs no more, unless the kernel itself hangs
TAIL_LINES = 40  # of output, shown when a wait fails


class Launched(Protocol):
    """What is needed of a `subprocess.Popen`."""

    pid: int
    stdout: IO[bytes] | None

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, once there is one."""


class Launch(Protocol):
    """Starts a process that leads a group of its own."""

    def __call__(self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None) -> Launched:
        """`env` is added to this process's environment."""


def run_program(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None) -> Launched:
    """A subprocess like any other."""
    return subprocess.Popen(
        list(argv),
        env={**os.environ, **env},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


class Process:
    """One subprocess in its own process group; stdout and stderr together, kept as lines.

    A context manager that kills and reaps the whole group. `argv` may begin with a wrapper such as
    `ip netns exec`: signals go to everything it started.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        name: str = "",
        launch: Launch = run_program,
    ) -> None:
        """Start `argv` at once. `env` is added to this process's environment."""
        self.name = name or Path(argv[0]).name
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        words = [str(word) for word in argv]
        self._popen = launch(words, env={"PYTHONUNBUFFERED": "1", **(env or {})}, cwd=cwd)
        self._reader = threading.Thread(target=self._collect, name=f"output of {self.name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the process, which is also its group's id."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; minus the signal's number when a signal ended it."""
        return self._popen.poll()

    @property
    def lines(self) -> list[str]:
        """A copy of the output so far, without line ends."""
        with self._changed:
            return list(self._lines)

    def wait_for_line(self, pattern: str, within_s: float, *, start: int = 0) -> re.Match[str]:
        """The first line from number `start` on in which `pattern` is found. Otherwise as `wait_for`."""
        return self.wait_for(partial(re.search, pattern), f"a line like {pattern!r}", within_s, start=start)

    def wait_for(self, find: Callable[[str], T | None], what: str, within_s: float, *, start: int = 0) -> T:
        """What `find` makes of the first line of which it makes anything; lines already there count.

        Raises: AssertionError, with the output's last lines, at the deadline or when it ends without it.
        """
        deadline = time.monotonic() + within_s
        with self._changed:
            while True:
                for line in self._lines[start:]:
                    if (found := find(line)) is not None:
                        return found
                start = max(start, len(self._lines))
                left_s = deadline - time.monotonic()
                if self._ended or left_s <= 0:
                    why = "ended" if self._ended else f"ran {within_s} s"
                    tail = "\n  ".join(self._lines[-TAIL_LINES:])
                    raise AssertionError(f"{self.name} {why} without {what}:\n  {tail}")
                self._changed.wait(left_s)

    def wait(self, within_s: float) -> int:
        """Its exit status. Raises: subprocess.TimeoutExpired."""
        return self._popen.wait(within_s)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process group; nothing happens when it is gone."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill9(self) -> None:
        """End it as a crash would: SIGKILL, no clean-up of its own; returns when it is reaped."""
        self.signal(signal.SIGKILL)
        self._popen.wait(REAP_S)

    def stop(self) -> None:
        """Freeze it as a hang would: it keeps its sockets and answers nothing, until `cont`."""
        self.signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Undo `stop`."""
        self.signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill what still runs of the group, reap it, and end the reader. Safe to call again."""
        self.kill9()
        self._reader.join(REAP_S)

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _collect(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as output:
            for raw in output:
                self._append(raw.decode("utf-8", "replace").rstrip("\r\n"))
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _append(self, line: str) -> None:
        with self._changed:
            self._lines.append(line)
            self._changed.notify_all()


class Processes:
    """Starts processes and owns them: every one is killed and reaped when it closes."""

    def __init__(self, launch: Launch = run_program) -> None:
        self._running = ExitStack()
        self._launch = launch

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        name: str = "",
    ) -> Process:
        """A new `Process`, started."""
        return self._running.enter_context(Process(argv, env=env, cwd=cwd, name=name, launch=self._launch))

    def close(self) -> None:
        """End them all, the newest first. Safe to call again."""
        self._running.close()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
