"""The client: enters a swarm through any node, and chats with a model whose layers others serve.

async with swarm.connect("/ip4/…/udp/…/quic-v1/p2p/…") as client:
    print(await client.plan_route())
    async for piece in client.generate("Why is the sky blue?"):
        print(piece.text, end="")
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs
import trio

from protocol import identity as identities
from protocol.book import RecordBook
from protocol.errors import ConfigError, NoRoute
from protocol.hints import RecordRule
from protocol.identity import Identity
from protocol.model import Manifest, Span
from protocol.records import Announcement
from protocol.transport.background import background_tasks
from protocol.transport.base import Transport
from swarm.decoding import Sampling
from swarm.events import Event, Noticed, OnEvent, Waiting
from swarm.generation import Answer, Generation, Piece, Request
from swarm.routing.route import Route
from swarm.routing.view import View
from swarm.routing.weights import Pin, Trust, parse_pin
from swarm.routing.weightstore import FolderStore, WeightStore
from swarm.session.chain import SessionSpec
from swarm.session.mender import RETRY_EVERY_S
from swarm.session.session import Ends, Session
from swarm.text.modelfiles import model_files
from swarm.text.process import TextProcess
from swarm.text.text import Text, load_text

# What stands for a pin where the weights used so far are to be forgotten.
ANEW: Final = "new"
# KV that a session of unknown length reserves at every hop, where the model's context is not shorter.
DEFAULT_SESSION_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class Model:
    """The model a client uses."""

    name: str
    digest: bytes
    manifest: Manifest

    @property
    def blocks(self) -> int:
        """Transformer blocks."""
        return self.manifest.blocks

    @property
    def stages(self) -> int:
        """Blocks and both ends."""
        return self.manifest.stages

    @property
    def context(self) -> int:
        """The longest sequence in tokens."""
        return self.manifest.context


@dataclass(frozen=True, slots=True)
class Options:
    """How a client behaves."""

    model: str | None = None  # a name or the first digits of a digest, where the swarm serves several
    wait_s: float = 0.0  # how long to wait for stages that nobody serves
    direct: bool = True  # whether hops send to each other
    cache: Path | None = None  # where tokenizers are kept; default: the user's cache folder
    weights: str | None = None  # the digest of the model's weights, or at least its first 32 digits; or ANEW
    store: WeightStore | None = None  # where it is kept which weights were used; default: only in memory

    def __post_init__(self) -> None:
        """Raises: ConfigError, before anything is opened for what cannot be."""
        if self.weights not in (None, ANEW):
            parse_pin(self.weights)

    @property
    def pin(self) -> Pin | None:
        """The weights that the user has named."""
        return parse_pin(self.weights) if self.weights not in (None, ANEW) else None


class Client:
    """A place in the swarm and one of its models. Made by `connect`."""

    def __init__(
        self, view: View, model: Model, text: Text, options: Options, ends: Ends | None, on_event: OnEvent
    ) -> None:
        self.model = model
        self.text = text
        self.last: Answer | None = None  # the latest answer
        self._view = view
        self._options = options
        self._ends = ends
        self._on_event = on_event

    @property
    def book(self) -> RecordBook:
        """Every announcement known, also of peers that nobody has met."""
        return self._view.book

    @property
    def nodes(self) -> list[Announcement]:
        """What the nodes say that answered this client, whatever model they serve."""
        return self._view.answered()

    @property
    def rtt_ms(self) -> dict[str, float]:
        """Measured round-trip times by peer; who did not answer is not in it."""
        return self._view.rtt_ms

    @property
    def weights(self) -> str | None:
        """The digest of the weights of the whole model that this client goes by, if every stage is settled."""
        whole = self._view.verdict(self.model.digest).whole(self.model.stages)
        return whole.hex() if whole is not None else None

    @property
    def wanted(self) -> Span:
        """The stages that hops must run: all, or only the blocks where both ends are here."""
        return Span(1, self.model.stages - 1) if self._ends is not None else Span(0, self.model.stages)

    async def refresh(self) -> None:
        """Ask the swarm for its newest map, and measure distances anew."""
        await self._view.refresh()

    async def plan_route(self, tokens: int = 1) -> Route:
        """The best route now for a session of `tokens`. Raises: NoRoute."""
        await self._view.measure(self.model.digest, self.wanted)
        return self._view.plan(self.model.digest, self.model.blocks, self.wanted, tokens)

    @asynccontextmanager
    async def session(
        self, route: Route | None = None, *, max_tokens: int | None = None
    ) -> AsyncIterator[Session]:
        """A sequence with its KV caches at the hops of `route` (default: the best one).

        `max_tokens` bounds its length and is reserved at every hop (default: the model's context, at most
        DEFAULT_SESSION_TOKENS). Raises: NoRoute; ConfigError.
        """
        session = await self._open(route, max_tokens or min(self.model.context, DEFAULT_SESSION_TOKENS))
        try:
            yield session
        finally:
            await session.aclose()

    async def _open(self, route: Route | None, max_tokens: int) -> Session:
        if max_tokens > self.model.context:
            raise ConfigError(
                f"{max_tokens} tokens are more than the model's context of {self.model.context}"
            )
        await self._view.measure(self.model.digest, self.wanted)
        spec = SessionSpec(
            self.model.digest,
            self.model.blocks,
            self.model.manifest.vocab_size,
            self.model.manifest.hidden_size,
            self.wanted,
            max_tokens,
            self._options.wait_s,
            self._options.direct,
        )
        session = Session(self._view, spec, self._on_event, self._ends)
        try:
            await session.open(route)
        except BaseException:
            await session.aclose()
            raise
        return session

    async def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        chat: bool = False,
        session: Session | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """Continue a prompt (text or token ids), or answer it by the model's chat template if `chat`.

        With a `session` its caches are used, and only what they do not hold yet is sent. `last` tells how it went.
        Raises: NoRoute; ConfigError, if the prompt is empty, longer than the context, or not of the vocabulary.
        """
        began = trio.current_time()
        request = Request(max_new_tokens, sampling or Sampling(), tuple(stop))
        ids = await self._encode(prompt, chat)
        own = session is None
        if session is None:
            self._check_length(len(ids), self.model.context)
            session = await self._open(None, min(len(ids) + max_new_tokens, self.model.context))
        else:
            self._check_length(len(ids), session.spec.max_tokens)
        generation = Generation(session, self.text, ids, request, began)
        try:
            async with aclosing(generation.pieces()) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self.last = generation.answer()
            if own:
                await session.aclose()

    def conversation(
        self, *, system: str | None = None, sampling: Sampling | None = None, max_new_tokens: int = 256
    ) -> Conversation:
        """A chat over several turns that keeps one session and its caches; use it with `async with`."""
        return Conversation(self, system, Request(max_new_tokens, sampling or Sampling()))

    async def _encode(self, prompt: str | Sequence[int], chat: bool) -> list[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        if chat:
            return await self.text.encode_chat([{"role": "user", "content": prompt}])
        return await self.text.encode(prompt)

    def _check_length(self, length: int, most: int) -> None:
        if length == 0:
            raise ConfigError("the prompt is empty: there is nothing to continue")
        if length >= most:
            raise ConfigError(
                f"the prompt has {length} tokens; with room for an answer at most {most - 1} fit"
            )


class Conversation:
    """Turns of a chat. The history is what was said in full; a stopped answer stays as far as it came."""

    def __init__(self, client: Client, system: str | None, request: Request) -> None:
        self.messages: list[dict[str, str]] = []
        self._client = client
        self._system = system
        self._request = request
        self._session: Session | None = None
        self.reset()

    async def __aenter__(self) -> Conversation:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._drop()

    @property
    def last(self) -> Answer | None:
        """The latest answer."""
        return self._client.last

    @property
    def route(self) -> Route | None:
        """The hops in use, once there are any."""
        return self._session.route if self._session is not None else None

    def reset(self) -> None:
        """Forget what was said; caches are rolled back with the next turn."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    async def say(self, text: str) -> AsyncGenerator[Piece, None]:
        """Answer the next turn. Raises what `Client.generate` raises; the turn is then not in the history."""
        turn = {"role": "user", "content": text}
        ids = await self._client.text.encode_chat([*self.messages, turn])
        spoken: list[str] = []
        try:
            session = await self._ready()
            pieces = self._client.generate(
                ids,
                max_new_tokens=self._request.max_new_tokens,
                sampling=self._request.sampling,
                session=session,
            )
            async with aclosing(pieces):
                async for piece in pieces:
                    spoken.append(piece.text)
                    yield piece
        finally:
            if spoken:
                self.messages += [turn, {"role": "assistant", "content": "".join(spoken)}]

    async def _ready(self) -> Session:
        if self._session is None:
            self._session = await self._client._open(
                None, min(self._client.model.context, DEFAULT_SESSION_TOKENS)
            )
        return self._session

    async def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.aclose()


