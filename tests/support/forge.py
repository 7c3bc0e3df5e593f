"""`swarm ...` without the seconds of CPU that imports take: each process is forked from one that has imported all.

`Forge().spawn` begins one in a process of its own, with its own session, streams, sockets and threads, as an `exec`
would; `Processes(launch=forge.start)` makes every test helper use it. A forge ends what it has started when it
closes, and also when whoever opened it dies.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from swarm.cli.app import COMMANDS

ROOT = Path(__file__).parents[2]
READY_S = 90.0
REAP_EVERY_S = 0.02
REQUEST_BYTES = 64 * 1024
# What a node imports before it serves a Llama, and what a client does.
MODULES = (
    "node.engine.backend",
    "node.engine.shards",
    "node.engine.span",
    "node.engine.split",
    "node.native.backend",
    "node.process",
    "protocol.transport.libp2p",
    *(f"swarm.cli.{name}" for name in COMMANDS),
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
)


class Forged:
    """A process that a forge has started: what `Process` needs of a `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.stdout: IO[bytes] | None = None
        self._status: int | None = None
        self._ended = threading.Event()

    def poll(self) -> int | None:
        """Its exit status, minus the signal's number where one ended it; None while it runs."""
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, once there is one. Raises: subprocess.TimeoutExpired."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired("a forged process", timeout or 0.0)
        assert self._status is not None
        return self._status

    def note_end(self, status: int) -> None:
        """It has ended and was reaped."""
        self._status = status
        self._ended.set()


class Forge:
    """A context manager. `spawn` and `start` may be called by several threads."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-m", "tests.support.forge", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                argv, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._asking = threading.Lock()
        self._answered = threading.Condition()
        self._started: int | None = None
        self._running: dict[int, Forged] = {}
        self._early: dict[int, int] = {}  # ended before `start` knew of them
        self._reader = threading.Thread(target=self._read, name="forge", daemon=True)
        self._reader.start()

    def start(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Forged:
        """`python -m swarm ...` as a process; what it prints can be read from `stdout`. See `processes.Launch`."""
        assert list(argv[1:3]) == ["-m", "swarm"], "a forge knows one program"
        read_end, write_end = os.pipe()
        try:
            with open(os.devnull, "rb") as nothing:
                streams = (nothing.fileno(), write_end, write_end)
                made = self.spawn(argv[3:], streams, {**os.environ, **(env or {})}, cwd or ROOT)
        finally:
            os.close(write_end)
        made.stdout = os.fdopen(read_end, "rb")
        return made

    def spawn(
        self, words: Sequence[str], streams: Sequence[int | None], env: Mapping[str, str], cwd: Path = ROOT
    ) -> Forged:
        """`swarm` with these words, in exactly this environment; of its three streams None is one that is closed."""
        request = {
            "words": list(words),
            "open": [number for number, stream in enumerate(streams) if stream is not None],
            "env": dict(env),
            "cwd": str(cwd),
        }
        given = [stream for stream in streams if stream is not None]
        with self._asking, self._answered:
            self._started = None
            socket.send_fds(self._ours, [json.dumps(request).encode()], given)
            self._answered.wait_for(lambda: self._started is not None, READY_S)
            assert self._started, "the forge is gone"
            made = Forged(self._started)
            if made.pid in self._early:
                made.note_end(self._early.pop(made.pid))
            else:
                self._running[made.pid] = made
        return made

    def close(self) -> None:
        """End everything that it has started, and itself."""
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(10)
        self._ours.close()

    def __enter__(self) -> Forge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        while data := self._ours.recv(REQUEST_BYTES):
            said = json.loads(data)
            with self._answered:
                if "started" in said:
                    self._started = said["started"]
                    self._answered.notify_all()
                elif (ended := self._running.pop(said["ended"], None)) is not None:
                    ended.note_end(said["status"])
                else:
                    self._early[said["ended"]] = said["status"]
        with self._answered:
            self._started = 0
            for left in self._running.values():
                left.note_end(-signal.SIGKILL)
            self._answered.notify_all()


def _serve(asked: socket.socket) -> None:
    """The forge's own process: fork on request, reap, until whoever asks is gone."""
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    children: set[int] = set()
    asked.settimeout(REAP_EVERY_S)
    try:
        while True:
            with contextlib.suppress(TimeoutError):
                data, fds, _, _ = socket.recv_fds(asked, REQUEST_BYTES, 3)
                if not data:
                    return
                pid = os.fork()
                if pid == 0:
                    asked.close()
                    _become(json.loads(data), fds)
                for given in fds:
                    os.close(given)
                children.add(pid)
                _say(asked, {"started": pid})
            _reap(asked, children)
    finally:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def _reap(asked: socket.socket, children: set[int]) -> None:
    for pid in list(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            children.discard(pid)
            _say(asked, {"ended": pid, "status": os.waitstatus_to_exitcode(status)})


def _say(asked: socket.socket, what: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        asked.send(json.dumps(what).encode())


def _become(request: dict[str, Any], given: Sequence[int]) -> None:
    """In the child: what `python -m swarm` would be."""
    status = 70
    try:
        os.setsid()
        for number in range(3):
            os.close(number)
        for number, stream in zip(request["open"], given, strict=True):
            os.dup2(stream, number)
        for stream in given:
            os.close(stream)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        sys.argv = ["swarm", *request["words"]]
        sys.stdin = sys.__stdin__ = _stream(0, "r") if 0 in request["open"] else None  # type: ignore[misc]
        sys.stdout = sys.__stdout__ = _stream(1, "w") if 1 in request["open"] else None  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = _stream(2, "w") if 2 in request["open"] else None  # type: ignore[misc]
        from swarm.cli import main

        status = main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - a process of its own: its last words go where its output goes
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def _stream(number: int, mode: Literal["r", "w"]) -> io.TextIOWrapper:
    """As Python makes it when it starts."""
    file = open(number, f"{mode}b", closefd=False)  # noqa: SIM115 - it stays open
    errors = "backslashreplace" if number == 2 else "strict"
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    return io.TextIOWrapper(
        file, "utf-8", errors, line_buffering=number == 2 or file.isatty(), write_through=unbuffered
    )


@cache
def shared() -> Forge:
    """The forge of this run of tests, opened when it is first asked for; it ends with the run."""
    forge = Forge()
    atexit.register(forge.close)
    return forge


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _asked:
        _serve(_asked)
