"""One sequence along a route: steps, and what came back.

Whoever waits for a step also mends what breaks meanwhile (`swarm.mender`), so there is one place where hops change
and it never runs beside a step that is being sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import trio

from protocol import limits
from protocol.candidates import NOTHING, Candidates, Want
from protocol.errors import ConfigError, Lost, Malformed, PeerUnavailable, RemoteProtocolError, SwarmError
from protocol.journal import Journal
from protocol.messages import Ack, Error, LinkDown, Message, Output, Pong, Step
from protocol.model import Manifest
from protocol.tensors import Tensor, from_numpy
from swarm.chain import SessionSpec, new_chain
from swarm.discovery import View
from swarm.events import OnEvent, Rerouted
from swarm.hop import HopLink
from swarm.mender import Mender
from swarm.outputs import Asked
from swarm.route import Route
from swarm.watch import Ask, GiveUp, Unlinked, look

# Tokens of a prompt that travel together: small enough that hops work at once, large enough for full matmuls.
PREFILL_CHUNK: Final = 128
# Steps on their way at once; a hop that holds STEPS_IN_FLIGHT reads no more, and so would answer no ping.
STEPS_OUT: Final = limits.STEPS_IN_FLIGHT // 2
WATCH_EVERY_S: Final = 0.25
# Repairs within one step; each bans a peer or finds none, so more than this means that peers play with us.
REPAIRS: Final = 32


class Ends(Protocol):
    """Both ends of the model at the client (see `node.engine.ends`); called in worker threads."""

    @property
    def manifest(self) -> Manifest:
        """Of the model whose ends these are."""

    def stage_digests(self) -> dict[int, bytes]:
        """The digests of the weights of both ends, by stage; reads them all."""

    def embed(self, tokens: Tensor, position: int) -> Tensor:
        """int32 [tokens] -> hidden states [tokens, hidden_size]."""

    def head(self, hidden: Tensor, want: Want, position: int) -> Candidates:
        """Hidden states [rows, hidden_size], the first at `position` -> candidates of each row."""


class Session:
    """A sequence and its KV caches along a route. One task steps at a time."""

    def __init__(self, view: View, spec: SessionSpec, on_event: OnEvent, ends: Ends | None = None) -> None:
        self.spec = spec
        self.tokens: list[int] = []  # what the caches hold, by position
        self._chain = new_chain(spec)
        self._mender = Mender(self._chain, view, on_event, self._start_reading)
        self._ends = ends
        self._nursery = view.nursery
        self._next_number = 0
        self._asked: dict[int, Asked] = {}  # of the steps that are out
        self._results: dict[int, Output] = {}
        self._fatal: SwarmError | None = None
        self._mended = 0  # repairs within this step
        self._waiting_since: float | None = None
        self._watching = trio.CancelScope()

    @property
    def length(self) -> int:
        """Tokens in the caches."""
        return len(self.tokens)

    @property
    def steps(self) -> int:
        """Steps sent; the next one has this number."""
        return self._next_number

    @property
    def route(self) -> Route:
        """The hops in use now."""
        hops = tuple(link.hop for link in self._chain.links)
        return Route(hops, self.spec.blocks, sum(hop.expected_ms for hop in hops))

    @property
    def hops(self) -> tuple[HopLink, ...]:
        """The open hops, with what each step cost them."""
        return tuple(self._chain.links)

    @property
    def reroutes(self) -> list[Rerouted]:
        """Every hop that was replaced."""
        return self._mender.reroutes

    async def open(self, route: Route | None = None) -> None:
        """Open the hops, along `route` if its peers still serve. Raises: NoRoute."""
        await self._mender.mend(route)
        self._nursery.start_soon(self._watch)

    async def aclose(self) -> None:
        """Tell the hops that the session is over, and forget them. Safe to call twice."""
        self._watching.cancel()
        links, self._chain.links = self._chain.links, []
        try:
            with trio.move_on_after(0.5):
                for link in links:
                    await link.close()
        finally:
            for link in links:
                link.fail("the session is over")

    async def step(
        self, tokens: Sequence[int], *, position: int | None = None, want: Want | None = None
    ) -> Candidates | None:
        """Push tokens through the route at `position` (default: after all others; earlier ones roll back).

        Returns the candidates wanted (default: the best one for the token after the last), or None if nothing is.
        Long inputs go in chunks, each sent without waiting for the one before. Survives failing hops.

        Raises: ConfigError, for tokens outside the vocabulary or more than the session holds; NoRoute, when stages
        are left that nobody serves (the session stays usable, the step can be tried again); RemoteProtocolError.
        """
        want = want or Want()
        position = self.length if position is None else position
        self._check(tokens, position)
        self._fatal, self._mended = None, 0
        self._waiting_since = trio.current_time()
        try:
            numbers = await self._send_chunks(tokens, position, want)
            outputs = await self._results_of(numbers)
        finally:
            self._waiting_since = None
            self._results.clear()
            self._asked.clear()  # also of a step that was given up: nobody owes its output any more
        del self.tokens[position:]
        self.tokens.extend(tokens)
        return join_candidates([await self._candidates(output, want) for output in outputs])

    # -- sending

    def _check(self, tokens: Sequence[int], position: int) -> None:
        if not tokens:
            raise ConfigError("a step needs at least one token")
        if not 0 <= position <= self.length:
            raise ConfigError(f"position {position} is beyond the {self.length} tokens of the session")
        if position + len(tokens) > self.spec.max_tokens:
            raise ConfigError(
                f"{position + len(tokens)} tokens do not fit: the session was opened for {self.spec.max_tokens}"
            )
        if min(tokens) < 0 or max(tokens) >= self.spec.vocab_size:
            raise ConfigError(f"a token outside the vocabulary of {self.spec.vocab_size}")

    async def _send_chunks(self, tokens: Sequence[int], position: int, want: Want) -> range:
        """Send all chunks; returns their step numbers."""
        ids = from_numpy(np.asarray(tokens, np.int32))
        first = self._next_number
        for start in range(0, len(tokens), PREFILL_CHUNK):
            stop = min(start + PREFILL_CHUNK, len(tokens))
            rows = ids.row_slice(start, stop)
            if self._ends is not None:
                rows = await trio.to_thread.run_sync(self._ends.embed, rows, position + start)
            chunk_want = self._hop_want(want, last=stop == len(tokens))
            number, self._next_number = self._next_number, self._next_number + 1
            self._asked[number] = Asked(chunk_want, stop - start)
            step = Step(number, position + start, rows, chunk_want)
            while step.number - self._chain.done >= STEPS_OUT:
                await self._progress()
            self._send(self._chain.journal, self._chain.first, step)
        return range(first, self._next_number)

    def _hop_want(self, want: Want, *, last: bool) -> Want:
        """What a chunk asks of the hops: with both ends here they return hidden states, not candidates."""
        if not (last or want.every) or want.kind == "nothing":
            return NOTHING
        return Want("hidden", every=want.every) if self._ends is not None else want

    def _send(self, journal: Journal, link: HopLink | None, step: Step) -> None:
        """Note a step in the journal of a boundary and send it to the hop behind, if that lives."""
        journal.append(step.number, step.position, step.inputs, step.want)
        if link is not None and link.feed is journal:
            link.post(step)

    # -- receiving

    def _start_reading(self, link: HopLink) -> None:
        self._nursery.start_soon(self._read, link)
        self._nursery.start_soon(link.send_posted)

    async def _read(self, link: HopLink) -> None:
        """Take what a hop says until its stream ends."""
        try:
            while (message := await link.channel.receive()) is not None:
                link.heard_at = trio.current_time()
                self._take(link, message)
            self._mender.lose(link, "closed the stream", honest=True)
        except (PeerUnavailable, RemoteProtocolError) as error:
            self._mender.lose(link, str(error), honest=isinstance(error, PeerUnavailable))

    def _take(self, link: HopLink, message: Message) -> None:
        """One message of a hop. Raises: Malformed, if it says what cannot be."""
        if isinstance(message, Ack | Output) and message.number >= self._next_number:
            raise Malformed(f"speaks of step {message.number}, which was never sent")
        match message:
            case Ack():
                link.note_ack(message)
                if link is self._chain.last:
                    self._through(message.number)
            case Output() if link is self._chain.last:
                asked = self._asked.get(message.number)
                if asked is not None and asked.expects_output:
                    asked.check(message, self.spec.vocab_size)
                    self._results[message.number] = message
                    self._through(message.number)
            case Output():
                self._carry(link, message)
            case Pong():
                link.note_pong(message)
                self._chain.notify()
            case LinkDown():
                behind = self._chain.behind(link)
                if behind is not None and behind.session == message.next:
                    link.link_down = message.reason
                    self._chain.notify()
            case Error():
                self._take_error(link, message)

    def _through(self, number: int) -> None:
        """The last hop is done with step `number` and so with all before it. Raises: Malformed, if it is not."""
        for earlier, asked in self._asked.items():
            if earlier <= number and asked.expects_output and earlier not in self._results:
                raise Malformed(f"passed over the output of step {earlier}")
        self._chain.advance(number + 1)

    def _take_error(self, link: HopLink, error: Error) -> None:
        before = self._chain.before(link)
        if error.code == "bad_hidden" and before is not None and link.feed is None:
            self._mender.lose(before, f"sent bad hidden states: {error.message}", honest=False)
            link.fail(error.message)  # its session is over, but the fault is not its own
            return
        if not error.elsewhere:
            self._fatal = Malformed(f"{link.hop.peer} refused the step: {error.message}")
        self._mender.lose(link, error.message, honest=error.code == "leaving")

    def _carry(self, link: HopLink, output: Output) -> None:
        """Take hidden states over a boundary that the client bridges."""
        behind = self._chain.behind(link)
        if behind is None or behind.feed is None or output.hidden is None:
            return
        if output.number <= behind.feed.last_number:
            return  # a repeated step was answered again
        if output.number < self._chain.done:
            step = Step(output.number, output.position, output.hidden, NOTHING, behind.fill_until)
        else:
            asked = self._asked.get(output.number)
            want = asked.want if asked is not None else NOTHING
            step = Step(output.number, output.position, output.hidden, want)
        # what the hop behind got before the boundary was bridged only fills our journal
        self._send(behind.feed, behind if output.number >= behind.received else None, step)

    async def _results_of(self, numbers: range) -> list[Output]:
        """Wait until all these steps are through; the outputs there are, in order."""
        while self._chain.done < numbers.stop:
            await self._progress()
        return [self._results[n] for n in numbers if n in self._results]

    async def _progress(self) -> None:
        """Wait for something to happen, and mend what broke."""
        if self._fatal is not None:
            raise self._fatal
        if not self._chain.broken:
            await self._chain.wait_changed()
            return
        self._mended += 1
        if self._mended > REPAIRS:
            raise Lost(f"gave up after {REPAIRS} repairs within one step")
        await self._mender.mend()

    async def _candidates(self, output: Output, want: Want) -> Candidates:
        """What a checked output amounts to, by way of our own head if we have it."""
        if self._ends is None:
            assert output.candidates is not None
            return output.candidates
        assert output.hidden is not None
        return await trio.to_thread.run_sync(self._ends.head, output.hidden, want, output.position)

    # -- noticing failures

    async def _watch(self) -> None:
        """Ping hops that are silent while a step is out; give up those that stay silent.

        A machine too busy to run this in time is too busy to judge others: their time then begins anew.
        """
        judged_from = 0.0
        with self._watching:
            while True:
                began = trio.current_time()
                await trio.sleep(WATCH_EVERY_S)
                now = trio.current_time()
                if now - began > 2 * WATCH_EVERY_S:
                    judged_from = now
                if self._waiting_since is not None:
                    self._act_on_silence(max(self._waiting_since, judged_from))

    def _act_on_silence(self, since: float) -> None:
        for verdict in look(self._chain.links, trio.current_time(), since):
            match verdict:
                case Ask(link):
                    self._nursery.start_soon(link.ping)
                case GiveUp(link, reason, honest):
                    self._mender.lose(link, reason, honest=honest)
                case Unlinked(link):
                    link.link_down = "what it sends on does not arrive"
                    self._chain.notify()


def join_candidates(parts: Sequence[Candidates]) -> Candidates | None:
    """All rows in order; None if there are no parts."""
    if len(parts) < 2:
        return parts[0] if parts else None
    names = ("ids", "logits", "lse", "asked")
    return Candidates(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
