"""How a handler is run: one stream's failure is that stream's alone. Shared by the implementations."""

from __future__ import annotations

import logging

from protocol.errors import PeerUnavailable
from protocol.transport.base import Handler, Stream

logger = logging.getLogger(__name__)


async def run_handler(handler: Handler, stream: Stream, protocol: str) -> None:
    """Run `handler`, then close `stream`; reset it if the handler raises. Only cancellation passes."""
    try:
        await handler(stream)
        await stream.aclose()
    except PeerUnavailable as error:
        logger.info("stream %s from %s ended: %s", protocol, stream.peer, error)
    except Exception:
        logger.exception("the handler of %s failed; the stream from %s is reset", protocol, stream.peer)
    finally:
        stream.reset()  # nothing happens if it was closed
