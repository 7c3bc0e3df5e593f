"""What every handler of incoming streams needs: peers that break the rules, and peers that ask too often."""

from __future__ import annotations

import logging
from collections import OrderedDict

from protocol.errors import RemoteProtocolError
from protocol.transport.base import Handler, Stream

logger = logging.getLogger(__name__)

# Peers whose allowance is remembered; one forgotten has a full one again.
REMEMBERED_PEERS = 4096


def guarded(handler: Handler) -> Handler:
    """`handler`, ended by a reset and one line in the log if the peer breaks the protocol."""

    async def handle(stream: Stream) -> None:
        try:
            await handler(stream)
        except RemoteProtocolError as error:
            logger.info("%s broke the protocol: %s", stream.peer, error)
            stream.reset()

    return handle


class Allowance:
    """How often each peer may ask: `burst` times at once, then `per_s` times a second. Pure."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # peer -> allowance, as of when

    def take(self, peer: str, now: float) -> bool:
        """Whether `peer` may ask once more. `now`: seconds on a clock that does not jump."""
        left, at = self._left.pop(peer, (float(self._burst), now))
        left = min(float(self._burst), left + (now - at) * self._per_s)
        allowed = left >= 1.0
        self._left[peer] = (left - 1.0 if allowed else left, now)
        if len(self._left) > REMEMBERED_PEERS:
            self._left.popitem(last=False)
        return allowed