@asynccontextmanager
async def connect(
    *addrs: str,
    model: str | None = None,
    ends: Ends | None = None,
    identity: Identity | None = None,
    wait_s: float = 0.0,
    direct: bool = True,
    weights: str | None = None,
    remember: bool | WeightStore = True,
    on_event: OnEvent | None = None,
) -> AsyncIterator[Client]:
    """Enter the swarm through any of its nodes' addresses.

    `ends` runs both ends of the model here (the client then needs its checkpoint); without, the client needs
    nothing but an address: tokenizer and chat template come from a node, checked against the model's digest.
    `wait_s` is how long to wait for stages that nobody serves. Without `direct` hidden states never pass between
    hops but all through here, for nodes that cannot reach each other anyway.

    `weights` is the digest of the model's weights (its first 32 digits suffice): nodes with others are left out.
    Without, those count that this client used before, and where it used none those that the most nodes serve, by the
    places they are at; what is used is kept for the next time, in the user's cache folder or another store, unless
    `remember` is False. "new" forgets it.

    Raises: ConfigError, for a malformed address or an ambiguous model; Unreachable, if no address answers; NoRoute,
    if nobody serves a model.
    """
    from protocol.transport.libp2p import open_transport  # takes a second, which only this pays

    if not addrs:
        raise ConfigError("give the address of at least one node")
    me = identity or identities.generate()
    store = FolderStore(_cache_folder() / "weights") if remember is True else remember or None
    options = Options(model, wait_s, direct, weights=weights, store=store)
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
        texts = TextProcess()
        nursery.start_soon(texts.run)  # comes up while the swarm is asked
        view = View(transport, nursery, random.Random(), notify=notify, store=options.store)
        await view.enter(addrs)
        said = await _choose(view, options, ends, notify)
        if complaint := view.complaint():
            notify(Noticed(complaint))
        cache = options.cache or _cache_folder() / "models"
        nodes = [node for node in view.answered() if node.digest == said.digest]
        manifest, contents = await model_files(transport, nodes, said.digest, cache)
        view.trusts[said.digest] = await _trust(manifest, options, ends, notify)
        text = await load_text(texts, contents)
        yield Client(view, Model(said.model, said.digest, manifest), text, options, ends, notify)


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
            notify(Waiting((), str(error), left_s))
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
