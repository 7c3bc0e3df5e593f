"""One sequence along a route: steps, and the candidates that come of them.

Whoever waits for a step also mends what breaks meanwhile (`mender`), so there is one place where hops change
and it never runs beside a step that is being sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import trio

from protocol import limits
from protocol.candidates import NOTHING, Candidates, Want, check_sound, join_candidates
from protocol.errors import ConfigError, LocalProtocolError, Lost, Malformed, NoRoute
from protocol.messages import Output, Step, fork_cost
from protocol.tensors import from_numpy
from swarm.events import Event, OnEvent, Rerouted
from swarm.routing.route import Route
from swarm.routing.view import View
from swarm.session.blame import Blame
from swarm.session.chain import Chain, SessionSpec
from swarm.session.ends import Ends
from swarm.session.flight import Flight
from swarm.session.hop_stream import HopStream
from swarm.session.inbox import Inbox
from swarm.session.lanes import Lanes, LaneStep, NotCarried, packed
from swarm.session.mender import Mender
from swarm.session.outputs import Asked, check_candidates, check_states
from swarm.session.vigil import Vigil

# Tokens of a prompt that travel together: small enough that hops work at once, large enough for full matmuls.
PREFILL_CHUNK: Final = 128
# Steps on their way at once; a hop that holds STEPS_IN_FLIGHT reads no more, and so would answer no ping.
STEPS_OUT: Final = limits.STEPS_IN_FLIGHT // 2
# Repairs within one step that leave nobody new: peers who fail again and again, whatever we do. Who has not failed
# in this step is always tried.
REPAIRS: Final = 32


class Session:
    """A sequence and its KV caches along a route. One task steps at a time; several steps may be under way."""

    def __init__(
        self,
        view: View,
        spec: SessionSpec,
        on_event: OnEvent,
        ends: Ends | None = None,
        chain: Chain | None = None,
    ) -> None:
        """chain: one without hops; without it the session begins with nothing."""
        self.spec = spec
        self.tokens: list[int] = []  # what the caches hold, by position, or will with the steps under way
        self._view = view
        self._ends = ends
        self._on_event = on_event
        self._chain = chain or Chain(spec)
        self._blame = Blame(self._chain, view.bans)
        self._inbox = Inbox(self._chain, self._blame)
        self._mender = Mender(self._chain, view, self._blame, on_event, self._serve)
        self._vigil = Vigil(self._chain, self._blame, view.nursery, lambda: self._waiting_since)
        self._opened = False
        self._next_number = self._chain.sent
        self._flights: deque[Flight] = deque()  # the steps under way, as they were sent
        self._waiting_since: float | None = None  # since when there are any
        self._busy = False  # a task sends or waits
        self._lanes = Lanes()
        self._tried: set[str] = set()  # peers that failed within this step
        self._mended = 0  # repairs within this step that left nobody new

    @property
    def id(self) -> str:
        """What its events are marked with."""
        return self._chain.id

    @property
    def length(self) -> int:
        """Tokens in the caches."""
        return len(self.tokens)

    @property
    def goes_back(self) -> bool:
        """Whether a step before the end costs its own rows only; else all before it is computed again."""
        return self._chain.goes_back

    @property
    def steps(self) -> int:
        """Steps sent; the next one has this number."""
        return self._next_number

    @property
    def route(self) -> Route:
        """The hops in use now."""
        hops = tuple(hop.planned for hop in self._chain.hops)
        return Route(hops, self.spec.blocks, sum(hop.expected_ms for hop in hops))

    @property
    def hops(self) -> tuple[HopStream, ...]:
        """The open hops, with what each step cost them."""
        return self._chain.hops

    @property
    def events(self) -> Sequence[Event]:
        """Everything that happened to it; of a wait only how it began."""
        return self._mender.events

    @property
    def reroutes(self) -> list[Rerouted]:
        """Every hop that was replaced."""
        return [event for event in self.events if isinstance(event, Rerouted)]

    async def open(self, route: Route | None = None) -> None:
        """Open the hops, along `route` if its peers still serve; nothing, if they are open. Raises: NoRoute."""
        if self._opened:
            return
        await self._view.measure(self.spec.digest, self.spec.wanted)
        await self._mender.mend(route)
        self._begin()

    async def fork(self, position: int | None = None) -> Session:
        """Another open session that begins with the first `position` tokens (default: all), computed by nobody again.

        Each goes its own way from there, and is closed by itself. What a hop cannot share is replayed, as after a
        failure. Raises: ConfigError, beyond the end; NoRoute; LocalProtocolError, while a step is out.
        """
        position = self.length if position is None else position
        if self._flights or self._busy or not self._opened:
            raise LocalProtocolError("a session is forked between its steps")
        if not 0 <= position <= self.length:
            raise ConfigError(f"position {position} is beyond the {self.length} tokens of the session")
        journal = self._chain.journal.fork(position, self._next_number) if position else None
        other = Session(self._view, self.spec, self._on_event, self._ends, Chain(self.spec, journal))
        other.tokens = self.tokens[:position]
        try:
            if position:
                await other._mender.fork(self._chain, position)
            await other._mender.mend()
        except BaseException:
            await other.aclose()
            raise
        other._begin()
        return other

    async def aclose(self) -> None:
        """Tell the hops that the session is over, and forget them. Safe to call twice."""
        self._vigil.end()
        hops = self._chain.release()
        try:
            with trio.move_on_after(0.5):
                async with trio.open_nursery() as nursery:
                    for hop in hops:
                        nursery.start_soon(hop.close)
        finally:
            for hop in hops:
                hop.fail("the session is over")

    def leave(self) -> None:
        """Close it while other things are done."""
        self._view.nursery.start_soon(self.aclose)

    async def step(
        self, tokens: Sequence[int], *, position: int | None = None, want: Want | None = None
    ) -> Candidates | None:
        """Push tokens through the route at `position` (default: after all others; earlier ones roll back).

        Returns the candidates wanted (default: the best one for the token after the last), or None if nothing is.
        Long inputs go in chunks, each sent without waiting for the one before. Survives failing hops. Steps that are
        under way are forgotten.

        Raises: ConfigError, for tokens outside the vocabulary or more than the session holds; NoRoute, when stages
        are left that nobody serves (the session stays usable, the step can be tried again); RemoteProtocolError;
        LocalProtocolError, while another task steps.
        """
        if not self._busy:
            self.forget_steps()
        flight = await self.send_step(tokens, position=position, want=want)
        return await flight.found()

    async def send_step(
        self, tokens: Sequence[int], *, position: int | None = None, want: Want | None = None
    ) -> Flight:
        """Send what `step` sends, and return while it is under way; what comes of it is awaited by what is returned.

        Steps are awaited in the order that they were sent in. One that stands before the end goes back over all that
        are under way: they are forgotten. Raises: as `step`; whatever is raised, nothing is under way any more.
        """
        want, position = want or Want(), self.length if position is None else position
        with self._turn():
            self._check(tokens, position, want, self.length)
            if position < self.length:
                self.forget_steps()
            if not self._flights:
                self._begin_step()
                self._waiting_since = trio.current_time()
            flight = Flight(self._land, tuple(tokens), position, want)
            self._flights.append(flight)
            self.tokens[position:] = tokens
            await self._send(flight)
        return flight

    def forget_steps(self) -> None:
        """What is under way is awaited no more; the tokens stay."""
        self._flights.clear()
        self._waiting_since = None
        self._inbox.begin()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One task at a time; where it fails nothing is under way, and only what was known to be through counts."""
        if self._busy:
            raise LocalProtocolError("a session takes one step at a time")
        self._busy = True
        try:
            yield
        except BaseException:
            if self._flights:
                del self.tokens[self._flights[0].position :]
            self.forget_steps()
            raise
        finally:
            self._busy = False

    def _begin_step(self) -> None:
        self._tried, self._mended = set(), 0
        self._inbox.forgive()

    async def _land(self, flight: Flight) -> Candidates | None:
        """What comes of the step that has been under way the longest."""
        if not self._busy and flight not in [*self._flights][:1]:
            raise LocalProtocolError(
                "steps are awaited in their order, and not once they were gone back over"
            )
        with self._turn():
            found = await self._found(flight)
        self._flights.popleft()
        self._inbox.forget(flight.numbers)
        self._begin_step()
        if not self._flights:
            self._waiting_since = None
        return join_candidates(found)

    # -- several sequences side by side

    async def step_lanes(self, steps: Sequence[LaneStep], ended: Sequence[int] = ()) -> list[Candidates]:
        """Push tokens of several lanes through the route at once; what each wanted, in order.

        Lane 0 is the session itself. The others are no more once they have `ended`, or when `leave_lanes` is called.
        Raises: as `step`; NotCarried, and nothing is computed, where they need sessions of their own.
        """
        if not self._busy:
            self.forget_steps()
        if self._ends is not None or self._chain.carries:
            raise NotCarried("the client has a part in what passes")
        with self._turn():
            for step in steps:
                self._check(step.tokens, step.position, step.want, self.spec.max_tokens)
            self._lanes.check(steps, self.tokens, goes_back=self.goes_back)
            self._lanes.end(ended)
            await self._mender.pace_forks(sum(fork_cost(step.row) for step in steps))
            self._begin_step()
            self._waiting_since = trio.current_time()
            found = await self._found_of(steps)
        self.forget_steps()
        self._lanes.take(steps, self.tokens)
        return [found[place] for place in range(len(steps))]

    def leave_lanes(self) -> dict[int, Sequence[int]]:
        """Only lane 0 is left; what the others held: hops hear of it with the next step."""
        held = dict(self._lanes.tokens)
        self._lanes.leave(self._chain.journal.lanes - {0})  # also those that a step began which was given up
        self._chain.journal.leave_lanes()
        return held

    async def _found_of(self, steps: Sequence[LaneStep]) -> dict[int, Candidates]:
        packs, first = packed(steps, self.spec.vocab_size, self.spec.hidden_size), self._next_number
        for pack in packs:
            rows, position = from_numpy(np.asarray(pack.tokens, np.int32)), pack.steps[0].position
            number, self._next_number = self._next_number, self._next_number + 1
            self._inbox.expect(number, Asked(pack.want, position, rows.rows, len(pack.steps)))
            self._chain.send(Step(number, position, rows, pack.want, None, pack.lanes, self._lanes.ended()))
        while self._chain.done < self._next_number:
            await self._progress()
            if not self.goes_back:  # a hop has said so only now
                self._lanes.check(steps, self.tokens, goes_back=False)
        found: dict[int, Candidates] = {}
        for pack, result in zip(packs, self._inbox.results(range(first, self._next_number)), strict=True):
            assert result.output.candidates is not None
            found.update(pack.share_out(result.output.candidates))
        return found

    async def _found(self, flight: Flight) -> list[Candidates]:
        """Wait for it, and send all again while what comes back turns out to be good for nothing."""
        while True:
            while self._chain.done < flight.numbers.stop:
                await self._progress()
            found: list[Candidates] = []
            for result in self._inbox.results(flight.numbers):
                flight.landed_at = result.at
                try:
                    found.append(await self._candidates(result.output, flight.want))
                except Malformed as error:
                    self._blame.lose_over_input(result.hop, str(error))
                    break
            else:
                return found
            for each in self._flights:
                self._inbox.forget(each.numbers)
            for each in self._flights:
                await self._send(each)

    # -- sending

    def _check(self, tokens: Sequence[int], position: int, want: Want, length: int) -> None:
        if not tokens:
            raise ConfigError("a step needs at least one token")
        if not 0 <= position <= length:
            raise ConfigError(f"position {position} is beyond the {length} tokens of the session")
        if position + len(tokens) > self.spec.max_tokens:
            raise ConfigError(
                f"{position + len(tokens)} tokens do not fit: the session was opened for {self.spec.max_tokens}"
            )
        if min(tokens) < 0 or max(tokens) >= self.spec.vocab_size:
            raise ConfigError(f"a token outside the vocabulary of {self.spec.vocab_size}")
        if want.ids and not 0 <= min(want.ids) <= max(want.ids) < self.spec.vocab_size:
            raise ConfigError(f"logits wanted of an id outside the vocabulary of {self.spec.vocab_size}")

    async def _send(self, flight: Flight) -> None:
        """Send all its chunks; where the hops would have to go back and cannot, all that is before it as well."""
        first, position = self._next_number, flight.position
        if 0 < position < self._chain.journal.length and not self.goes_back:
            await self._send_chunks(self.tokens[:position], 0, NOTHING)
        await self._send_chunks(flight.tokens, position, flight.want)
        flight.numbers = range(first, self._next_number)

    async def _send_chunks(self, tokens: Sequence[int], position: int, want: Want) -> None:
        ids = from_numpy(np.asarray(tokens, np.int32))
        for start in range(0, len(tokens), PREFILL_CHUNK):
            stop = min(start + PREFILL_CHUNK, len(tokens))
            rows = ids.row_slice(start, stop)
            if self._ends is not None:
                rows = await trio.to_thread.run_sync(self._ends.embed, rows, position + start)
            chunk_want = self._hop_want(want, last=stop == len(tokens))
            number, self._next_number = self._next_number, self._next_number + 1
            self._inbox.expect(number, Asked(chunk_want, position + start, stop - start))
            while number - self._chain.done >= STEPS_OUT:
                await self._progress()
            self._chain.send(Step(number, position + start, rows, chunk_want, ended=self._lanes.ended()))

    def _hop_want(self, want: Want, *, last: bool) -> Want:
        """What a chunk asks of the hops: with both ends here they return hidden states, not candidates."""
        if not (last or want.every) or want.kind == "nothing":
            return NOTHING
        return Want("hidden", every=want.every) if self._ends is not None else want

    # -- waiting

    async def _progress(self) -> None:
        """Wait for something to happen, and mend what broke."""
        if not self._chain.broken:
            await self._chain.wait_changed()
            return
        self._bound_repairs()
        refusals = self._inbox.refusals
        if refusals.agreed:
            raise refusals.error()
        try:
            await self._mender.mend()
        except NoRoute:
            if refusals:  # nobody else is left who may think otherwise
                raise refusals.error() from None
            raise

    def _bound_repairs(self) -> None:
        failed = {hop.peer for hop in self._chain.hops if hop.failure is not None}
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
        check_sound(found)
        check_candidates(found, want, hidden.rows, self.spec.vocab_size)
        check_states(found, want, self.spec.hidden_size)
        return found

    # -- what runs beside the steps

    def _begin(self) -> None:
        self._opened = True
        self._view.nursery.start_soon(self._vigil.run)

    def _serve(self, hop: HopStream) -> None:
        """Send a new hop what is posted, and take what it says."""
        self._view.nursery.start_soon(self._inbox.read, hop)
        self._view.nursery.start_soon(hop.send_posted)
