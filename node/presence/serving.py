"""What every handler of incoming streams needs: peers that break the rules end their own stream."""

from __future__ import annotations

import logging

from protocol.errors import RemoteProtocolError
from protocol.transport.base import Handler, Stream

logger = logging.getLogger(__name__)


def guarded(handler: Handler) -> Handler:
    """`handler`, ended by a reset and one line in the log if the peer breaks the protocol."""

    async def handle(stream: Stream) -> None:
        try:
            await handler(stream)
        except RemoteProtocolError as error:
            logger.info("%s broke the protocol: %s", stream.peer, error)
            stream.reset()

    return handle
