"""The daemon: opens the model, joins the swarm, loads what it serves, serves it, and says goodbye."""

from __future__ import annotations

import logging
import random
import shlex
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from node import events
from node.backend import Backend, Model, OpenBackend
from node.compute.counts import Counts
from node.compute.kv import buffer_bytes, default_kv_tokens, prefix_bytes, token_bytes_at
from node.compute.measure import measure
from node.config import NodeConfig
from node.events import Notify
from node.fetch.model import Swarm, SwarmModel
from node.figures import Figures
from node.hop.admission import Admission
from node.hop.neighbours import Neighbours
from node.hop.seats import Room
from node.hop.server import HopServer
from node.presence.announce import Announcer, Load, Served, disagreeing
from node.presence.dialback import DialBacks
from node.presence.gossip import Gossip
from node.presence.modelfiles import ModelFiles
from node.presence.upload import Upload
from node.selection import free_bytes, needed_bytes, open_each, select
from node.sharing import Sharing
from node.store.cache import Cache, default_folder
from protocol.errors import ConfigError, EngineError, NoRoute, Unreachable
from protocol.identity import Identity
from protocol.model import Span, weights_digest
from protocol.plain import plain
from protocol.records import Record
from protocol.transport.base import Transport
from protocol.weights import parse_pin

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How long the addresses given have to answer: an address is there or wrong, seconds tell.
JOIN_WITHIN_S = 10.0
# Weights that a node does not serve are read for the digest of the whole up to this size: a second or two.
READ_BYTES = 256 * 1024 * 1024
# Digits of that digest, as `--weights` takes them.
WEIGHTS_DIGITS = 32
# Nodes with other weights that are named; whoever invents identities must not fill the operator's log.
SUSPECTS_NAMED = 16
# Models of others that are told: anybody can announce as many as they like.
MODELS_NAMED = 8
# A node computes for sessions as long as the last batch was not longer ago than this.
BUSY_S = 1.0
# The goodbye and the end of sessions each take at most this long.
LEAVE_WITHIN_S = 1.0


