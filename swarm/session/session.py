"""One sequence along a route: steps, and what came back.

Whoever waits for a step also mends what breaks meanwhile (`mender`), so there is one place where hops change
and it never runs beside a step that is being sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import trio

from protocol import limits
from protocol.candidates import NOTHING, Candidates, Want
from protocol.errors import (
    ConfigError,
    LocalProtocolError,
    Lost,
    Malformed,
    NoRoute,
    PeerUnavailable,
    RemoteProtocolError,
    TooLarge,
)
from protocol.journal import Journal
from protocol.messages import Ack, Error, LinkDown, Message, Output, Pong, Step
from protocol.model import Manifest
from protocol.tensors import Tensor, from_numpy
from swarm.events import Event, OnEvent, Rerouted
from swarm.routing.route import Route
from swarm.routing.view import View
from swarm.session.chain import SessionSpec, new_chain
from swarm.session.hop_stream import HopStream, quoted
from swarm.session.mender import Mender
from swarm.session.outputs import (
    Asked,
    Misfit,
    answer_bytes,
    check_candidates,
    check_hidden,
    fit_rows,
    join_candidates,
)
from swarm.session.refusals import Refusals
from swarm.session.watch import GiveUp, Probe, Slow, Unlinked, Watch

# Tokens of a prompt that travel together: small enough that hops work at once, large enough for full matmuls.
PREFILL_CHUNK: Final = 128
# Steps on their way at once; a hop that holds STEPS_IN_FLIGHT reads no more, and so would answer no ping.
STEPS_OUT: Final = limits.STEPS_IN_FLIGHT // 2
WATCH_EVERY_S: Final = 0.25
# Repairs within one step that leave nobody new: peers who fail again and again, whatever we do. Who has not failed
# in this step is always tried.
REPAIRS: Final = 32
# Messages taken from one hop before others have their turn: a flood must not hold up the event loop.
TAKEN_AT_ONCE: Final = 32
# Each step has an ack and an output at most, each time it is sent.
SAID_OF_A_STEP: Final = 2
# What hops say when they end a session through nobody's fault.
HONEST_ENDS: Final = frozenset(("leaving", "idle", "gave_way"))


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


@dataclass(frozen=True, slots=True)
class Result:
    """An output that was asked for, and who returned it."""

    output: Output
    link: HopStream


class Session:
    """A sequence and its KV caches along a route. One task steps at a time."""

    def __init__(self, view: View, spec: SessionSpec, on_event: OnEvent, ends: Ends | None = None) -> None:
        self.spec = spec
        self.tokens: list[int] = []  # what the caches hold, by position
        self._chain = new_chain(spec)
        self._mender = Mender(self._chain, view, on_event, self._start_reading)
        self._ends = ends
        self._view = view
        self._opened = False
        self._next_number = 0
        self._asked: dict[int, Asked] = {}  # of the steps that are out
        self._results: dict[int, Result] = {}
        self._answer_bytes = 0  # the largest frame that any step asked for
        self._refusals = Refusals()  # of this step
        self._tried: set[str] = set()  # peers that failed within this step
        self._mended = 0  # repairs within this step that left nobody new
        self._watch_over = Watch(self._chain.journal)
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
    def hops(self) -> tuple[HopStream, ...]:
        """The open hops, with what each step cost them."""
        return tuple(self._chain.links)

    @property
    def id(self) -> str:
        """What its events are marked with."""
        return self._chain.id

    @property
    def events(self) -> Sequence[Event]:
        """Everything that happened to it; of a wait only how it began."""
        return self._mender.events

    @property
    def reroutes(self) -> list[Rerouted]:
        """Every hop that was replaced."""
        return [event for event in self._mender.events if isinstance(event, Rerouted)]

    async def open(self, route: Route | None = None) -> None:
        """Open the hops, along `route` if its peers still serve; nothing, if they are open. Raises: NoRoute."""
        if self._opened:
            return
        await self._view.measure(self.spec.digest, self.spec.wanted)
        await self._mender.mend(route)
        self._opened = True
        self._view.nursery.start_soon(self._watch)

    async def aclose(self) -> None:
        """Tell the hops that the session is over, and forget them. Safe to call twice."""
        self._watching.cancel()
        links, self._chain.links = self._chain.links, []
        try:
            with trio.move_on_after(0.5):
                async with trio.open_nursery() as nursery:
                    for link in links:
                        nursery.start_soon(link.close)
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
        are left that nobody serves (the session stays usable, the step can be tried again); RemoteProtocolError;
        LocalProtocolError, while another step is out.
        """
        if self._waiting_since is not None:
            raise LocalProtocolError("a session takes one step at a time")
        want = want or Want()
        position = self.length if position is None else position
        self._check(tokens, position, want)
        self._refusals, self._tried, self._mended = Refusals(), set(), 0
        self._waiting_since = trio.current_time()
        try:
            found = await self._ask(tokens, position, want)
        finally:
            self._waiting_since = None
            self._results.clear()
            self._asked.clear()  # also of a step that was given up: nobody owes its output any more
        del self.tokens[position:]
        self.tokens.extend(tokens)
        return join_candidates(found)

    async def _ask(self, tokens: Sequence[int], position: int, want: Want) -> list[Candidates]:
        """Send the tokens, and again while what comes back turns out to be good for nothing."""
        while True:
            numbers = await self._send_chunks(tokens, position, want)
            results = await self._results_of(numbers)
            found: list[Candidates] = []
            for result in results:
                try:
                    found.append(await self._candidates(result.output, want))
                except Malformed as error:
                    self._mender.lose_over_input(result.link, str(error))
                    break
            else:
                return found

    # -- sending

    def _check(self, tokens: Sequence[int], position: int, want: Want) -> None:
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
        if want.ids and not 0 <= min(want.ids) <= max(want.ids) < self.spec.vocab_size:
            raise ConfigError(f"logits wanted of an id outside the vocabulary of {self.spec.vocab_size}")

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
            asked = self._asked[number] = Asked(chunk_want, position + start, stop - start)
            if asked.expects_output:
                self._allow(asked)
            step = Step(number, position + start, rows, chunk_want)
            while step.number - self._chain.done >= STEPS_OUT:
                await self._progress()
            self._send(self._chain.journal, self._chain.first, step)
        return range(first, self._next_number)

    def _allow(self, asked: Asked) -> None:
        """Let the last hop answer in a frame that is large enough."""
        needed = answer_bytes(asked, self.spec.vocab_size, self.spec.hidden_size)
        self._answer_bytes = max(self._answer_bytes, needed)
        if self._chain.last is not None:
            self._chain.last.allow(self._answer_bytes)

    def _hop_want(self, want: Want, *, last: bool) -> Want:
        """What a chunk asks of the hops: with both ends here they return hidden states, not candidates."""
        if not (last or want.every) or want.kind == "nothing":
            return NOTHING
        return Want("hidden", every=want.every) if self._ends is not None else want

    def _send(self, journal: Journal, link: HopStream | None, step: Step) -> None:
        """Note a step in the journal of a boundary and send it to the hop behind, if that lives."""
        journal.append(step.number, step.position, step.inputs, step.want)
        if link is not None and link.feed is journal:
            link.post(step)

    # -- receiving

    def _start_reading(self, link: HopStream) -> None:
        if link is self._chain.last:
            link.allow(self._answer_bytes)
        self._view.nursery.start_soon(self._read, link)
        self._view.nursery.start_soon(link.send_posted)

    async def _read(self, link: HopStream) -> None:
        """Take what a hop says until its stream ends."""
        taken = 0
        try:
            while (message := await link.channel.receive()) is not None:
                if link.failure is not None:
                    return
                self._take(link, message)
                taken += 1
                if taken % TAKEN_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
            self._mender.lose(link, "closed the stream", honest=True)
        except (Misfit, TooLarge) as error:
            self._mender.lose_over_input(link, str(error))
        except (PeerUnavailable, RemoteProtocolError) as error:
            self._mender.lose(link, str(error), honest=isinstance(error, PeerUnavailable))

    def _take(self, link: HopStream, message: Message) -> None:
        """One message of a hop. Raises: Malformed, if it says what cannot be; Misfit, if it may have been misled."""
        match message:
            case Ack() | Output():
                link.note_said(SAID_OF_A_STEP * self._chain.sent * self._chain.rounds)
                if message.number >= self._reach(link):
                    raise Misfit(f"speaks of step {message.number}, which it was never sent")
                if isinstance(message, Ack):
                    self._take_ack(link, message)
                else:
                    self._take_output(link, message)
            case Pong():
                link.claims.pong(message, self._reach(link), trio.current_time())
                self._chain.notify()
            case LinkDown():
                link.note_link_down()
                behind = self._chain.behind(link)
                if behind is not None and behind.session == message.next and behind.feed is None:
                    link.link_down = quoted(message.reason)
                    self._chain.notify()
            case Error():
                self._take_error(link, message)

    def _reach(self, link: HopStream) -> int:
        """The steps that a hop can have got by now, the highest number plus one."""
        return self._chain.sent if link.feed is None else max(link.claims.sent, link.fed_from)

    def _take_ack(self, link: HopStream, ack: Ack) -> None:
        link.note_ack(ack)
        if link is self._chain.last:
            self._through(ack.number)
        elif link.bridged_from is not None and ack.number >= link.bridged_from:
            passed_over = self._chain.journal.between((link.claims.delivered or 0) - 1, ack.number)
            if passed_over:
                raise Misfit(f"passed over the hidden states of step {passed_over[0].number}")

    def _take_output(self, link: HopStream, output: Output) -> None:
        """Take what was asked for; what was before and is no more, or came already, is not looked at."""
        if link is not self._chain.last:
            self._carry(link, output)
            return
        asked = self._asked.get(output.number)
        if asked is None or not asked.expects_output or output.number in self._results:
            return
        asked.check(
            output, vocab_size=self.spec.vocab_size, hidden_size=self.spec.hidden_size, dtype=link.dtype
        )
        self._results[output.number] = Result(output, link)
        self._through(output.number)

    def _through(self, number: int) -> None:
        """The last hop is done with step `number` and so with all before it. Raises: Misfit, if it is not."""
        for earlier, asked in self._asked.items():
            if earlier <= number and asked.expects_output and earlier not in self._results:
                raise Misfit(f"passed over the output of step {earlier}")
        self._chain.advance(number + 1)

    def _take_error(self, link: HopStream, error: Error) -> None:
        """A hop ends its session. Nobody else is lost by its word alone."""
        said = quoted(error.message)
        if error.code in HONEST_ENDS:
            self._mender.lose(link, said, honest=True)
        elif not link.fed_by_us or (error.code == "bad_output" and self._chain.before(link) is not None):
            self._mender.doubt(link, said)
        elif error.code == "bad_hidden":
            self._mender.lose(link, f"says what is not so: {said}", honest=False)
        elif error.elsewhere:
            self._mender.lose(link, said, honest=False)
        else:
            self._refusals.add(link.hop.peer, said, link.channel.stream.origin)
            self._mender.lose(link, said, honest=True)

    def _carry(self, link: HopStream, output: Output) -> None:
        """Take hidden states over a boundary that the client bridges: the rows that its journal lacks, in order."""
        behind = self._chain.behind(link)
        if link.bridged_from is None or behind is None or behind.feed is None:
            raise Malformed("returned what was to go to the next hop")
        hidden = check_hidden(output, self.spec.hidden_size, link.dtype)
        lacking = self._chain.journal.between(behind.feed.last_number, output.number)
        if lacking:  # else it was answered again, or rolled back meanwhile
            settled = self._chain.settled
            if len(lacking) > 1 and output.number >= settled:
                raise Misfit(f"passed over the hidden states of step {lacking[0].number}")
            rows = fit_rows(lacking, output.position, hidden)
            asked = self._asked.get(output.number)
            want = NOTHING if asked is None or output.number < settled else asked.want
            fill_until = behind.fill_until if output.number < settled else None
            step = Step(output.number, output.position, rows, want, fill_until)
            # what the hop behind got before the boundary was bridged only fills our journal
            self._send(behind.feed, behind if output.number >= behind.claims.received else None, step)
        link.claims.deliver(output.number, len(hidden.data), trio.current_time())

    async def _results_of(self, numbers: range) -> list[Result]:
        """Wait until all these steps are through; the results there are, in order."""
        while self._chain.done < numbers.stop:
            await self._progress()
        return [self._results[n] for n in numbers if n in self._results]

    async def _progress(self) -> None:
        """Wait for something to happen, and mend what broke."""
        if not self._chain.broken:
            await self._chain.wait_changed()
            return
        self._bound_repairs()
        if self._refusals.agreed:
            raise self._refusals.error()
        try:
            await self._mender.mend()
        except NoRoute:
            if self._refusals:  # nobody else is left who may think otherwise
                raise self._refusals.error() from None
            raise

    def _bound_repairs(self) -> None:
        failed = {link.hop.peer for link in self._chain.links if link.failure is not None}
        if failed <= self._tried:
            self._mended += 1
            if self._mended > REPAIRS:
                raise Lost(f"gave up after {REPAIRS} repairs within one step")
        self._tried |= failed

    async def _candidates(self, output: Output, want: Want) -> Candidates:
        """What a checked output amounts to, by way of our own head if we have it. Raises: Malformed."""
        if self._ends is None:
            assert output.candidates is not None
            return output.candidates
        hidden = output.hidden
        assert hidden is not None
        found = await trio.to_thread.run_sync(self._ends.head, hidden, want, output.position)
        check_candidates(found, want, hidden.rows, self.spec.vocab_size)
        return found

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
        for verdict in self._watch_over.look(self._chain.links, trio.current_time(), since):
            match verdict:
                case Probe(link):
                    self._view.nursery.start_soon(link.ping)
                case GiveUp(link, reason, honest):
                    self._mender.lose(link, reason, honest=honest)
                case Slow(link, reason, honest):
                    self._mender.leave_slow(link, reason, honest=honest)
                case Unlinked(link):
                    link.link_down = "what it sends on does not arrive"
                    self._chain.notify()
