"""Nodes send nothing to third parties that strangers name, and tell nobody who is there: see the package."""

from __future__ import annotations

import socket
import statistics
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio

from protocol.messages import LinkDown
from protocol.model import Span
from tests.attack import wire
from tests.attack.arena import REFLECTED_TIMES, Arena
from tests.attack.attacks import dials
from tests.attack.attacks.packets import first_packet
from tests.attack.bystander import HOST, Meter, Victim, metered
from tests.attack.stranger import Field, Ghost, host_and_port, stranger, try_to
from tests.attack.survey import survey

pytestmark = [pytest.mark.attack, pytest.mark.timeout(480)]

# Of a link that cannot be: the same for all reasons, but for what a busy machine adds.
TELLING_S = 0.5
TRIES = 3
# However busy the machine is.
TOLD_WITHIN_S = 60.0


@pytest.fixture
async def victim(arena: Arena) -> AsyncIterator[Victim]:
    """Somebody else."""
    async with trio.open_nursery() as nursery:
        with Victim() as sockets:
            nursery.start_soon(sockets.keep_counting)
            yield sockets
            nursery.cancel_scope.cancel()


@pytest.fixture
async def meter(arena: Arena) -> AsyncIterator[Meter]:
    """The attacker's way to the nodes."""
    async with metered(arena.addrs) as counting:
        yield counting


@pytest.mark.parametrize("attack", [each.__name__ for each in dials.ATTACKS])
async def test_little_reaches_a_third_party(attack: str, arena: Arena, victim: Victim, meter: Meter) -> None:
    """What nodes send to where a stranger points is no more than three times what the stranger has sent."""
    harm = await arena.endure(
        attack,
        addrs=meter.addrs,
        reached=victim.count,
        spent=lambda: meter.sent,
        victims=victim.addrs,
        port=victim.port,
    )
    harm.check()


async def test_a_record_of_a_victim_is_no_weapon(arena: Arena, victim: Victim, meter: Meter) -> None:
    """Four hundred records that name a third party, given to every node and met by every client, cost it little."""
    harm = await arena.endure(
        "records_of_a_victim",
        addrs=meter.addrs,
        reached=victim.count,
        spent=lambda: meter.sent,
        victims=victim.addrs,
    )
    harm.check()


async def test_a_forged_sender_gets_no_more_than_three_times_its_bytes(arena: Arena) -> None:
    """A handshake that seems to come from a third party, and is never gone on with (RFC 9000, section 8.1)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forged:
        forged.bind((HOST, 0))
        forged.setblocking(False)
        sent = received = 0
        for _ in range(40):
            for addr in arena.addrs:
                sent += forged.sendto(first_packet(), host_and_port(addr))
        with trio.move_on_after(7.0):
            while True:
                try:
                    received += len(forged.recv(65_535))
                except BlockingIOError:
                    await trio.sleep(0.01)
        print(f"{sent} bytes sent, {received} came to the forged sender")
        assert received <= REFLECTED_TIMES * sent


async def test_a_link_that_fails_tells_nothing_of_the_place(arena: Arena) -> None:
    """Closed port, silent port, a peer that is another, a node that is there: same words, same time."""
    field = await survey(arena.addrs)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((HOST, 0))
        places = {
            "closed": [f"/ip4/{HOST}/udp/9/quic-v1"],
            "silent": [f"/ip4/{HOST}/udp/{silent.getsockname()[1]}/quic-v1"],
            "another peer": list(field.nodes[1].addrs),
            "nowhere": [],
        }
        said = {
            name: [await _link_down(field, addrs) for _ in range(TRIES)] for name, addrs in places.items()
        }
    print({name: [(f"{s:.2f}", why) for s, why in each] for name, each in said.items()})
    assert len({why for each in said.values() for _, why in each}) == 1
    if arena.timed:
        times = [statistics.median(seconds for seconds, _ in each) for each in said.values()]
        assert max(times) - min(times) < TELLING_S


async def _link_down(field: Field, addrs: list[str]) -> tuple[float, str]:
    """After how long a node gives a next hop up that is said to be there, and its words without the peer's name."""
    signer = Ghost()
    ghost = signer.identity.peer
    async with stranger() as who:
        await try_to(partial(who.push, field.first, [signer.says(field.first, addrs=tuple(addrs))]))
        began = trio.current_time()
        talk = await who.open(field.first, Span(0, 2), next=wire.next_hop(ghost, addrs))
        down = await talk.channel.expect(LinkDown, TOLD_WITHIN_S)
        talk.stream.reset()
        return trio.current_time() - began, down.reason.replace(ghost, "the peer")
