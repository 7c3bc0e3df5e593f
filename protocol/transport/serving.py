"""How a handler is run: one stream's failure is that stream's alone. Shared by the implementations."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import trio

from protocol.errors import PeerUnavailable, RemoteProtocolError, Unreachable
from protocol.transport.base import Handler, Stream
from protocol.transport.loopback import loopback_pair

logger = logging.getLogger(__name__)


async def run_handler(handler: Handler, stream: Stream, protocol: str) -> None:
    """Run `handler`, then close `stream`; reset it if the handler raises. Only cancellation passes."""
    try:
        await handler(stream)
        await stream.aclose()
    except (PeerUnavailable, RemoteProtocolError) as error:
        logger.info("stream %s from %s ended: %s", protocol, stream.peer, error)
    except Exception:
        logger.exception("the handler of %s failed; the stream from %s is reset", protocol, stream.peer)
    finally:
        stream.reset()  # nothing happens if it was closed


def open_to_self(peer: str, handlers: Mapping[str, Handler], protocol: str, nursery: trio.Nursery) -> Stream:
    """A stream to what this peer itself serves. Raises: Unreachable, if it does not speak `protocol`."""
    handler = handlers.get(protocol)
    if handler is None:
        raise Unreachable(f"peer {peer} does not speak {protocol}")
    ours, theirs = loopback_pair(peer)
    nursery.start_soon(run_handler, handler, theirs, protocol)
    return ours
