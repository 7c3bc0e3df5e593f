"""Several tokens for each step: what is likely to follow is drafted, and checked by the model all at once.

The tokens are those that come without: at each place the model's own row and the number drawn for that place decide,
and a drafted token holds if it is the one. So an answer depends on seed and logits alone, whatever was drafted.

While steps are under way more is drafted behind what they hold, and sent, as long as that is likely to be of use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from protocol import limits
from protocol.candidates import Want
from protocol.errors import ConfigError, LocalProtocolError
from swarm.decoding.asks import Ask, Begin, Decoding, Ending, Landed, Next, Task, Token
from swarm.decoding.chooser import Chooser, Place
from swarm.decoding.drafter import Draft, Drafter
from swarm.decoding.pace import Pace
from swarm.decoding.sampling import Sampling

DRAFTS: Final = 32
RUN: Final = 8
AHEAD: Final = 16
# What a hop takes for an id that is asked for, at most.
_ID_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Speculative:
    """Drafts what comes next, from runs that came before and from a model that drafts if there is one.

    drafts  the most tokens that are drafted for one step; how many it is follows from what holds, and what steps cost
    run     the most tokens of a run that is looked up; 0: only the model drafts
    ahead   the most steps under way; 1: nothing is drafted while one is
    """

    name: ClassVar[str] = "speculative"
    needs_amateur: ClassVar[bool | None] = False

    drafts: int = 16
    run: int = 4
    ahead: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.drafts <= DRAFTS:
            raise ConfigError(f"drafts {self.drafts}: it is from 1 to {DRAFTS}")
        if not (self.run == 0 or 2 <= self.run <= RUN):
            raise ConfigError(f"run {self.run}: it is 0 (off), or from 2 to {RUN}")
        if not 1 <= self.ahead <= AHEAD:
            raise ConfigError(f"ahead {self.ahead}: it is from 1 to {AHEAD}")

    @property
    def sessions(self) -> int:
        """See `Strategy`."""
        return 1

    def check(self, sampling: Sampling) -> None:
        """See `Strategy`: it goes with all."""

    def decode(self, task: Task) -> Decoding:
        """See `Strategy`."""
        return _Speculation(task, self).run()


@dataclass(frozen=True, slots=True)
class _Trip:
    """A step under way: the places that its rows are of, what was drafted for it, whether it was sent alone."""

    places: Sequence[Place]
    want: Want
    draft: Draft | None
    alone: bool
    timed: bool  # one row, and what was drafted


class _Speculation:
    """One sequence: `tokens` stand, `guessed` may follow, all of which are under way; with where each is from."""

    def __init__(self, task: Task, how: Speculative) -> None:
        self._task = task
        self._how = how
        self._chooser = Chooser(task)
        self._drafter = Drafter(task, how.drafts, how.run)
        self._tokens = list(task.prompt)
        self._done = task.begin  # so many of them the branch has
        self._end = len(task.prompt) + task.max_new_tokens
        self._guessed: deque[tuple[int, Pace]] = deque()
        self._trips: deque[_Trip] = deque()

    def run(self) -> Decoding:
        """The whole of it."""
        while len(self._tokens) < self._end:
            if not self._trips:
                yield from self._set_out()
            while self._guessed and len(self._trips) < self._how.ahead and (yield from self._follow()):
                pass
            landed = yield Next()
            if not isinstance(landed, Landed):
                raise LocalProtocolError("what was begun is answered with what came of it")
            trip = self._trips.popleft()
            if trip.alone and trip.timed:
                self._drafter.took(trip.draft, landed.seconds)
            for at, place in enumerate(trip.places):
                token = self._chooser.pick(replace(place, want=trip.want), landed.found, at)
                settled = token is not None
                if token is None:
                    token = yield from self._chooser.settle(place, self._tokens)
                holds = self._judge(token) and settled  # what is asked again goes back over the rest
                yield token
                if token.id in self._task.eos:
                    return Ending("eos")
                if not holds:
                    self._turn_back()
                    break
        return Ending("length")

    def _judge(self, token: Token) -> bool:
        """Take the next token; whether it is the one that was guessed."""
        self._tokens.append(token.id)
        if not self._guessed:
            return False
        guess, pace = self._guessed.popleft()
        pace.held(1, int(guess == token.id))
        return guess == token.id

    def _turn_back(self) -> None:
        """The last token is not what was guessed: nothing behind it counts."""
        self._guessed.clear()
        self._trips.clear()
        self._done = len(self._tokens) - 1
        self._drafter.turn_back(self._done)

    # -- sending

    @property
    def _room(self) -> int:
        """Tokens that may be guessed beyond those that are."""
        return self._end - len(self._tokens) - 1 - len(self._guessed)

    def _set_out(self) -> Generator[Begin, Any, None]:
        """Send the tokens that the branch has not, and a draft behind them."""
        rows, places, draft = self._tokens[self._done :], [self._chooser.place(self._tokens)], None
        one = len(rows) == 1 and len(self._tokens) > len(self._task.prompt)
        if one and self._room > 0 and self._task.goes_back():
            draft = yield from self._drafter.draft(self._tokens, self._room)
        if draft is not None:
            places += self._places(draft)
        yield from self._send(rows, self._done, places, draft, timed=one)

    def _follow(self) -> Generator[Begin, Any, bool]:
        """Send a draft behind all that is under way; whether there was one."""
        if self._room <= 0 or not self._task.goes_back():
            return False
        guessed = [guess for guess, _ in self._guessed]
        draft = yield from self._drafter.draft(self._tokens, self._room, guessed)
        places = [] if draft is None else self._places(draft)
        if not places:
            return False
        at = len(self._tokens) + len(guessed)
        yield from self._send([], at, places, draft, timed=False)
        return True

    def _send(
        self, rows: Sequence[int], position: int, places: list[Place], draft: Draft | None, *, timed: bool
    ) -> Generator[Begin, Any, None]:
        """Send rows and the part of the draft that its places are of, as far as one answer holds them."""
        want = _for_all([place.want for place in places], self._task.vocab_size)
        del places[_rows_of(want, self._task.vocab_size) :]
        first = 1 if rows else 0  # of the places, the one after the rows
        if draft is not None:
            draft = replace(draft, tokens=draft.tokens[: len(places) - first])
            self._guessed += ((token, draft.pace) for token in draft.tokens)
        if draft is None or not draft.tokens:
            draft, want = None, places[0].want
        self._drafter.sent(len(self._tokens) + len(self._guessed))
        sent = (*rows, *(() if draft is None else draft.tokens))
        self._trips.append(_Trip(places, want, draft, not self._trips, timed))
        yield Begin(Ask(sent, position, want))

    def _places(self, draft: Draft) -> list[Place]:
        """Where tokens are to be chosen after each drafted one, as far as one may follow."""
        places: list[Place] = []
        before = [*self._tokens, *(guess for guess, _ in self._guessed)]
        for token in draft.tokens:
            if token in self._task.eos:
                break
            before.append(token)
            try:
                places.append(self._chooser.place(before))
            except ConfigError:  # nothing may follow it, and the model has not said that it comes
                break
        return places


def _for_all(wants: Sequence[Want], vocab_size: int) -> Want:
    """One want that has what each of them has; of more than one, for every row."""
    if len(wants) == 1:
        return wants[0]
    top, ids = max(want.top for want in wants), sorted({each for want in wants for each in want.ids})
    temperature = wants[0].temperature
    if not min(want.top for want in wants) or top + len(ids) >= vocab_size or len(ids) > limits.ASKED_IDS:
        return Want(every=True, top=0, temperature=temperature)
    return Want(every=True, top=top, ids=tuple(ids), temperature=temperature)


def _rows_of(want: Want, vocab_size: int) -> int:
    """Rows that one answer may have, at least one."""
    row_bytes = 8 * (want.top or vocab_size) + 4 * len(want.ids)
    return max(1, (limits.ANSWER_BYTES - _ID_BYTES * len(want.ids)) // row_bytes)
