"""Node processes without the seconds of CPU that importing torch takes: each is forked from one that has imported it.

`Forge().start` begins `swarm ...` in a process of its own, with its own session, sockets and threads, as an `exec`
would; `Processes(launch=forge.start)` makes every test helper use it. A forge ends what it has started when it
closes, and also when whoever opened it dies.
"""

from __future__ import annotations

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
from pathlib import Path
from types import TracebackType
from typing import IO, Any

ROOT = Path(__file__).parents[2]
READY_S = 90.0
REAP_EVERY_S = 0.02
REQUEST_BYTES = 64 * 1024
# What a node imports before it serves a Llama.
MODULES = (
    "node.engine.measure",
    "node.engine.shards",
    "node.engine.span",
    "node.engine.split",
    "node.process",
    "protocol.transport.libp2p",
    "swarm.cli",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
)


class Forged:
    """A process that a forge has started: what `Process` needs of a `subprocess.Popen`."""

    def __init__(self, pid: int, stdout: IO[bytes]) -> None:
        self.pid = pid
        self.stdout: IO[bytes] | None = stdout
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
    """A context manager. `start` may be called by several threads."""

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
        """`python -m swarm ...` as a process; what it prints can be read from `stdout`."""
        assert list(argv[1:3]) == ["-m", "swarm"], "a forge knows one program"
        request = {"argv": list(argv[2:]), "env": dict(env or {}), "cwd": str(cwd or ROOT)}
        read_end, write_end = os.pipe()
        with self._asking, self._answered:
            self._started = None
            try:
                socket.send_fds(self._ours, [json.dumps(request).encode()], [write_end])
            finally:
                os.close(write_end)
            self._answered.wait_for(lambda: self._started is not None, READY_S)
            assert self._started, "the forge is gone"
            made = Forged(self._started, os.fdopen(read_end, "rb"))
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
                data, fds, _, _ = socket.recv_fds(asked, REQUEST_BYTES, 1)
                if not data:
                    return
                pid = os.fork()
                if pid == 0:
                    asked.close()
                    _become(json.loads(data), fds[0])
                os.close(fds[0])
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


def _become(request: dict[str, Any], output: int) -> None:
    """In the child: what `python -m swarm` would be."""
    status = 70
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        os.chdir(request["cwd"])
        os.environ.update(request["env"])
        sys.argv = request["argv"]
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", line_buffering=True)
            for number in (1, 2)
        )
        from swarm.cli import main

        status = main()
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - a process of its own: its last words go where its output goes
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _asked:
        _serve(_asked)
