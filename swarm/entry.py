"""Entering a swarm: contact with its nodes, the choice of a model, its small files, and then a `Client`."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs
import trio

from protocol import identity as identities
from protocol.errors import ConfigError, NoRoute
from protocol.hints import RecordRule
from protocol.identity import Identity
from protocol.model import Manifest
from protocol.records import Announcement
from protocol.talk.modelfiles import model_files
from protocol.transport.background import background_tasks
from protocol.transport.base import Transport
from protocol.weights import Pin, Trust, parse_pin
from swarm.client import Client, Model
from swarm.events import Event, Noticed, OnEvent, Waiting
from swarm.routing.precision import Precisions, parse_precisions
from swarm.routing.view import View
from swarm.routing.weightstore import FolderStore, WeightStore
from swarm.session.ends import Ends
from swarm.session.search import RETRY_EVERY_S
from swarm.text.masks import mask_process
from swarm.text.process import TextProcess
from swarm.text.text import load_text

# What stands for a pin where the weights used so far are to be forgotten.
ANEW: Final = "new"


@dataclass(frozen=True, slots=True)
class Options:
    """How a client behaves."""

    model: str | None = None  # a name or the first digits of a digest, where the swarm serves several
    wait_s: float = 0.0  # how long to wait for stages that nobody serves
    direct: bool = True  # whether hops send to each other
    reuse: bool = True  # whether what hops compute for this client and for others is shared
    cache: Path | None = None  # where tokenizers are kept; default: the user's cache folder
    weights: str | None = None  # the digest of the model's weights, or at least its first 32 digits; or ANEW
    store: WeightStore | None = None  # where it is kept which weights were used; default: only in memory
    precision: str = "any"  # what nodes may compute in: "any", "exact", or a list with commas

    def __post_init__(self) -> None:
        """Raises: ConfigError, before anything is opened for what cannot be."""
        if self.weights not in (None, ANEW):
            parse_pin(self.weights)
        parse_precisions(self.precision)

    @property
    def pin(self) -> Pin | None:
        """The weights that the user has named."""
        return parse_pin(self.weights) if self.weights not in (None, ANEW) else None

    @property
    def precisions(self) -> Precisions:
        """What nodes may compute in."""
        return parse_precisions(self.precision)


@asynccontextmanager
async def connect(
    *addrs: str,
    model: str | None = None,
    ends: Ends | None = None,
    identity: Identity | None = None,
    wait_s: float = 0.0,
    direct: bool = True,
    reuse: bool = True,
    weights: str | None = None,
    precision: str = "any",
    remember: bool | WeightStore = True,
    on_event: OnEvent | None = None,
) -> AsyncIterator[Client]:
    """Enter the swarm through any of its nodes' addresses.

    `ends` runs both ends of the model here (the client then needs its checkpoint); without, the client needs
    nothing but an address: tokenizer and chat template come from a node, checked against the model's digest.
    `wait_s` is how long to wait for stages that nobody serves. Without `direct` hidden states never pass between
    hops but all through here, for nodes that cannot reach each other anyway. Without `reuse` nodes compute anew what
    they have computed before, and keep nothing of these sessions: how soon an answer comes then tells nobody who asks
    the same that it was asked before.

    `weights` is the digest of the model's weights (its first 32 digits suffice): nodes with others are left out.
    Without, those count that this client used before, and where it used none those that the most nodes serve, by the
    places they are at; what is used is kept for the next time, in the user's cache folder or another store, unless
    `remember` is False. "new" forgets it.

    `precision` is what nodes may compute in: "any"; "exact", where no weight is made a small integer; or precisions
    with commas between, "int8" or "int8/1,int4/1", with the version of the arithmetic or without. A route is of one
    kind where that costs little, and a hop that fails is replaced by its kind if there is one: else the event
    `Altered` says so. An answer that must not depend on who computes it names one kind with a version, as "int8/1".

    `on_event` is told of everything that happens beside the answers, with the id of the session it happened to.

    Raises: ConfigError, for a malformed address or an ambiguous model; Unreachable, if no address answers; NoRoute,
    if nobody serves a model.
    """
    from protocol.transport.libp2p import open_transport  # takes a second, which only this pays

    if not addrs:
        raise ConfigError("give the address of at least one node")
    me = identity or identities.generate()
    store = FolderStore(_cache_folder() / "weights") if remember is True else remember or None
    options = Options(model, wait_s, direct, reuse, weights=weights, store=store, precision=precision)
    async with (
        open_transport(me.key, dht="client", validate=RecordRule()) as transport,
        enter(transport, addrs, options, ends=ends, on_event=on_event) as client,
    ):
        yield client


@asynccontextmanager
async def enter(
    transport: Transport,
    addrs: Sequence[str],
    options: Options,
    *,
    ends: Ends | None = None,
    on_event: OnEvent | None = None,
) -> AsyncIterator[Client]:
    """`connect` over a transport that is open already."""
    notify = on_event or _ignore
    async with background_tasks() as nursery:
        texts, masks = TextProcess(), mask_process()
        nursery.start_soon(texts.run)  # comes up while the swarm is asked
        nursery.start_soon(masks.run)
        view = View(
            transport,
            nursery,
            random.Random(),
            notify=notify,
            store=options.store,
            precisions=options.precisions,
        )
        await view.enter(addrs)
        said = await _choose(view, options, ends, notify)
        if complaint := view.complaint():
            notify(Noticed(complaint))
        cache = options.cache or _cache_folder() / "models"
        nodes = [node for node in view.answered() if node.digest == said.digest]
        manifest, contents = await model_files(transport, nodes, said.digest, cache)
        view.trusts[said.digest] = await _trust(manifest, options, ends, notify)
        text = await load_text(texts, contents, masks)
        yield Client(
            view,
            Model(said.model, said.digest, manifest),
            text,
            ends,
            notify,
            wait_s=options.wait_s,
            direct=options.direct,
            reuse=options.reuse,
        )


async def _choose(view: View, options: Options, ends: Ends | None, notify: OnEvent) -> Announcement:
    """The model to use, waiting for somebody to serve one if asked to."""
    name = ends.manifest.digest.hex() if ends is not None else options.model
    deadline = trio.current_time() + options.wait_s
    with suppress(NoRoute, ConfigError):
        return view.choose_model(name)
    while True:
        await view.look_for(name)
        try:
            return view.choose_model(name)
        except NoRoute as error:
            left_s = deadline - trio.current_time()
            if left_s <= 0:
                raise
            notify(Waiting(None, (), str(error), left_s))
        await trio.sleep(RETRY_EVERY_S)
        await view.refresh()


async def _trust(manifest: Manifest, options: Options, ends: Ends | None, notify: OnEvent) -> Trust:
    """What is known of the model's weights before any node is heard."""
    used: dict[int, bytes] = {}
    pin, anew = options.pin, options.weights == ANEW
    if options.store is not None and not anew:
        try:
            used = await trio.to_thread.run_sync(options.store.load, manifest.digest)
        except ConfigError as error:
            notify(Noticed(f"note: {error}; it is ignored"))
    given = await trio.to_thread.run_sync(ends.stage_digests) if ends is not None and pin is not None else {}
    return Trust(manifest.stages, pin, used, given, anew)


def _cache_folder() -> Path:
    home = os.environ.get("SWARM_HOME")
    return Path(home) / "cache" if home else platformdirs.user_cache_path("swarm")


def _ignore(_: Event) -> None:
    return
