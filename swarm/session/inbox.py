"""What the hops of a session say, taken as it comes and held against what was asked of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import trio

from protocol.candidates import NOTHING
from protocol.errors import PeerUnavailable, RemoteProtocolError, TooLarge
from protocol.messages import Ack, Error, LinkDown, Message, Output, Pong
from swarm.session.blame import Blame
from swarm.session.chain import Chain
from swarm.session.hop_stream import HopStream, quoted
from swarm.session.outputs import Asked, Misfit, answer_bytes
from swarm.session.refusals import Refusals

# Messages taken from one hop before others have their turn: a flood must not hold up the event loop.
TAKEN_AT_ONCE: Final = 32
# What a hop says whose layers keep a state: what replaces it is filled with what stands, and so need not go back.
NO_WAY_BACK: Final = "unsupported"
# What hops say when they end a session through nobody's fault.
HONEST_ENDS: Final = frozenset(("leaving", "idle", "gave_way"))


@dataclass(frozen=True, slots=True)
class Result:
    """An output that was asked for, and who returned it."""

    output: Output
    hop: HopStream
    at: float


class Inbox:
    """Takes what was asked for and nothing else; who says what cannot be is lost, by `blame`."""

    def __init__(self, chain: Chain, blame: Blame) -> None:
        self.refusals = Refusals()  # since the last step that was through
        self._chain = chain
        self._blame = blame
        self._asked: dict[int, Asked] = {}  # of the steps that are out
        self._results: dict[int, Result] = {}
        self._answer_bytes = 0  # the largest frame that any step asked for

    def begin(self) -> None:
        """Nothing is out; what was refused before counts no more."""
        self.forgive()
        self._results.clear()
        self._asked.clear()  # also of what was given up: nobody owes its output any more

    def forgive(self) -> None:
        """What was refused before counts no more."""
        self.refusals = Refusals()

    def forget(self, numbers: range) -> None:
        """These steps are through, or given up."""
        for number in numbers:
            self._results.pop(number, None)
            self._asked.pop(number, None)

    def expect(self, number: int, asked: Asked) -> None:
        """A step will be sent, and is to be answered like this."""
        self._asked[number] = asked
        if asked.expects_output:
            spec = self._chain.spec
            needed = answer_bytes(asked, spec.vocab_size, spec.hidden_size)
            self._answer_bytes = max(self._answer_bytes, needed)
            self._allow_answers()

    def results(self, numbers: range) -> list[Result]:
        """What came of these steps, in order."""
        return [self._results[number] for number in numbers if number in self._results]

    async def read(self, hop: HopStream) -> None:
        """Take what a hop says until its stream ends."""
        taken = 0
        self._allow_answers()
        try:
            while (message := await hop.channel.receive()) is not None:
                if hop.failure is not None:
                    return
                self._take(hop, message)
                taken += 1
                if taken % TAKEN_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
            self._blame.lose(hop, "closed the stream", honest=True)
        except (Misfit, TooLarge) as error:
            self._blame.lose_over_input(hop, str(error))
        except (PeerUnavailable, RemoteProtocolError) as error:
            self._blame.lose(hop, str(error), honest=isinstance(error, PeerUnavailable))

    def _allow_answers(self) -> None:
        """Let the last hop answer in a frame that is large enough."""
        if self._chain.last is not None:
            self._chain.last.allow(self._answer_bytes)

    def _take(self, hop: HopStream, message: Message) -> None:
        """One message of a hop. Raises: Malformed, if it says what cannot be; Misfit, if it may have been misled."""
        chain = self._chain
        match message:
            case Ack() | Output():
                hop.note_said(chain.most_said)
                if message.number >= hop.reach(chain.sent):
                    raise Misfit(f"speaks of step {message.number}, which it was never sent")
                if isinstance(message, Ack):
                    self._take_ack(hop, message)
                else:
                    self._take_output(hop, message)
            case Pong():
                hop.claims.pong(message, hop.reach(chain.sent), trio.current_time())
                chain.notify()
            case LinkDown():
                hop.note_link_down()
                behind = chain.behind(hop)
                if behind is not None and behind.session == message.next and behind.feed is None:
                    chain.cut(hop, quoted(message.reason))
            case Error():
                self._take_error(hop, message)

    def _take_ack(self, hop: HopStream, ack: Ack) -> None:
        hop.note_ack(ack)
        if hop is self._chain.last:
            self._through(ack.number)
        elif hop.bridged_from is not None and ack.number >= hop.bridged_from:
            passed_over = self._chain.journal.between((hop.claims.delivered or 0) - 1, ack.number)
            if passed_over:
                raise Misfit(f"passed over the hidden states of step {passed_over[0].number}")

    def _take_output(self, hop: HopStream, output: Output) -> None:
        """Take what was asked for; what was before and is no more, or came already, is not looked at."""
        asked = self._asked.get(output.number)
        if hop is not self._chain.last:
            self._chain.carry(hop, output, NOTHING if asked is None else asked.want)
            return
        if asked is None or not asked.expects_output or output.number in self._results:
            return
        spec = self._chain.spec
        asked.check(output, vocab_size=spec.vocab_size, hidden_size=spec.hidden_size, dtype=hop.dtype)
        self._results[output.number] = Result(output, hop, trio.current_time())
        self._through(output.number)

    def _through(self, number: int) -> None:
        """The last hop is done with step `number` and so with all before it. Raises: Misfit, if it is not."""
        for earlier, asked in self._asked.items():
            if earlier <= number and asked.expects_output and earlier not in self._results:
                raise Misfit(f"passed over the output of step {earlier}")
        self._chain.advance(number + 1)

    def _take_error(self, hop: HopStream, error: Error) -> None:
        """A hop ends its session. Nobody else is lost by its word alone."""
        said = quoted(error.message)
        if error.code == NO_WAY_BACK:
            self._chain.note_stuck()
        if error.code == "busy":
            self._blame.leave_full(hop, said, error.retry_after_s)
        elif error.code in HONEST_ENDS:
            self._blame.lose(hop, said, honest=True)
        elif not hop.fed_by_us or (error.code == "bad_output" and self._chain.before(hop) is not None):
            self._blame.doubt(hop, said)
        elif error.code == NO_WAY_BACK:
            self._blame.lose(hop, said, honest=True)
        elif error.code == "bad_hidden":
            self._blame.lose(hop, f"says what is not so: {said}", honest=False)
        elif error.elsewhere:
            self._blame.lose(hop, said, honest=False)
        else:
            self.refusals.add(hop.peer, said, hop.channel.stream.origin)
            self._blame.lose(hop, said, honest=True)
