"""Records that aim at a third party: how much it gets to hear. Real sockets, one event loop."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator

import pytest
import trio

from node.presence.announce import Announcer, Load, Served
from node.presence.gossip import Gossip
from protocol import limits
from protocol.errors import PeerUnavailable
from protocol.hints import RecordRule
from protocol.identity import Identity, generate
from protocol.messages import MAP_PROTOCOL, MapReply, MapRequest
from protocol.model import Span
from protocol.numerics import Numerics
from protocol.records import Announcement, sign_record
from protocol.talk.channel import Channel
from protocol.talk.exchange import exchange_maps
from protocol.transport.background import background_tasks
from protocol.transport.base import Stream
from protocol.transport.dialling import HOST_DATAGRAMS, PLACE_DATAGRAMS, REFILL_S
from protocol.transport.libp2p import open_transport
from swarm.routing.view import View

pytestmark = pytest.mark.net

LISTEN = ["/ip4/127.0.0.1/udp/0/quic-v1"]
DATAGRAM = 1200
SERVED = Served("tiny", bytes(32), 6, 8, Span(0, 8), "f32", Numerics("f32"), (bytes(8),) * 8)


class Victim:
    """Sockets that nobody asked: what they hear."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._sockets = sockets
        self.addrs = [f"/ip4/127.0.0.1/udp/{one.getsockname()[1]}/quic-v1" for one in sockets]

    def heard(self) -> list[int]:
        """The sizes of all datagrams."""
        sizes = []
        for one in self._sockets:
            while True:
                try:
                    sizes.append(len(one.recv(65_535)))
                except BlockingIOError:
                    break
        return sizes


@pytest.fixture
def victim() -> Iterator[Victim]:
    """Forty of them, silent."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(40)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
        one.setblocking(False)
    yield Victim(sockets)
    for one in sockets:
        one.close()


def aimed(addrs: list[str], count: int) -> tuple[bytes, ...]:
    """Records of free identities that all say they listen there."""
    words, now = [], time.time()
    for n in range(count):
        me: Identity = generate()
        said = Announcement(
            me.peer, (addrs[n % len(addrs)],) * 2, "tiny", bytes(32), 6, 8, Span(0, 8), "f32", Numerics("f32"),
            (bytes(8),) * 8, "serving", 1.0, 1.0, 1.0, 0.0, 9, 9, (), 1, now, now + limits.RECORD_LIFE_S,
        )  # fmt: skip
        words.append(sign_record(me, said).data)
    return tuple(words)


@pytest.mark.parametrize(("ports", "most"), [(1, PLACE_DATAGRAMS), (40, HOST_DATAGRAMS)])
async def test_four_hundred_records_make_a_client_send_little(victim: Victim, ports: int, most: int) -> None:
    """A door that aims its visitors at somebody: however often they ask for the map, and whoever they try."""
    records = aimed(victim.addrs[:ports], 400)

    async def serve_map(stream: Stream) -> None:
        async with Channel(stream) as channel:
            await channel.expect(MapRequest, limits.CONTROL_TIMEOUT_S)
            await channel.send(MapReply(records))

    async with (
        open_transport(generate().key, listen=LISTEN, validate=RecordRule()) as door,
        open_transport(generate().key, dht="client", validate=RecordRule()) as mine,
    ):
        door.serve(MAP_PROTOCOL, serve_map)
        async with background_tasks() as nursery:
            view, began = View(mine, nursery, random.Random(1)), trio.current_time()
            await view.enter(door.addrs)
            for _ in range(3):
                await view.refresh()
                await view.measure(bytes(32), Span(0, 8))
        sizes = victim.heard()
        assert 0 < len(sizes) <= most * (1 + (trio.current_time() - began) / REFILL_S)
        assert set(sizes) == {DATAGRAM}
        assert sum(sizes) <= sum(map(len, records)) / 3


async def test_what_is_pushed_to_a_node_is_looked_into_as_far_as_it_was_paid_for(
    victim: Victim, nursery: trio.Nursery
) -> None:
    """A third party hears at most three times what the pusher has sent, and one dial."""
    records = aimed(victim.addrs, 8)
    async with (
        open_transport(generate().key, listen=LISTEN, validate=RecordRule()) as honest,
        open_transport(generate().key, dht="client", validate=RecordRule()) as evil,
    ):
        me, rng = generate(), random.Random(2)
        announcer = Announcer(Identity(me.key), honest, rng=rng)
        announcer.serve()
        gossip = Gossip(announcer, honest, lambda: announcer.announce(SERVED, Load(), "serving"), rng=rng)
        await exchange_maps(evil, honest.peer, honest.addrs, records)
        for _ in range(5):
            await gossip.spread()
        sizes = victim.heard()
        assert 0 < sum(sizes) <= 3 * sum(map(len, records)) + 2 * DATAGRAM


@pytest.mark.parametrize("host", ["/ip4/127.0.0.1", "/dns4/localhost"])
async def test_the_next_hop_that_a_client_names_has_the_same_budget(victim: Victim, host: str) -> None:
    """Whatever opens a stream to where a stranger says that a peer listens; a name is where it leads."""
    addr = victim.addrs[0].replace("/ip4/127.0.0.1", host)
    async with open_transport(generate().key, listen=LISTEN, validate=RecordRule()) as node:

        async def try_one() -> None:
            with pytest.raises(PeerUnavailable):
                await node.open_stream(generate().peer, [addr] * 16, MAP_PROTOCOL)

        began = trio.current_time()
        # The first has time to find where the name leads; of many at once those that gave way may use its budget up.
        await try_one()
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(try_one)
        refilled = (trio.current_time() - began) / REFILL_S
        assert 0 < sum(victim.heard()) <= PLACE_DATAGRAMS * (1 + refilled) * DATAGRAM
