"""The client's end of the text process: starts it, asks it, ends it, and puts another in its place.

Whatever a stranger's files make the process do, the client waits for a bounded time, reads a bounded reply, and
lives. Knows nothing of tokenizers and templates: requests and replies are maps.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from protocol.errors import ConfigError, LocalProtocolError, Malformed, SwarmError, TooLarge
from protocol.unpack import unpack
from swarm.text.wire import (
    LENGTH_BYTES,
    MIB,
    OUT_OF_MEMORY,
    REASON_CHARS,
    REPLY_BYTES,
    REQUEST_BYTES,
    WINDOWS,
    frame,
)

# Started by its path, without the user's site-packages, PYTHONPATH and working folder, and without the package's
# __init__, which would load the whole client. Folders of imports come last: none hides a module of Python's own.
_PROGRAM: Final = """
import sys, types
package = types.ModuleType("swarm")
package.__path__ = [sys.argv[3] + "/swarm"]
sys.modules["swarm"] = package
sys.path += sys.argv[3:]
from importlib import import_module
import_module("swarm.text." + sys.argv[2]).main(int(sys.argv[1]))
"""
# What Python may need to find its own libraries, and what the clock on the wall shows.
_ENVIRONMENT: Final = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")

# A request that nobody waits for any more may end within this; a process that is busy for longer is given up.
_ABANDONED_S: Final = 0.5
_READ_BYTES: Final = 64 * 1024
_ERRORS: Final[dict[str, type[SwarmError]]] = {e.__name__: e for e in (ConfigError, Malformed, TooLarge)}
_TOO_MUCH: Final = "the model's tokenizer or chat template takes too much time or memory"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the text process may take.

    memory_bytes  one as large as any in use takes 390 MiB, a prompt of a megabyte included (scripts/bench/text.py)
    load_s        whole seconds of computing to load a model; the same takes one
    ask_s         to encode a prompt or conversation; a megabyte takes one
    decode_s      to decode a window of tokens, which takes microseconds
    patience      how many times longer each may take by the clock: the machine computes other things too
    """

    memory_bytes: int = 1024 * MIB
    load_s: int = 20
    ask_s: int = 10
    decode_s: int = 2
    patience: float = 5.0


@dataclass(slots=True, eq=False)
class _Job:
    """A request and its reply, once it is done."""

    seconds: int  # of computing
    request: bytes | None = None  # None: just load the model
    done: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    abandoned: bool = False
    reply: dict[str, Any] | SwarmError = field(
        default_factory=lambda: LocalProtocolError("the client is closed")
    )

    def allow(self, seconds: float) -> None:
        """Let it run for so long from now on."""
        if not self.abandoned:
            self.scope.deadline = trio.current_time() + seconds

    def abandon(self) -> None:
        """Nobody waits any more."""
        self.scope.deadline = min(self.scope.deadline, trio.current_time() + _ABANDONED_S)
        self.abandoned = True


