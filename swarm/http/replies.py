"""From what is said of an answer to a response: whole, or as it comes. An answer that nobody waits for ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, Generic, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope
from starlette.types import Send as AsgiSend

from protocol.errors import LocalProtocolError
from swarm.http import limits
from swarm.http.answering import Begun, Called, Ended, Said, Text
from swarm.http.bridge import Stream
from swarm.http.errors import ApiError, translated
from swarm.http.forms import SSE, json_response
from swarm.http.outcome import Outcome, route_header

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

_log: Final = logging.getLogger(__name__)
NO_HEADERS: Final[Mapping[str, str]] = {}
_PING: Final = b": ping\n\n"


class Gone(Exception):
    """Whoever asked has hung up."""


class Frames(Protocol[T_contra]):
    """What a stream says."""

    media_type: str

    def frames(self, said: T_contra) -> Iterable[str]:
        """When this has happened."""

    def broken(self, error: ApiError) -> str:
        """At last, when it went wrong."""


class Writer(Frames[Said], Protocol):
    """A dialect's words for an answer. Used for one, and from one task."""

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        """The body of a response that does not stream; the answers are in order."""


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises; it is cancelled if whoever asked hangs up meanwhile. Raises: Gone."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnect(request.receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return await working
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait((working, leaving))


async def reply(request: Request, said: Stream[Said], writer: Writer, *, stream: bool) -> Response:
    """The response to an ask. Raises: ApiError, as long as its status can still be told; Gone."""
    try:
        if not stream:
            outcome = await until_gone(request, _collect(said))
            return json_response(writer.whole(outcome), headers=route_header(outcome.ended[0].hops))
        early = await until_gone(request, _first(said))
    except (Gone, asyncio.CancelledError):
        said.close()
        raise
    except Exception as raised:
        said.close()
        raise as_api_error(raised) from raised
    hops = next((each.route.hops for each in early if isinstance(each, Begun)), ())
    return Streamed(said, early, writer, route_header(hops))


def as_api_error(raised: Exception) -> ApiError:
    """What to raise for an error of the other side: of ours in words, a bug of ours without, and noted."""
    found = translated(raised)
    if found is None or isinstance(raised, LocalProtocolError):
        _log.error("a bug of ours, while a request was answered", exc_info=raised)
    return found or ApiError(
        HTTPStatus.INTERNAL_SERVER_ERROR, "a bug of ours; the server's log has more", "bug"
    )


async def _collect(stream: Stream[Said]) -> Outcome:
    outcome = Outcome()
    while taken := await stream.take():
        for said in taken:
            outcome.note(said)
    outcome.ended.sort(key=lambda ended: ended.index)
    return outcome


async def _first(stream: Stream[Said]) -> list[Said]:
    """What comes up to the first text; or after a while what has come, if the session is open at least."""
    early: list[Said] = []
    give_up = asyncio.get_running_loop().time() + limits.FIRST_PIECE_S
    while not any(isinstance(said, Text | Called | Ended) for said in early):
        try:
            async with asyncio.timeout_at(give_up if early else None):
                taken = await stream.take()
        except TimeoutError:
            break
        if not taken:
            break
        early += taken
    return early


class Streamed(Response, Generic[T]):
    """What is said, as it comes: what came early first. It ends when whoever reads hangs up."""

    def __init__(
        self, said: Stream[T], early: Sequence[T], writer: Frames[T], headers: Mapping[str, str] = NO_HEADERS
    ) -> None:
        self._said = said
        self._early = early
        self._writer = writer
        super().__init__(media_type=writer.media_type, headers={"cache-control": "no-store", **headers})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: AsgiSend) -> None:
        """See ASGI."""
        sending = asyncio.create_task(self._send_all(send))
        leaving = asyncio.create_task(_disconnect(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            self._said.close()
            for task in (sending, leaving):
                task.cancel()
            await asyncio.wait((sending, leaving))

    async def _send_all(self, send: AsgiSend) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            await self._write(send, self._early)
            while taken := await self._take(send):
                await self._write(send, taken)
        except Exception as raised:  # noqa: BLE001 - told in the stream, and noted where it is a bug
            error = as_api_error(raised)
            await _put(send, self._writer.broken(error).encode(errors="replace"))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _take(self, send: AsgiSend) -> list[T]:
        """What was said next; a stream of events is kept awake meanwhile."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(limits.PING_S):
                    return await self._said.take()
            if self.media_type == SSE:
                await _put(send, _PING)

    async def _write(self, send: AsgiSend, taken: Iterable[T]) -> None:
        frames = [frame for said in taken for frame in self._writer.frames(said)]
        if frames:
            await _put(send, "".join(frames).encode(errors="replace"))


async def _put(send: AsgiSend, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
