"""Tells a peer whether it can be reached where it listens: dials it, at the address it is seen at and no other."""

from __future__ import annotations

import trio

from protocol import limits
from protocol.errors import Busy, PeerUnavailable
from protocol.messages import DIAL_PROTOCOL, DialReply, DialRequest
from protocol.talk.channel import Channel
from protocol.transport.addresses import Address, parse_address
from protocol.transport.allowance import Allowance, PeerAllowance
from protocol.transport.base import Stream, Transport
from protocol.transport.slots import Slots

# Somebody who looks for what is wrong asks a few times in a minute.
DIALS_BURST = 4
DIALS_PER_S = 0.1
# Identities are free: all of one origin together.
ORIGIN_DIALS_BURST = 16
ORIGIN_DIALS_PER_S = 0.5
# At once; each waits for at most what a dial takes.
DIALS = 8


class DialBacks:
    """Serves `dial?`. What goes where nobody answers is bounded by the transport, as for every stranger's word."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._allowance = PeerAllowance(DIALS_PER_S, DIALS_BURST)
        self._of_origin = Allowance(ORIGIN_DIALS_PER_S, ORIGIN_DIALS_BURST)
        self._slots = Slots(DIALS)

    def serve(self) -> None:
        """Answer from now on."""
        self._transport.serve(DIAL_PROTOCOL, self.handle)

    async def handle(self, stream: Stream) -> None:
        """One request. Raises: Busy, if the peer asks too often; PeerUnavailable; RemoteProtocolError."""
        now = trio.current_time()
        if not self._allowance.take(stream.origin, stream.peer, now) or not self._of_origin.take(
            stream.origin, now
        ):
            raise Busy(f"{stream.peer} asks to be dialled too often")
        async with Channel(stream, frame_limit=limits.FIRST_FRAME_BYTES) as channel:
            with self._slots.taken(stream):
                request = await channel.expect(DialRequest, limits.FIRST_MESSAGE_TIMEOUT_S)
                stream.keep()
                await channel.send(await self._dial(stream.peer, request))

    async def _dial(self, asker: str, request: DialRequest) -> DialReply:
        place = self._transport.place_of(asker)
        if place is None:
            return DialReply("unknown", False, "the connection has not shown where it comes from")
        host = parse_address(place).host
        if request.peer == self._transport.peer or self._transport.place_of(request.peer) is not None:
            return DialReply(
                host, False, "there is a connection with that peer already: a dial would show nothing"
            )
        there = str(Address.of(host, request.port, request.peer))
        try:
            with trio.fail_after(limits.CONTROL_TIMEOUT_S / 2):
                dialled = await self._transport.open_stream(request.peer, [there], DIAL_PROTOCOL)
                await dialled.aclose()
        except trio.TooSlowError:
            return DialReply(host, False, "no answer in time")
        except PeerUnavailable as error:
            return DialReply(host, False, str(error))
        return DialReply(host, True, "it answered")
