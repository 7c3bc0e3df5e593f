"""Announcements: made, checked, spread, forgotten; in virtual time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from node.presence.announce import MAPS_BURST, REFUSED_RECORDS, Announcer, Load, Served, disagreeing
from node.presence.gossip import EXCHANGE_EVERY_S, LOOKUP_EVERY_S, Gossip
from protocol import limits
from protocol.book import STRANGERS_PASSED_ON
from protocol.errors import BadSignature, Lost, Unreachable
from protocol.hints import RecordRule, model_key, record_key
from protocol.identity import Identity, generate
from protocol.messages import MAP_PROTOCOL, MapReply, MapRequest
from protocol.model import Span
from protocol.numerics import Numerics
from protocol.records import Announcement, Record, parse_record, sign_record
from protocol.strangers import OURS
from protocol.talk.channel import Channel
from protocol.talk.exchange import exchange_maps
from protocol.transport.base import PeerAddrs
from protocol.transport.memory import Network
from protocol.transport.memory.transport import MemoryTransport

NOWHERE = "/ip4/192.0.2.9/udp/9/quic-v1"
EPOCH = 1_700_000_000.0
SERVED = Served(
    "tiny", bytes(32), 6, 8, Span(0, 4), "f32", Numerics("f32"), tuple(bytes([n] * 8) for n in range(4))
)


def clock() -> float:
    """The wall clock, virtual as the rest."""
    return EPOCH + trio.current_time()


class Talker:
    """A node's announcing half."""

    def __init__(self, identity: Identity, transport: MemoryTransport) -> None:
        rng = random.Random(identity.peer)
        self.identity = identity
        self.transport = transport
        self.announcer = Announcer(identity, transport, rng=rng, clock=clock)
        self.gossip = Gossip(self.announcer, transport, self.say, rng=rng)
        self.scope = trio.CancelScope()
        self.announcer.serve()
        self.say()

    async def talk(self) -> None:
        """Gossip until `scope` is cancelled."""
        with self.scope:
            await self.gossip.run()

    def say(self) -> Record:
        """What a daemon would say."""
        return self.announcer.announce(SERVED, Load(kv_tokens=5, kv_tokens_total=9), "serving")

    def knows(self) -> set[str]:
        """Others that are there, as far as this one has heard."""
        return {said.peer for said in self.announcer.others()}

    def heard_of(self) -> set[str]:
        """The same, and those that are nobody's but somebody's word."""
        now = self.announcer.clock()
        return {said.peer for said in self.announcer.book.alive(now)} - {self.identity.peer}