class Node:
    """One node over an open transport. `run` serves until it is cancelled; then `leave` says goodbye."""

    def __init__(
        self,
        config: NodeConfig,
        identity: Identity,
        transport: Transport,
        backend: OpenBackend,
        notify: Notify,
    ) -> None:
        self._config = config
        self._transport = transport
        self._open_backend = backend
        self._notify = notify
        self._rng = random.Random()
        self._announcer = Announcer(identity, transport, rng=self._rng)
        self._gossip = Gossip(self._announcer, transport, self._refresh, rng=self._rng)
        self._served: Served | None = None
        self._hop: HopServer | None = None
        self._budget = Admission(Room(0))
        self._suspects: set[str] = set()
        self.ready = trio.Event()  # once it serves

    async def run(self) -> None:
        """Join, load and serve.

        Raises: ConfigError, BadCheckpoint, UnsupportedModel; Unreachable, if the swarm to join does not answer;
        NoRoute, if nobody there gives the weights of what is to be served.
        """
        self._announcer.serve()
        DialBacks(self._transport).serve()
        fetched, backends = await self._find_model()
        if fetched is None and self._config.join:
            self._compare(backends[0].model)
        precision, span = await self._select(backends, fetched)
        backend = backends[precision]
        async with trio.open_nursery() as nursery:
            if fetched is not None:
                await self._announce(backend, span, tuple(fetched.weights[stage] for stage in span))
                nursery.start_soon(self._gossip.run)  # others see that somebody fetches this span
                files = await fetched.fetch(span)
                backend = (await _in_thread(partial(open_each, self._open_backend, self._config, files)))[
                    precision
                ]
            await self._prepare(backend, span)
            if fetched is None:
                nursery.start_soon(self._gossip.run)  # others see that somebody is loading this span
            if self._config.share:
                nursery.start_soon(self._share, backend.model, span)
            await self._load(backend, span)
            await self._gossip.spread()
            await self._tell_weights(backend.model)
            self._tell_how_to_join()
            self.ready.set()
            await trio.sleep_forever()

    def figures(self) -> Figures:
        """How the node is now, in numbers."""
        hop, budget, gossip = self._hop, self._budget, self._gossip
        return Figures(
            counts=hop.counts if hop is not None else Counts(),
            serving=hop is not None,
            sessions=len(hop) if hop is not None else 0,
            waiting=len(hop.scheduler) if hop is not None else 0,
            kv_tokens=budget.total,
            kv_free=budget.free,
            kept_bytes=hop.prefixes.nbytes if hop is not None and hop.prefixes is not None else 0,
            peers_met=len(self._announcer.others()),
            peers_known=len(self._announcer.book),
            exchanged=gossip.exchanged,
            not_exchanged=gossip.failed,
        )

    async def leave(self) -> None:
        """End the sessions and tell the swarm; takes about LEAVE_WITHIN_S at most."""
        if self._served is None:
            return
        self._announcer.announce(self._served, Load(), "gone")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._gossip.goodbye, LEAVE_WITHIN_S)
            if self._hop is not None:
                nursery.start_soon(self._hop.drain, LEAVE_WITHIN_S)

    # --- the model

    async def _find_model(self) -> tuple[SwarmModel | None, list[Backend]]:
        """What may serve, and the model of the swarm that it is of; None if it is of a checkpoint here or the hub's.

        The hub's comes from peers where its weights are pinned, for then theirs are as good, or else where the hub
        cannot give it. Raises: ConfigError, NoRoute, Unreachable, BadCheckpoint, UnsupportedModel.
        """
        config = self._config
        asks_peers = config.names_hub and bool(config.join)
        if not config.names_checkpoint or (asks_peers and config.weights is not None):
            await self._join()
            try:
                fetched = await self._ask_swarm()
                return fetched, await self._open(fetched)
            except (ConfigError, NoRoute) as error:
                if not config.names_checkpoint:
                    raise
                self._notify(events.Noted(f"{error}; asking the hub"))
                return None, await self._open(None)
        try:
            backends = await self._open(None)
        except ConfigError as error:
            if not asks_peers:
                raise
            await self._join()
            try:
                fetched = await self._ask_swarm()
            except (ConfigError, NoRoute):
                raise error from None
            self._notify(events.Noted(f"{error}; asking the swarm"))
            return fetched, await self._open(fetched)
        if config.join:
            await self._join()
        return None, backends

    async def _ask_swarm(self) -> SwarmModel:
        """The model that it serves. Raises: ConfigError, NoRoute."""
        config = self._config
        swarm = Swarm(
            self._transport, self._announcer.others, self._announcer.book.origin, self._gossip.doors
        )
        cache = Cache(Path(config.cache_dir) if config.cache_dir else default_folder(), config.cache_size)
        pin = parse_pin(config.weights) if config.weights else None
        return await SwarmModel.find(swarm, config.model, cache, pin, self._notify)

    async def _open(self, fetched: SwarmModel | None) -> list[Backend]:
        """What may serve, the most precise first."""
        self._notify(events.Opening(fetched.name if fetched is not None else str(self._config.model)))
        files = fetched.files() if fetched is not None else None
        return await _in_thread(partial(open_each, self._open_backend, self._config, files))

    async def _select(self, backends: Sequence[Backend], fetched: SwarmModel | None) -> tuple[int, Span]:
        """Which of these serves, by its place, and which span. Raises: ConfigError; NoRoute, if it cannot be had."""
        manifest = backends[0].model.manifest
        wanted = self._config.span(manifest.blocks)
        if fetched is not None and (lacking := fetched.lacking(wanted or Span(0, manifest.stages))):
            line = f"nobody in this swarm gives the weights of {lacking} of {fetched.name}"
            if wanted is not None or not fetched.weights:
                raise NoRoute(line)
            self._notify(events.Noted(line))
        served = [said.span for said in self._announcer.others() if said.digest == manifest.digest]
        given = fetched.weights if fetched is not None else None
        return await _in_thread(partial(select, backends, self._config, served, given, self._rng))

    async def _share(self, model: Model, span: Span) -> None:
        """Give peers what is here of the model."""
        sharing = Sharing(model, self._transport, Upload(self._config.upload, self._is_busy))
        await sharing.put(span)
        await self.ready.wait()
        await sharing.put_the_rest(self._is_busy)

    def _is_busy(self) -> bool:
        """Whether sessions are being computed."""
        return self._hop is not None and self._hop.idle_s() < BUSY_S

    # --- joining

    async def _join(self) -> None:
        addrs = self._config.join
        self._notify(events.Joining(addrs))
        try:
            await self._gossip.join(addrs, JOIN_WITHIN_S)
        except Unreachable as error:
            raise Unreachable(f"no node answers at {', '.join(addrs)}: {error}") from error
        if complaint := self._announcer.complaint():
            self._notify(events.Warned(complaint))

    def _compare(self, model: Model) -> None:
        """Say so if the swarm that was joined serves other models."""
        models = {said.digest: said.model for said in self._announcer.others()}
        digest = model.manifest.digest
        if models and digest not in models:
            named = sorted(f"{plain(name)} ({key.hex()[:12]})" for key, name in models.items())
            known = ", ".join(named[:MODELS_NAMED]) + ", …" * (len(named) > MODELS_NAMED)
            self._notify(
                events.Noted(
                    f"this swarm serves {known}; {model.name} ({digest.hex()[:12]}) is another model, "
                    "whose nodes work only with each other"
                )
            )

    # --- loading

    async def _prepare(self, backend: Backend, span: Span) -> None:
        """Make sure of the weights, name them, and say that we are coming."""
        model, blocks = backend.model, backend.model.manifest.blocks
        need = await _in_thread(partial(needed_bytes, backend, span))
        numerics = await _in_thread(backend.numerics)
        self._notify(events.Loading(model.name, blocks, span, need, str(numerics), backend.kernels()))
        await _in_thread(lambda: model.require(span))
        await self._announce(backend, span, await _in_thread(lambda: model.stage_digests(span)))

    async def _announce(self, backend: Backend, span: Span, weights: tuple[bytes, ...]) -> None:
        """Say that this is about to be served."""
        manifest = backend.model.manifest
        name = self._config.name or backend.model.name
        size, dtype = manifest.hidden_size, await _in_thread(backend.dtype)
        numerics = await _in_thread(backend.numerics)
        self._served = Served(name, manifest.digest, manifest.blocks, size, span, dtype, numerics, weights)
        self._refresh()

    async def _load(self, backend: Backend, span: Span) -> None:
        model, config, manifest = backend.model, self._config, backend.model.manifest
        memory_bytes = await _in_thread(partial(free_bytes, backend, config))
        engine = await _in_thread(lambda: backend.load(span))
        speed = await _in_thread(lambda: measure(engine))
        contents = await _in_thread(lambda: {file.name: model.file(file.name) for file in manifest.files})
        left_bytes = max(0, memory_bytes - engine.weight_bytes)
        kept_bytes = prefix_bytes(left_bytes) if engine.shares_pages else 0
        tokens = config.kv_tokens or default_kv_tokens(left_bytes, token_bytes_at(engine), kept_bytes)
        self._budget = Admission(Room(tokens, buffer_bytes(left_bytes)))
        neighbours = Neighbours(self._transport, self._announcer.book.proven)
        hop = HopServer(
            engine,
            self._transport,
            self._budget,
            neighbours=neighbours,
            speed=speed,
            prefix_bytes=kept_bytes,
        )
        ModelFiles(manifest, contents).serve(self._transport)
        hop.serve()
        self._hop = hop
        self._refresh()
        self._notify(
            events.Serving(
                model.name,
                manifest.digest,
                manifest.blocks,
                span,
                numerics=str(engine.numerics),
                kernels=backend.kernels(),
                weight_bytes=engine.weight_bytes,
                kv_tokens=self._budget.total,
                kv_bytes=engine.kv_bytes_per_token() * self._budget.total,
                decode_ms=speed.decode_ms_per_block,
            )
        )

    def _tell_how_to_join(self) -> None:
        addrs = self._transport.addrs
        for addr in addrs:
            self._notify(events.Address(addr))
        far = [addr for addr in addrs if not addr.startswith(("/ip4/127.", "/ip6/::1/"))]
        addr = shlex.quote((far or list(addrs) or ["ADDRESS"])[0])
        quant = f" --quant {self._config.quant}" if self._config.quant else ""
        own = f" --model {shlex.quote(str(self._config.model))}" if self._config.names_checkpoint else ""
        serve = f"swarm node{own}{quant} --join {addr}"
        self._notify(events.Invitation("join", serve))
        self._notify(events.Invitation("chat", f"swarm chat --join {addr}"))
        self._notify(events.Ready(self._transport.peer, addrs))

    async def _tell_weights(self, model: Model) -> None:
        """Say which weights the whole model has, where all are here and the others soon read."""
        served = self._served
        assert served is not None
        own = dict(zip(served.span, served.weights, strict=True))
        others = [stage for stage in range(model.manifest.stages) if stage not in own]

        def read() -> dict[int, bytes] | None:
            size_bytes = sum(model.stage_bytes(stage, served.dtype) for stage in others)
            if size_bytes > READ_BYTES or not all(model.has(stage) for stage in others):
                return None
            return {stage: model.stage_digests(Span(stage, stage + 1))[0] for stage in others}

        try:
            rest = await _in_thread(read)
        except EngineError as error:
            logger.info("the weights that others serve cannot be read here: %s", error)
            return
        if rest is not None:
            whole = weights_digest(digest for _, digest in sorted({**own, **rest}.items()))
            self._notify(events.Weights(whole.hex()[:WEIGHTS_DIGITS]))

    # --- the record

    def _refresh(self) -> Record:
        """Say how we are now; warn once of each node, up to a number, that serves other weights of the same model."""
        assert self._served is not None
        hop, budget = self._hop, self._budget
        load = Load()
        if hop is not None:
            meter, now = hop.meter, time.perf_counter()
            load = Load(
                meter.decode_ms(now),
                meter.prefill_ms(now),
                meter.head_ms,
                meter.queue_ms(now),
                hop.offer(),
                budget.room.of_peer.tokens,
            )
        for peer in disagreeing(self._served, self._announcer.others()):
            if peer in self._suspects or len(self._suspects) > SUSPECTS_NAMED:
                continue
            self._suspects.add(peer)
            if len(self._suspects) <= SUSPECTS_NAMED:
                self._notify(
                    events.Warned(f"node {peer} serves other weights for the same layers of this model")
                )
            else:
                self._notify(events.Warned("more nodes serve other weights than can be named here"))
        return self._announcer.announce(self._served, load, "joining" if hop is None else "serving")


async def _in_thread(work: Callable[[], T]) -> T:
    """Run blocking work beside the event loop; a node that is told to leave does not wait for it."""
    # The type stubs that libp2p brings are of an older trio.
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True)  # type: ignore[call-arg, unused-ignore]
