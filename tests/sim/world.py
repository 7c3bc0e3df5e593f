"""A whole swarm in one event loop: real sessions on both sides, fake engines, a network in memory."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from node.compute.call import run_alone
from node.hop.admission import Admission
from node.hop.neighbours import Neighbours
from node.hop.seats import Room
from node.hop.server import HopServer
from protocol import identity as identities
from protocol import limits
from protocol.candidates import Want
from protocol.identity import Identity
from protocol.messages import MAP_PROTOCOL, MapReply, MapRequest
from protocol.model import Span
from protocol.numerics import Numerics
from protocol.records import Announcement, Record, sign_record
from protocol.talk.channel import Channel
from protocol.transport.background import background_tasks
from protocol.transport.base import Stream
from protocol.transport.memory import Network
from protocol.transport.memory.transport import MemoryTransport
from swarm.events import Event
from swarm.routing.bans import Bans
from swarm.routing.view import View
from swarm.session.chain import SessionSpec
from swarm.session.session import Session
from tests.node.fakes import HIDDEN, MANIFEST, STAGES, VOCAB, FakeEngine, InlineExecutor, token_rows
from tests.sim.liars import Mouth

ALL = Span(0, STAGES)
KV_TOKENS = 4096


@dataclass(eq=False)
class FakeNode:
    """A node whose engine is fake and whose session handling is real."""

    identity: Identity
    transport: MemoryTransport
    engine: FakeEngine
    hop: HopServer
    decode_ms: float
    mouth: Mouth
    weights: dict[int, bytes] = field(default_factory=dict)

    @property
    def peer(self) -> str:
        """Its peer id."""
        return self.identity.peer

    def announcement(self) -> Announcement:
        """What it says of itself now."""
        now, span = time.time(), self.engine.span
        return Announcement(
            peer=self.peer,
            addrs=self.transport.addrs,
            model="fake",
            digest=MANIFEST.digest,
            blocks=MANIFEST.blocks,
            hidden_size=HIDDEN,
            span=span,
            dtype="f32",
            numerics=self.engine.numerics,
            weights=tuple(self.weights.get(stage, b"weights!") for stage in span),
            state="serving",
            decode_ms=self.decode_ms,
            prefill_ms=self.decode_ms,
            head_ms=self.decode_ms,
            queue_ms=0.0,
            kv_tokens=4096,
            kv_tokens_total=4096,
            links=(),
            sequence=time.time_ns() // 1000,
            issued=now,
            expires=now + limits.RECORD_LIFE_S,
        )

    def record(self) -> Record:
        """The same, signed."""
        return sign_record(self.identity, self.announcement())


@dataclass(frozen=True)
class Banned:
    """That a peer was banned, and for what."""

    peer: str
    honest: bool


class NotedBans(Bans):
    """Notes for what each ban was."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[Banned] = []

    def ban(self, peer: str, now: float, *, honest: bool) -> None:
        """See `Bans`."""
        self.noted.append(Banned(peer, honest))
        super().ban(peer, now, honest=honest)

    def pardon(self) -> None:
        """Lift all bans, as time would; what was noted stays."""
        super().__init__()


@dataclass(eq=False)
class World:
    """Nodes by the order they were asked for; `events` is what the client was told."""

    network: Network
    nodes: list[FakeNode]
    view: View
    bans: NotedBans
    events: list[Event] = field(default_factory=list)

    def by_peer(self, peer: str) -> FakeNode:
        """The node of that id."""
        return next(node for node in self.nodes if node.peer == peer)

    async def session(
        self, *, max_tokens: int = 256, wait_s: float = 0.0, direct: bool = True, reuse: bool = True
    ) -> Session:
        """An open session over the whole model."""
        spec = SessionSpec(
            MANIFEST.digest, MANIFEST.blocks, VOCAB, HIDDEN, ALL, max_tokens, wait_s, direct, reuse
        )
        session = Session(self.view, spec, self.events.append)
        await session.open()
        return session


