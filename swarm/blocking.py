"""The client without async: the same calls from an ordinary thread.

with swarm.blocking.connect("/ip4/…/udp/…/quic-v1/p2p/…") as client:
    for piece in client.generate("Why is the sky blue?"):
        print(piece.text, end="", flush=True)

The network lives in a background thread. Ctrl-C (KeyboardInterrupt) during a call ends that call, not the client.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Unpack, cast, overload

from protocol.book import RecordBook
from protocol.records import Announcement
from swarm import answers as several_answers
from swarm import client as clients
from swarm import conversation as conversations
from swarm import entry
from swarm import generation as generations
from swarm.answer import Answer, Piece, Settled
from swarm.answers import Answered, Prompt, Prompts, Several
from swarm.client import Model
from swarm.decoding import Sampling
from swarm.events import Event
from swarm.portal import Portal
from swarm.request import Asking, Request
from swarm.routing.precision import Precisions
from swarm.routing.route import Route
from swarm.streamers import Feeding, Streamer
from swarm.text import text as trio_text


class Client:
    """`swarm.Client`, called from one ordinary thread. Made by `connect`."""

    def __init__(self, portal: Portal, client: clients.Client) -> None:
        self._portal = portal
        self._client = client

    @property
    def model(self) -> Model:
        """The model in use."""
        return self._client.model

    @property
    def text(self) -> Text:
        """Its tokenizer and chat template."""
        return Text(self._portal, self._client.text)

    @property
    def suggested(self) -> Sampling:
        """How the checkpoint says that tokens are chosen."""
        return self._client.suggested

    @property
    def book(self) -> RecordBook:
        """Every announcement known."""
        return self._client.book

    @property
    def nodes(self) -> list[Announcement]:
        """What the nodes say that answered this client."""
        return self._client.nodes

    @property
    def rtt_ms(self) -> dict[str, float]:
        """Measured round-trip times by peer."""
        return dict(self._client.rtt_ms)

    @property
    def weights(self) -> str | None:
        """The digest of the model's weights that this client goes by, if every stage is settled."""

        async def whole() -> str | None:
            return self._client.weights

        return self._portal.call(whole)

    @property
    def precisions(self) -> Precisions:
        """What nodes may compute in to serve this client."""
        return self._client.precisions

    @contextmanager
    def beside(self, *addrs: str, **how: Any) -> Iterator[clients.Client]:
        """Another client, to be the amateur of a request, or to draft; takes and raises what `swarm.connect` does."""
        with self._portal.holding(entry.connect(*addrs, **how)) as other:
            yield other

    def refresh(self) -> None:
        """Ask the swarm for its newest map."""
        self._portal.call(self._client.refresh)

    def plan_route(self, tokens: int = 1) -> Route:
        """The best route now. Raises: NoRoute."""
        return self._portal.call(self._client.plan_route, tokens)

    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        chat: bool = False,
        request: Request | None = None,
        **asking: Unpack[Asking],
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompt: Prompts,
        *,
        chat: bool = False,
        several: Several = clients.EACH,
        request: Request | Sequence[Request] | None = None,
        **asking: Unpack[Asking],
    ) -> Answers: ...

    def generate(
        self,
        prompt: Prompt | Prompts,
        *,
        chat: bool = False,
        several: Several = clients.EACH,
        request: Request | Sequence[Request] | None = None,
        **asking: Unpack[Asking],
    ) -> Generation | Answers:
        """Continue a prompt, or answer it by the chat template if `chat`, or several; see `swarm.Client.generate`."""
        if clients.are_several(prompt):
            many = self._client.generate(prompt, chat=chat, several=several, request=request, **asking)
            return Answers(self._portal, many)
        one = cast("Request | None", request)
        made = self._client.generate(cast(Prompt, prompt), chat=chat, request=one, **asking)
        return Generation(self._portal, made)

    @contextmanager
    def conversation(
        self, *, system: str | None = None, request: Request = clients.TURN, **asking: Unpack[Asking]
    ) -> Iterator[Conversation]:
        """A chat over several turns that keeps its caches at the nodes; see `swarm.Client.conversation`."""
        talk = self._client.conversation(system=system, request=request, **asking)
        with self._portal.holding(talk) as entered:
            yield Conversation(self._portal, entered)