class Crowd:
    """Talkers on one network."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.network = Network(rng=random.Random(2), latency_s=0.01)
        self._nursery = nursery

    async def talker(self) -> Talker:
        """A new one, silent until its gossip runs."""
        made, here = trio.open_memory_channel[Talker](1)
        self._nursery.start_soon(self._hold, made)
        return await here.receive()

    async def talking(self, count: int) -> list[Talker]:
        """Several that joined through the first and gossip."""
        talkers = [await self.talker() for _ in range(count)]
        for talker in talkers:
            if talker is not talkers[0]:
                await talker.gossip.join([talkers[0].transport.addrs[0]], 10)
            self._nursery.start_soon(talker.talk)
        return talkers

    async def _hold(self, made: trio.MemorySendChannel[Talker]) -> None:
        identity = generate()
        async with self.network.transport(identity.key, validate=RecordRule(clock)) as transport:
            made.send_nowait(Talker(identity, transport))
            await trio.sleep_forever()


@pytest.fixture
def crowd(nursery: trio.Nursery) -> Crowd:
    """A network, in virtual time if the test itself asks for the clock, as pytest-trio wants it."""
    return Crowd(nursery)


def strangers_word(identity: Identity, **changes: Any) -> Announcement:
    """A valid announcement of a peer that is nowhere, with changes."""
    said = Announcement(
        identity.peer, (NOWHERE,), "tiny", bytes(32), 6, 8, Span(0, 1), "f32", Numerics("f32"), (bytes(8),),
        "serving", 1.0, 1.0, 1.0, 0.0, 5, 9, (), 1, clock(), clock() + 60,
    )  # fmt: skip
    return replace(said, **changes)


async def push(crowd: Crowd, target: Talker, records: Sequence[bytes]) -> list[bytes]:
    """Push records as a stranger; what comes back."""
    stranger = await crowd.talker()
    reply, _ = await exchange_maps(
        stranger.transport, target.transport.peer, target.transport.addrs, tuple(records)
    )
    await trio.sleep(1)
    return list(reply)


async def test_own_record_first_and_all_that_is_valid(autojump_clock: MockClock, crowd: Crowd) -> None:
    """The map that a node hands out begins with its own word."""
    talker = await crowd.talker()
    words = [sign_record(identity, strangers_word(identity)).data for identity in (generate(), generate())]
    await push(crowd, talker, words)
    page = talker.announcer.page()
    assert talker.announcer.own is not None
    assert page[0] == talker.announcer.own.data
    assert sorted(page[1:]) == sorted(words)


async def test_regression_the_word_of_an_earlier_run_is_not_handed_on(
    autojump_clock: MockClock, crowd: Crowd
) -> None:
    """A node that starts again hears from others what it served before; it does not say so itself."""
    talker = await crowd.talker()
    earlier = talker.say().data
    started_again = Announcer(talker.identity, talker.transport, rng=random.Random(3), clock=clock)
    await started_again.take([earlier], OURS)
    assert started_again.page() == ()
    started_again.announce(SERVED, Load(), "joining")
    assert started_again.own is not None
    assert started_again.page() == (started_again.own.data,)


async def test_forged_expired_and_future_records_are_not_taken(
    autojump_clock: MockClock, crowd: Crowd
) -> None:
    """Nor handed on; what is valid beside them is."""
    talker, liar, honest = await crowd.talker(), generate(), generate()
    good = sign_record(honest, strangers_word(honest)).data
    forged = bytearray(good)
    forged[-1] ^= 1
    late = sign_record(liar, strangers_word(liar, issued=clock() - 100, expires=clock() - 1)).data
    early = sign_record(
        liar, strangers_word(liar, issued=clock() + 500, expires=clock() + 560, sequence=9)
    ).data
    long = sign_record(liar, strangers_word(liar, expires=clock() + 10_000, sequence=9)).data
    senseless = sign_record(liar, strangers_word(liar, span=Span(0, 100), sequence=9)).data
    await push(crowd, talker, [bytes(forged), late, early, long, senseless, b"", b"\xff", good])
    assert talker.heard_of() == {honest.peer}


async def test_a_peer_that_pushes_rubbish_is_cut_off(autojump_clock: MockClock, crowd: Crowd) -> None:
    """The records after too many bad ones are not even looked at; the next asker is served."""
    talker, honest = await crowd.talker(), generate()
    good = sign_record(honest, strangers_word(honest)).data
    with pytest.raises(Lost):
        await push(crowd, talker, [b"%d" % n for n in range(REFUSED_RECORDS + 32)] + [good])
    assert talker.heard_of() == set()
    await push(crowd, talker, [good])
    assert talker.heard_of() == {honest.peer}


async def test_asking_too_often_is_refused(autojump_clock: MockClock, crowd: Crowd) -> None:
    """Honestly: the stream ends; after a while the peer may ask again."""
    talker, asker = await crowd.talker(), await crowd.talker()

    async def ask() -> None:
        await exchange_maps(asker.transport, talker.transport.peer, talker.transport.addrs)

    for _ in range(MAPS_BURST):
        await ask()
    with pytest.raises(Lost):
        await ask()
    await trio.sleep(5)
    await ask()


async def test_a_silent_or_malformed_request_costs_its_stream_only(
    autojump_clock: MockClock, crowd: Crowd, caplog: pytest.LogCaptureFixture
) -> None:
    """No traceback."""
    talker, asker = await crowd.talker(), await crowd.talker()
    for junk in (b"", b"\0\0\0\1\x80"):
        stream = await asker.transport.open_stream(
            talker.transport.peer, talker.transport.addrs, MAP_PROTOCOL
        )
        await stream.send(junk)
        with pytest.raises(Lost):
            await stream.receive()
    assert not [record for record in caplog.records if record.exc_info]


async def test_everybody_hears_of_everybody(autojump_clock: MockClock, crowd: Crowd) -> None:
    """Though each was told one address; and of those that die without a word, no later than they expire."""
    talkers = await crowd.talking(8)
    await trio.sleep(8 * EXCHANGE_EVERY_S)
    peers = {talker.transport.peer for talker in talkers}
    assert all(talker.knows() == peers - {talker.transport.peer} for talker in talkers)
    dead = talkers.pop()
    crowd.network.kill(dead.transport.peer)
    await trio.sleep(limits.RECORD_LIFE_S + 1)
    assert all(dead.transport.peer not in talker.knows() for talker in talkers)
    assert all(talker.knows() >= peers - {talker.transport.peer, dead.transport.peer} for talker in talkers)


async def test_round_trips_are_announced(autojump_clock: MockClock, crowd: Crowd) -> None:
    """As links, in milliseconds, measured in exchanges."""
    talkers = await crowd.talking(3)
    await trio.sleep(5 * limits.RECORD_LIFE_S)  # thirty rounds: each has asked each
    own = talkers[1].announcer.own
    assert own is not None
    assert {link.peer for link in own.announcement.links} == talkers[1].knows()
    assert all(19 < link.rtt_ms < 60 for link in own.announcement.links)


async def test_a_goodbye_is_heard_at_once(autojump_clock: MockClock, crowd: Crowd) -> None:
    """By all that were known, in one round, even if one of them hangs."""
    talkers = await crowd.talking(6)
    await trio.sleep(4 * EXCHANGE_EVERY_S)
    leaver, hung = talkers[0], talkers[1]
    crowd.network.pause(hung.transport.peer)
    leaver.scope.cancel()
    leaver.announcer.announce(SERVED, Load(), "gone")
    started = trio.current_time()
    await leaver.gossip.goodbye(1.0)
    assert trio.current_time() - started <= 1.0
    assert all(leaver.transport.peer not in talker.knows() for talker in talkers[2:])


async def test_nodes_that_never_met_find_each_other_in_the_dht(
    autojump_clock: MockClock, crowd: Crowd, nursery: trio.Nursery
) -> None:
    """Within two lookups."""
    one, other = await crowd.talker(), await crowd.talker()
    nursery.start_soon(one.gossip.run)
    nursery.start_soon(other.gossip.run)
    await trio.sleep(2 * LOOKUP_EVERY_S)
    assert one.knows() == {other.transport.peer}
    assert other.knows() == {one.transport.peer}
    found = await one.transport.dht.providers(model_key(SERVED.digest))
    assert found == [PeerAddrs(other.transport.peer, other.transport.addrs)]
    stored = await one.transport.dht.get(record_key(other.transport.peer))
    assert stored is not None


async def test_regression_what_the_dht_holds_never_expires(
    autojump_clock: MockClock, crowd: Crowd, nursery: trio.Nursery
) -> None:
    """A record is new when it is put, or it would be dead before it is put again."""
    one, other = await crowd.talker(), await crowd.talker()
    nursery.start_soon(one.gossip.run)
    await trio.sleep(1)
    for _ in range(600):
        data = await other.transport.dht.get(record_key(one.transport.peer))
        assert data is not None
        assert parse_record(data, clock()).announcement.expires > clock()
        await trio.sleep(1)


async def test_joining_nobody(autojump_clock: MockClock, crowd: Crowd) -> None:
    """Fails after the time given, with the reason; one that answers among several is enough."""
    talker, door, ghost = await crowd.talker(), await crowd.talker(), await crowd.talker()
    crowd.network.kill(ghost.transport.peer)
    started = trio.current_time()
    with pytest.raises(Unreachable, match="nobody answers"):
        await talker.gossip.join([ghost.transport.addrs[0]], 10)
    assert trio.current_time() - started == pytest.approx(10, abs=0.1)
    await talker.gossip.join([ghost.transport.addrs[0], door.transport.addrs[0]], 10)
    assert talker.knows() == {door.transport.peer}


async def test_regression_those_who_come_together_meet_at_once(
    autojump_clock: MockClock, crowd: Crowd, nursery: trio.Nursery
) -> None:
    """Through one door, which knew neither as the other asked: once both have told that they serve."""
    door, one, other = await crowd.talker(), await crowd.talker(), await crowd.talker()
    for talker in (one, other):
        talker.announcer.own = None  # as long as it is not decided what they will serve
        await talker.gossip.join([door.transport.addrs[0]], 10)
    one.say()
    other.say()
    await one.gossip.spread()
    await other.gossip.spread()
    assert one.knows() == {door.transport.peer, other.transport.peer}
    assert other.knows() == {door.transport.peer, one.transport.peer}


async def test_a_door_that_opens_late(autojump_clock: MockClock, crowd: Crowd, nursery: trio.Nursery) -> None:
    """Joining waits a while for it."""
    talker, door = await crowd.talker(), await crowd.talker()
    crowd.network.pause(door.transport.peer)

    async def wake() -> None:
        await trio.sleep(6)
        crowd.network.resume(door.transport.peer)

    nursery.start_soon(wake)
    await talker.gossip.join([door.transport.addrs[0]], 10)
    assert talker.knows() == {door.transport.peer}


async def test_a_restart_with_a_clock_set_back_speaks_last(autojump_clock: MockClock, crowd: Crowd) -> None:
    """What an earlier run said in the future is superseded as soon as it is heard."""
    talker = await crowd.talker()
    own = talker.announcer.own
    assert own is not None
    ahead = replace(own.announcement, sequence=own.announcement.sequence + 10**9, state="gone")
    await push(crowd, talker, [sign_record(talker.identity, ahead).data])
    assert talker.say().announcement.sequence > ahead.sequence
    now = talker.announcer.book.get(talker.transport.peer)
    assert now is not None
    assert now.announcement.state == "serving"


async def test_other_weights_for_a_stage_are_noticed(autojump_clock: MockClock, crowd: Crowd) -> None:
    """Of the same model, for a stage that both serve."""
    identity = generate()
    same = strangers_word(identity, span=Span(2, 5), weights=(bytes([2] * 8), bytes([3] * 8), bytes(8)))
    other = strangers_word(identity, span=Span(3, 4), weights=(bytes(8),))
    elsewhere = strangers_word(identity, span=Span(3, 4), weights=(bytes(8),), digest=bytes([1] * 32))
    apart = strangers_word(identity, span=Span(4, 5), weights=(bytes([9] * 8),))
    assert disagreeing(SERVED, [same, elsewhere, apart]) == []
    assert disagreeing(SERVED, [other]) == [identity.peer]


async def test_the_dht_takes_a_record_under_its_peers_key_only(autojump_clock: MockClock) -> None:
    """And the later statement replaces the earlier."""
    rule, identity = RecordRule(clock), generate()
    early = sign_record(identity, strangers_word(identity)).data
    later = sign_record(identity, strangers_word(identity, sequence=2)).data
    rule.validate(record_key(identity.peer), early)
    assert len(record_key(identity.peer)) <= 50
    with pytest.raises(BadSignature):
        rule.validate(record_key(identity.peer), early[:-1] + bytes([early[-1] ^ 1]))
    with pytest.raises(Exception, match="another peer's key"):
        rule.validate(record_key(generate().peer), early)
    assert (rule.newer(later, early), rule.newer(early, later), rule.newer(early, early)) == (
        True,
        False,
        False,
    )
    assert (rule.newer(early, b"junk"), rule.newer(b"junk", early)) == (True, False)


async def test_a_map_is_asked_for_one_at_a_time(autojump_clock: MockClock, crowd: Crowd) -> None:
    """A stream carries one request."""
    talker, asker = await crowd.talker(), await crowd.talker()
    stream = await asker.transport.open_stream(talker.transport.peer, talker.transport.addrs, MAP_PROTOCOL)
    channel = Channel(stream)
    await channel.send(MapRequest())
    await channel.expect(MapReply, 5)
    assert await channel.receive() is None


async def test_a_record_counts_once_its_peer_was_met(autojump_clock: MockClock, crowd: Crowd) -> None:
    """Pushed, it is a stranger's word; a peer that asks us from where it listens is met by that, without a dial."""
    talker, ghost = await crowd.talker(), generate()
    await push(crowd, talker, [sign_record(ghost, strangers_word(ghost)).data])
    assert talker.knows() == set()
    assert talker.heard_of() == {ghost.peer}
    newcomer = await crowd.talker()
    await newcomer.gossip.join([talker.transport.addrs[0]], 10)
    await trio.sleep(1)
    assert talker.knows() == {newcomer.transport.peer}
    assert newcomer.knows() == {talker.transport.peer}
    own = talker.announcer.own
    assert own is not None
    assert (
        talker.say().announcement.links == ()
    )  # who asked was not measured, and strangers are no neighbours


