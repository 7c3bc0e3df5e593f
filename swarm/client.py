"""The client: one place in a swarm, and one of its models, whose layers others serve.

async with swarm.connect("/ip4/…/udp/…/quic-v1/p2p/…") as client:
    print(await client.plan_route())
    async for piece in client.generate("Why is the sky blue?"):
        print(piece.text, end="")
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeGuard, Unpack, cast, overload

from protocol import limits
from protocol.book import RecordBook
from protocol.errors import ConfigError, NoRoute
from protocol.model import Manifest, Span
from protocol.records import Announcement
from swarm.answers import Answers, Prompt, Prompts, Several
from swarm.conversation import Conversation
from swarm.decoding import Sampling
from swarm.events import OnEvent
from swarm.generation import Generation, Start, check_length
from swarm.request import Asking, Request
from swarm.routing.precision import Precisions
from swarm.routing.route import BEGIN_TOKENS, Need, Route
from swarm.routing.view import View
from swarm.session.chain import SessionSpec
from swarm.session.ends import Ends
from swarm.session.session import Session
from swarm.text.text import Text

# KV that a session of unknown length reserves at every hop, where the model's context is not shorter.
DEFAULT_SESSION_TOKENS: Final = 4096
# A turn of a conversation of which nothing else is said.
TURN: Final = Request(max_new_tokens=256)
EACH: Final = Several()


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


class Client:
    """A place in the swarm and one of its models. Made by `connect`."""

    def __init__(
        self,
        view: View,
        model: Model,
        text: Text,
        ends: Ends | None,
        on_event: OnEvent,
        *,
        wait_s: float,
        direct: bool,
        reuse: bool,
    ) -> None:
        self.model = model
        self.text = text
        self._view = view
        self._ends = ends
        self._on_event = on_event
        self._wait_s = wait_s
        self._direct = direct
        self._reuse = reuse

    @property
    def book(self) -> RecordBook:
        """Every announcement known, also of peers that nobody has met."""
        return self._view.book

    @property
    def nodes(self) -> list[Announcement]:
        """What the nodes say that answered this client, whatever model they serve."""
        return self._view.answered()

    def silent(self, most: int) -> list[Announcement]:
        """What others say of nodes of the models known here that do not answer; at most so many."""
        return self._view.silent(most)

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
    def precisions(self) -> Precisions:
        """What nodes may compute in to serve this client."""
        return self._view.precisions

    @property
    def tokenizer(self) -> bytes:
        """The digest of the model's tokenizer, as its manifest has it."""
        return self.model.manifest.tokenizer

    @property
    def vocab_size(self) -> int:
        """Logits of one row, which may be more than the tokenizer has tokens."""
        return self.model.manifest.vocab_size

    @property
    def suggested(self) -> Sampling:
        """How the checkpoint says that tokens are chosen: always the best, where it says nothing of drawing.

        Nothing goes by it that is not asked to: `generate(..., sampling=client.suggested)`.
        """
        said: Any = self.text.suggested
        return Sampling(**said)

    @property
    def wanted(self) -> Span:
        """The stages that hops must run: all, or only the blocks where both ends are here."""
        return Span(1, self.model.stages - 1) if self._ends is not None else Span(0, self.model.stages)

    @property
    def usual_tokens(self) -> int:
        """The length of a session of which nothing else is said."""
        return min(self.model.context, DEFAULT_SESSION_TOKENS)

    async def refresh(self) -> None:
        """Ask the swarm for its newest map, and measure distances anew."""
        await self._view.refresh()

    async def plan_route(self, tokens: int = 1) -> Route:
        """The best route now for a session of `tokens`. Raises: NoRoute."""
        await self._view.measure(self.model.digest, self.wanted)
        return self._view.plan(self.model.digest, Need(self.wanted, self.model.blocks, tokens))

    def pause_s(self, error: NoRoute) -> float | None:
        """How long until somebody who answers may be asked again for the stages that are missing; None: nobody."""
        return self._view.pause_s(self.model.digest, error, tokens=1)

    @asynccontextmanager
    async def session(
        self, route: Route | None = None, *, max_tokens: int | None = None
    ) -> AsyncIterator[Session]:
        """A sequence with its KV caches at the hops of `route` (default: the best one).

        `max_tokens` bounds its length and is reserved at every hop (default: the model's context, at most
        DEFAULT_SESSION_TOKENS). Raises: NoRoute; ConfigError.
        """
        async with aclosing(self.new_session(max_tokens or self.usual_tokens)) as session:
            await session.open(route)
            yield session

    def new_session(self, max_tokens: int) -> Session:
        """A session of at most `max_tokens` that is not open yet; whoever asks for it closes it.

        Raises: ConfigError, for more than the model's context.
        """
        if max_tokens > self.model.context:
            raise ConfigError(
                f"{max_tokens} tokens are more than the model's context of {self.model.context}"
            )
        manifest = self.model.manifest
        spec = SessionSpec(
            self.model.digest,
            self.model.blocks,
            manifest.vocab_size,
            manifest.hidden_size,
            self.wanted,
            max_tokens,
            self._wait_s,
            self._direct,
            self._reuse,
        )
        return Session(self._view, spec, self._on_event, self._ends)

    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        chat: bool = False,
        session: Session | None = None,
        request: Request | None = None,
        **asking: Unpack[Asking],
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompt: Prompts,
        *,
        chat: bool = False,
        several: Several = EACH,
        request: Request | Sequence[Request] | None = None,
        **asking: Unpack[Asking],
    ) -> Answers: ...

    def generate(
        self,
        prompt: Prompt | Prompts,
        *,
        chat: bool = False,
        session: Session | None = None,
        several: Several = EACH,
        request: Request | Sequence[Request] | None = None,
        **asking: Unpack[Asking],
    ) -> Generation | Answers:
        """Continue a prompt (text or token ids), or answer it by the model's chat template if `chat`.

        How tokens are chosen and when the answer ends is said by a `request`, or by its fields as arguments. Iterate
        what is returned for the text; its `answer` tells how it went. Several may be under way at once, each in its
        own session. With a `session` its caches are used, and only what they do not hold yet is sent.

        Of a list of prompts each is answered so, as `several` says, all by one request or each by its own; iterate
        what is returned for what became of each.

        Raises, when it is iterated: NoRoute; ConfigError, if the prompt is empty, longer than the context, or not of
        the vocabulary. At once: ConfigError, where what is asked cannot be.
        """
        one = Request() if request is None else request
        each = [one] if isinstance(one, Request) else one
        asked = [self._fitting(replace(request, **asking)) for request in each]
        if are_several(prompt):
            if session is not None:
                raise ConfigError("several prompts have a session each: leave out the one given")
            if asked and isinstance(one, Request):
                asked *= len(prompt)
            if len(asked) != len(prompt):
                raise ConfigError(
                    f"{len(prompt)} prompts have {len(prompt)} requests or one, not {len(asked)}"
                )
            return self._several(prompt, chat, several, asked)
        if not isinstance(one, Request):
            raise ConfigError("one prompt has one request")
        return self._generation(cast(Prompt, prompt), None, chat=chat, session=session, request=asked[0])

    def _generation(
        self, prompt: Prompt, route: Route | None, *, chat: bool, session: Session | None, request: Request
    ) -> Generation:
        prepared = partial(
            self._prepared, prompt, request.max_new_tokens, chat=chat, session=session, route=route
        )
        return Generation(self.text, request, prepared)

    def _several(
        self, prompts: Sequence[Prompt], chat: bool, several: Several, requests: Sequence[Request]
    ) -> Answers:
        def begin(number: int, route: Route | None) -> Generation:
            return self._generation(prompts[number], route, chat=chat, session=None, request=requests[number])

        # More than a hop has seats for, for one peer, would wait for one another there.
        sessions = max(
            request.chosen_strategy().sessions for request in {id(r): r for r in requests}.values()
        )
        how = replace(several, at_once=min(several.at_once, max(1, limits.SESSIONS_PER_PEER // sessions)))
        return Answers(prompts, how, begin, partial(self._plan_apart, how.routes), self._view.nursery)

    async def _plan_apart(self, most: int) -> Sequence[Route]:
        """Routes to choose from; none, where each session is to plan its own."""
        if most == 1:
            return ()
        await self._view.measure(self.model.digest, self.wanted)
        try:
            return self._view.plan_apart(
                self.model.digest, Need(self.wanted, self.model.blocks, BEGIN_TOKENS), most
            )
        except NoRoute:  # each says so of itself, when it has looked further
            return ()

    @asynccontextmanager
    async def _prepared(
        self,
        prompt: Prompt,
        max_new_tokens: int,
        *,
        chat: bool,
        session: Session | None,
        route: Route | None,
    ) -> AsyncIterator[Start]:
        ids = await self._encode(prompt, chat)
        if session is not None:
            check_length(ids, session.spec.max_tokens)
            yield Start(session, ids)
            return
        check_length(ids, self.model.context)
        async with aclosing(self.new_session(min(len(ids) + max_new_tokens, self.model.context))) as own:
            yield Start(own, ids, route)

    def conversation(
        self, *, system: str | None = None, request: Request = TURN, **asking: Unpack[Asking]
    ) -> Conversation:
        """A chat over several turns that keeps one session and its caches; use it with `async with`.

        Its `request`, or the fields of one, say how each turn is answered.
        """
        new_session = partial(self.new_session, self.usual_tokens)
        return Conversation(self.text, new_session, system, self._fitting(replace(request, **asking)))

    def _fitting(self, request: Request) -> Request:
        """Raises: ConfigError, if an amateur is lacking, or not wanted, or if another model's ids are other text."""
        strategy = request.chosen_strategy()
        if strategy.needs_amateur not in (None, request.amateur is not None):
            needs = "needs" if strategy.needs_amateur else "has no use for"
            raise ConfigError(f"{strategy.name} {needs} an amateur, a second model with the same tokenizer")
        for word, other in (("amateur", request.amateur), ("draft", request.draft)):
            if other is not None and other.tokenizer != self.tokenizer:
                raise ConfigError(
                    f"the {word} has another tokenizer than {self.model.name}: its ids are other text"
                )
        return request

    async def _encode(self, prompt: Prompt, chat: bool) -> list[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        if chat:
            return await self.text.encode_chat([{"role": "user", "content": prompt}])
        return await self.text.encode(prompt)


def are_several(prompt: Prompt | Prompts) -> TypeGuard[Prompts]:
    """Whether it is a list of prompts: of texts, or of lists of ids."""
    return isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