class TextProcess:
    """Answers requests in order while `run` runs; the process starts with it and ends with it.

    worker  the module beside this one that runs in it
    idle    it starts with the first request only
    """

    def __init__(self, bounds: Bounds | None = None, worker: str = "worker", *, idle: bool = False) -> None:
        self._bounds = bounds or Bounds()
        self._worker = worker
        self._idle = idle
        self._files: Mapping[str, bytes] = {}
        self._child: _Child | None = None
        self._jobs, self._waiting = trio.open_memory_channel[_Job](0)

    @property
    def pid(self) -> int | None:
        """The process's id, while there is one."""
        return self._child.pid if self._child is not None else None

    async def run(self) -> None:
        """Serve until cancelled. Nothing that the process does or the model's files hold ends it."""
        try:
            with self._waiting:
                if not self._idle:
                    with contextlib.suppress(ConfigError):  # whoever asks is told
                        self._child = await _start(self._bounds, self._worker)
                async for job in self._waiting:
                    try:
                        await self._serve(job)
                    finally:
                        job.done.set()
        finally:
            await self._end()

    def give(self, files: Mapping[str, bytes]) -> None:
        """What each process loads before its first request."""
        self._files = files

    async def load(self, files: Mapping[str, bytes]) -> dict[str, Any]:
        """Load a model; each process that takes this one's place loads it again. Raises what `ask` raises."""
        self.give(files)
        return await self._reply(_Job(self._bounds.load_s))

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request: a map of bounded size, otherwise as a stranger may have made it.

        Raises: Malformed or TooLarge, if the model's files are to blame; ConfigError, if what was asked is.
        """
        seconds = self._bounds.decode_s if request["do"] == "decode" else self._bounds.ask_s
        packed = frame({**request, "seconds": seconds})
        if len(packed) > REQUEST_BYTES:
            raise ConfigError(f"the prompt has {len(packed)} bytes; at most {REQUEST_BYTES} are taken")
        return await self._reply(_Job(seconds, packed))

    async def _reply(self, job: _Job) -> dict[str, Any]:
        try:
            await self._jobs.send(job)
            await job.done.wait()
        except trio.BrokenResourceError:
            raise LocalProtocolError("the client is closed") from None
        except trio.Cancelled:
            job.abandon()
            raise
        if isinstance(job.reply, SwarmError):
            raise job.reply
        return job.reply

    async def _serve(self, job: _Job) -> None:
        """Fill in the job's reply, in a second process if somebody else has killed the first."""
        for _ in range(2):
            if job.abandoned:
                return
            job.scope = trio.CancelScope()
            with job.scope:
                try:
                    job.reply = await self._exchange(job)
                except SwarmError as error:
                    job.reply = error
                except _Ended:
                    status = await self._end()
                    job.reply = _why(status)
                    if status == -signal.SIGKILL:
                        continue
            if job.scope.cancelled_caught:
                await self._end()
                job.reply = TooLarge(_TOO_MUCH)
            return

    async def _exchange(self, job: _Job) -> dict[str, Any]:
        bounds, patience = self._bounds, self._bounds.patience
        if self._child is None:
            self._child = await _start(bounds, self._worker)
        if job.request is None or not self._child.loaded:
            job.allow(bounds.load_s * patience)
            sizes = [[name, len(data)] for name, data in self._files.items()]
            load = frame({"do": "load", "files": sizes, "seconds": bounds.load_s})
            reply = await self._child.ask([load, *self._files.values()])
            self._child.loaded = True
            if job.request is None:
                return reply
        job.allow(job.seconds * patience)
        return await self._child.ask([job.request])

    async def _end(self) -> int:
        """End the process, if there is one; its status."""
        child, self._child = self._child, None
        return await child.end() if child is not None else 0


class _Ended(Exception):
    """The process has ended, or what it says is no reply: it serves no more."""


class _Child:
    """One process, with a pipe each way."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.pid = process.pid
        self.loaded = False
        self._process = process
        self._requests, self._replies = process.stdin, process.stdout
        self._read = bytearray()

    async def ask(self, pieces: Sequence[bytes]) -> dict[str, Any]:
        """Send a request, wait for the reply. Raises: the error that the reply holds; _Ended, if there is none."""
        try:
            for piece in pieces:
                await self._requests.send_all(piece)
            size = int.from_bytes(await self._take(LENGTH_BYTES), "big")
            if size > REPLY_BYTES:
                raise _Ended
            reply = unpack(await self._take(size), WINDOWS, REPLY_BYTES)
        except (trio.BrokenResourceError, Malformed) as error:
            raise _Ended from error
        if not isinstance(reply, dict):
            raise _Ended
        if "error" in reply:
            reason = " ".join(str(reply.get("reason")).split())  # one line, whatever a template says
            raise _ERRORS.get(str(reply["error"]), Malformed)(reason[:REASON_CHARS])
        return reply

    async def end(self) -> int:
        """Kill it, wait for it, close the pipes; its status, which is its own if it had ended before."""
        self._process.kill()
        with trio.CancelScope(shield=True):
            status = await self._process.wait()
            await self._requests.aclose()
            await self._replies.aclose()
        return status

    async def _take(self, count: int) -> bytes:
        while len(self._read) < count:
            data = await self._replies.receive_some(_READ_BYTES)
            if not data:
                raise _Ended
            self._read += data
        taken = bytes(self._read[:count])
        del self._read[:count]
        return taken


def _why(status: int) -> SwarmError:
    """What it means that the process has ended: it had reached a bound, but for a fault of ours."""
    if status >= 0 and status != OUT_OF_MEMORY:
        return LocalProtocolError(f"the process for the model's text ended with status {status}")
    return TooLarge(_TOO_MUCH)


async def _start(bounds: Bounds, worker: str) -> _Child:
    root = Path(__file__).parents[2]
    paths = [str(root), *(path for path in sys.path if os.path.isabs(path))]
    try:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-I", "-c", _PROGRAM, str(bounds.memory_bytes), worker, *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            start_new_session=True,  # the terminal's Ctrl-C is for the client
        )
    except OSError as error:
        raise ConfigError(f"cannot start a process for the model's text: {error}") from error
    return _Child(process)