async def test_thousands_of_identities_hide_nobody(
    autojump_clock: MockClock, crowd: Crowd, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of records of nobody: the map still begins with everybody who is there, and newcomers come in."""
    monkeypatch.setattr("protocol.book.parse_record", unchecked)
    talkers = await crowd.talking(4)
    await trio.sleep(4 * EXCHANGE_EVERY_S)
    everybody = {talker.transport.peer for talker in talkers}
    for round_ in range(18):
        ghosts = [b"%d" % n for n in range(500 * round_, 500 * round_ + 500)]
        await push(crowd, talkers[1], ghosts)
    page = talkers[1].announcer.page()
    names = {said.peer for said in talkers[1].announcer.others()} | {talkers[1].transport.peer}
    assert names == everybody
    assert len(page) <= len(everybody) + STRANGERS_PASSED_ON
    newcomer = await crowd.talker()
    await newcomer.gossip.join([talkers[1].transport.addrs[0]], 10)
    nursery.start_soon(newcomer.talk)
    await trio.sleep(4 * EXCHANGE_EVERY_S)
    assert newcomer.knows() == everybody
    assert all(newcomer.transport.peer in talker.knows() for talker in talkers)


def unchecked(data: bytes, now: float) -> Record:
    """Records of ghosts are numbers here: signing thousands takes long, and judging them is tested elsewhere."""
    if not data.isdigit():
        return parse_record(data, now)
    return Record(strangers_word(generate(), peer=f"ghost {data.decode()}"), data)


async def test_a_node_whose_clock_is_wrong_works(autojump_clock: MockClock, crowd: Crowd) -> None:
    """It goes by those who answer it, says so, and others take its records."""
    talker, off = await crowd.talker(), await crowd.talker()
    off.announcer = Announcer(off.identity, off.transport, rng=random.Random(1), clock=lambda: clock() + 500)
    off.gossip = Gossip(off.announcer, off.transport, off.say, rng=random.Random(1))
    off.say()
    await off.gossip.join([talker.transport.addrs[0]], 10)
    assert off.knows() == {talker.transport.peer}
    assert off.announcer.complaint().startswith("this machine's clock is about 488 s ahead")
    off.say()
    await off.gossip.spread()
    await trio.sleep(1)
    assert talker.knows() == {off.transport.peer}