class Generation:
    """`swarm.Generation`, called from one ordinary thread: leaving the loop over its pieces stops the answer."""

    def __init__(self, portal: Portal, generation: generations.Generation) -> None:
        self._portal = portal
        self._generation = generation
        self._pieces = portal.iterate(lambda: generation)

    def __iter__(self) -> Generator[Piece, None, None]:
        """Raises: NoRoute; ConfigError."""
        try:
            yield from self._pieces
        finally:
            self.close()

    def close(self) -> None:
        """Stop the answer where it is. Safe when it is over."""
        self._pieces.close()

    def moments(self) -> Generator[Settled | str | Event, None, None]:
        """In place of its pieces: tokens, text and events; see `swarm.Generation.moments`."""
        yield from self._portal.iterate(self._generation.moments)

    def feed(self, streamer: Streamer) -> Answer:
        """Iterate it into a streamer, which is called in this thread; see `swarm.streamers.feed`."""
        feeding = Feeding()
        try:
            for piece in self:
                for value in feeding.values(self._generation.prompt, piece.tokens):
                    streamer.put(value)
        finally:
            streamer.end()
        return self.answer

    @property
    def answer(self) -> Answer:
        """What there is so far, which may be more than the loop has had of it."""
        return self._generation.answer

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened to its session meanwhile."""
        return self._generation.events


class Answers:
    """`swarm.Answers`, called from one ordinary thread: leaving the loop over them stops all that are under way."""

    def __init__(self, portal: Portal, answers: several_answers.Answers) -> None:
        self._answers = answers
        self._given = portal.iterate(lambda: answers)

    def __iter__(self) -> Generator[Answered, None, None]:
        """What became of each prompt. Raises what functions of the request raise."""
        try:
            yield from self._given
        finally:
            self._given.close()

    def __len__(self) -> int:
        """How many prompts there are."""
        return len(self._answers)


class Conversation:
    """`swarm.Conversation`, called from one ordinary thread."""

    def __init__(self, portal: Portal, talk: conversations.Conversation) -> None:
        self._portal = portal
        self._talk = talk

    @property
    def messages(self) -> list[dict[str, str]]:
        """What was said so far."""
        return list(self._talk.messages)

    @property
    def route(self) -> Route | None:
        """The hops in use, once there are any."""
        return self._talk.route

    @property
    def request(self) -> Request:
        """How the next turns are answered; may be set between turns."""
        return self._talk.request

    @request.setter
    def request(self, request: Request) -> None:
        self._talk.request = request

    def say(self, text: str) -> Generation:
        """The answer to the next turn."""
        return Generation(self._portal, self._talk.say(text))

    def reset(self) -> None:
        """Forget what was said."""
        self._talk.reset()


class Text:
    """`Client.text`, called from one ordinary thread."""

    def __init__(self, portal: Portal, text: trio_text.Text) -> None:
        self._portal = portal
        self._text = text

    @property
    def about(self) -> trio_text.About:
        """What the model's small files say."""
        return self._text.about

    @property
    def eos(self) -> frozenset[int]:
        """Ids that end an answer."""
        return self._text.eos

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template."""
        return self._text.chats

    def encode(self, text: str) -> list[int]:
        """The ids of a text to continue."""
        return self._portal.call(self._text.encode, text)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids of a conversation up to where the assistant speaks next. Raises: ConfigError."""
        return self._portal.call(self._text.encode_chat, messages)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of all tokens at once."""
        return self._portal.call(self._text.decode, ids)


@contextmanager
def connect(*addrs: str, **how: Any) -> Iterator[Client]:
    """Enter the swarm; takes and raises what `swarm.connect` does. `on_event` is called in another thread."""
    with Portal() as portal, portal.holding(entry.connect(*addrs, **how)) as client:
        yield Client(portal, client)