async def start_node(
    stack: AsyncExitStack,
    network: Network,
    span: Span,
    everybody: Callable[[], Sequence[FakeNode]],
    *,
    decode_ms: float = 1.0,
    step_s: float = 0.0,
    identity: Identity | None = None,
    loading: bool = False,
    host: str | None = None,
    prefix_bytes: int = 0,
    kv_tokens: int = KV_TOKENS,
) -> FakeNode:
    """A node of its own identity that serves `span` and hands out everybody's records.

    While it is `loading` it answers for the map only: `node.hop.serve()` ends that.
    """
    me = identity or identities.generate()
    transport = await stack.enter_async_context(network.transport(me.key, host=host))
    engine = FakeEngine(span)
    mouth = Mouth(transport)

    def addresses_of(peer: str) -> tuple[str, ...]:
        return next((node.transport.addrs for node in everybody() if node.peer == peer), ())

    neighbours = Neighbours(mouth, addresses_of)
    hop = HopServer(
        engine,
        mouth,
        Admission(Room(kv_tokens)),
        neighbours=neighbours,
        executor=InlineExecutor(step_s),
        prefix_bytes=prefix_bytes,
    )
    if not loading:
        hop.serve()

    async def serve_map(stream: Stream) -> None:
        async with Channel(stream) as channel:
            await channel.expect(MapRequest, limits.CONTROL_TIMEOUT_S)
            own_first = sorted(everybody(), key=lambda node: node.peer != me.peer)
            await channel.send(MapReply(tuple(node.record().data for node in own_first)))

    transport.serve(MAP_PROTOCOL, serve_map)
    return FakeNode(me, transport, engine, hop, decode_ms, mouth)


@asynccontextmanager
async def swarm_of(
    *spans: tuple[int, int],
    slow: Sequence[int] = (),
    latency_s: float = 0.01,
    step_s: float = 0.0,
    hosts: Mapping[int, str] | None = None,
    prefix_bytes: int = 0,
    numerics: Mapping[int, Numerics] | None = None,
    kv_tokens: int = KV_TOKENS,
) -> AsyncIterator[World]:
    """Nodes of these spans and a client that knows them; those in `slow` are chosen only when others fail.

    Those in `numerics` say that they compute so: all compute alike.
    """
    network = Network(rng=random.Random(1), latency_s=latency_s)
    nodes: list[FakeNode] = []
    async with AsyncExitStack() as stack:
        for index, (start, stop) in enumerate(spans):
            cost = 50.0 if index in slow else 1.0
            node = await start_node(
                stack,
                network,
                Span(start, stop),
                lambda: nodes,
                decode_ms=cost,
                step_s=step_s,
                host=(hosts or {}).get(index),
                prefix_bytes=prefix_bytes,
                kv_tokens=kv_tokens,
            )
            node.engine.numerics = (numerics or {}).get(index, node.engine.numerics)
            nodes.append(node)
        client = await stack.enter_async_context(network.transport(identities.generate().key, listen=False))
        nursery = await stack.enter_async_context(background_tasks())
        bans = NotedBans()
        view = View(client, nursery, random.Random(2), bans=bans)
        await view.enter([nodes[0].transport.addrs[0]])
        await view.measure(MANIFEST.digest, ALL)
        yield World(network, nodes, view, bans)


async def greedy(session: Session, prompt: Sequence[int], count: int) -> list[int]:
    """The next `count` best tokens."""
    found: list[int] = []
    feed = list(prompt)
    for _ in range(count):
        candidates = await session.step(feed)
        assert candidates is not None
        feed = [int(candidates.ids[0, 0])]
        found += feed
    return found


def greedy_reference(prompt: Sequence[int], count: int) -> list[int]:
    """The same, from the unsplit fake model."""
    engine = FakeEngine(ALL)
    cache = engine.new_cache(ALL)
    found: list[int] = []
    feed, position = list(prompt), 0
    for _ in range(count):
        result = run_alone(engine, cache, position, token_rows(feed), Want())
        position += len(feed)
        feed = [int(result.ids[0, 0])]  # type: ignore[union-attr]
        found += feed
    return found
