"""Processes of ours that run beside this one: started, heard line by line, ended, and started again within bounds."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from swarm.cli.node_process import Told, told
from swarm.cli.sources import without_settings

# After SIGTERM a node says goodbye within about two seconds.
LEAVE_WITHIN_S: Final = 5.0
# Of its lines, kept for when it fails: more than a node tells as it starts.
LINES_KEPT: Final = 1000
# Of these, told when it has failed.
LAST_LINES: Final = 15

# What ends by itself is started again so often within so long: what fails at once, and again, is broken.
RESTARTS: Final = 5
RESTARTS_WITHIN_S: Final = 600.0
FIRST_PAUSE_S: Final = 1.0


@dataclass(slots=True, eq=False)
class Child:
    """One process, with what it has written that is no event."""

    name: str
    process: subprocess.Popen[bytes]
    said: deque[str] = field(default_factory=lambda: deque(maxlen=LINES_KEPT))

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process.poll() is None

    def kill(self) -> None:
        """End it without a goodbye, as a power cut would."""
        self.process.kill()
        self.process.wait()

    def last_words(self) -> list[str]:
        """The end of what it wrote."""
        return list(self.said)[-LAST_LINES:]

    def how_it_ended(self) -> str:
        """In words, once it has."""
        code = self.process.wait()
        if code >= 0:
            return f"ended with status {code}"
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
        return f"was ended by signal {-code}"


@dataclass(frozen=True, slots=True)
class News:
    """What a child tells: an event, another line, or neither when it has ended."""

    child: Child
    event: Told | None = None
    line: str | None = None

    @property
    def ended(self) -> bool:
        """Whether this is the last of it."""
        return self.event is None and self.line is None


class Children:
    """Starts processes and ends them. `news` gets what all of them tell; others may put in what they like."""

    def __init__(self) -> None:
        self.news: queue.SimpleQueue[News | None] = queue.SimpleQueue()
        self._all: list[Child] = []

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Start one.

        Its standard input is a pipe that nobody writes to: it ends when this process does, however that ends, and
        a child that was told to (`--stop-on-eof`) with it. A session of its own keeps the terminal's Ctrl-C from it.
        """
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**environment, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        child = Child(name, process)
        self._all = [*(other for other in self._all if other.running), child]
        threading.Thread(target=self._read, args=[child], name=name, daemon=True).start()
        return child

    def stop(self, within_s: float = LEAVE_WITHIN_S) -> None:
        """End all that still run and wait for them; in the end by force."""
        for child in self._all:
            if child.running:
                child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + within_s
        for child in self._all:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
            child.kill()

    def _read(self, child: Child) -> None:
        assert child.process.stdout is not None
        for raw in child.process.stdout:
            line = raw.decode(errors="replace").rstrip("\n")
            event = told(line)
            child.said.append(line if event is None else event.text)
            self.news.put(News(child, event, line if event is None else None))
        child.process.wait()
        self.news.put(News(child))


class Restarts:
    """When what has ended is started again: after a pause that doubles, and not for ever. Pure."""

    def __init__(self, most: int = RESTARTS, within_s: float = RESTARTS_WITHIN_S) -> None:
        self._most = most
        self._within_s = within_s
        self._ended_at: list[float] = []

    def pause_s(self, now: float) -> float | None:
        """It has ended: the seconds until it is to be started again; None if it has ended too often."""
        self._ended_at = [at for at in self._ended_at if now - at < self._within_s]
        if len(self._ended_at) >= self._most:
            return None
        self._ended_at.append(now)
        return FIRST_PAUSE_S * 2.0 ** (len(self._ended_at) - 1)


def own_environment(**more: str) -> dict[str, str]:
    """What a child gets of this process's environment: not its options, which it is told, nor who may ask."""
    kept = without_settings(os.environ)
    kept.pop("SWARM_API_KEY", None)
    kept.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # several on one machine wait for one another
    return {**kept, **more}
