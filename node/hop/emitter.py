"""What a session has computed goes on: into the journal, then to the next hop or the client, then the Ack."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from node.hop.answers import Answers
from node.hop.backlog import Backlog, Load, Pending
from node.hop.life import Life, State
from node.hop.next_hop import Link
from node.hop.reuse import Filled, Reuse
from node.hop.sender import Sender
from node.hop.steps import Computed, Named
from protocol.errors import Malformed
from protocol.messages import Ack, Error, Relink
from protocol.talk.outbox import Outbox

_REPEATED = Load()


@dataclass(frozen=True, slots=True)
class Again:
    """A step that came again after it was computed."""

    number: int


@dataclass(frozen=True, slots=True)
class Lacking:
    """A step whose rows the next hop does not know by name."""

    link: Link
    number: int


@dataclass(frozen=True, slots=True)
class Kept:
    """A step whose result is in the journal and not sent on yet."""

    pending: Pending
    done: Computed
    ack: Ack


Item = Pending | Kept | Again | Relink | Lacking | Exception


class Emitter:
    """Of one session, in order. Where nothing goes before a result or is in its way, no task is woken for it."""

    def __init__(
        self,
        outbox: Outbox[Item],
        sender: Sender,
        answers: Answers,
        backlog: Backlog,
        reuse: Reuse,
        life: Life,
    ) -> None:
        self._outbox = outbox
        self._sender = sender
        self._answers = answers
        self._backlog = backlog
        self._reuse = reuse
        self._life = life
        self._relink_taken = trio.Event()
        self._relink_taken.set()

    # --- what goes on

    def emit(self, pending: Pending) -> None:
        """A step is computed: send it on at once, or in its turn. Whatever is wrong with it, `run` raises."""
        if pending.failure is not None or not self._outbox.is_idle:
            self._outbox.post(pending)
            return
        try:
            kept = self._keep(pending)
            if self._sender.deliver_now(kept.done, kept.ack):
                self._delivered(kept)
            else:
                self._outbox.post(kept)
        except Exception as error:  # noqa: BLE001 - raised by `run`: here it would end the node, there the session
            self._outbox.post(error)

    def emit_again(self, number: int) -> None:
        """Step `number` has come again: send what it gave once more, in its turn."""
        self._backlog.hold(_REPEATED)
        self._outbox.post(Again(number))

    def relink(self, relink: Relink) -> None:
        """Turn to another next hop, between two steps."""
        self._relink_taken = trio.Event()
        self._sender.drop_link()
        self._outbox.post(relink)

    async def wait_relinked(self) -> None:
        """Until no relink waits for its turn."""
        await self._relink_taken.wait()

    def close(self) -> None:
        """Nothing goes on any more."""
        self._outbox.close()

    # --- in its turn

    async def run(self, nursery: trio.Nursery) -> None:
        """Send on what has to wait, until closed. What nobody can be sent ends the session."""

        async def handle(item: Item) -> None:
            if isinstance(item, Pending):
                await self._emit(item)
            elif isinstance(item, Kept):
                await self._deliver(item)
            elif isinstance(item, Relink):
                self._relink_taken.set()
                await self._sender.relink(nursery, item)
            elif isinstance(item, Again):
                await self._sender.emit_again(item.number)
                await self._answers.send(Ack(item.number, 0.0, 0.0))
                self._backlog.let_go(_REPEATED)
            elif isinstance(item, Lacking):
                await self._sender.send_instead(item.link, item.number)
            else:
                raise item

        try:
            await self._outbox.run(handle)
        except Malformed as error:
            self._life.fail(Error("malformed", str(error), elsewhere=False))

    async def _emit(self, pending: Pending) -> None:
        if pending.failure is not None:
            self._life.fail(pending.failure)
        else:
            await self._deliver(self._keep(pending))

    def _keep(self, pending: Pending) -> Kept:
        step, taken = pending.step, pending.taken
        # What stood before is left before: the step may go back, and with it the journal. Of a step in several pieces
        # pages may have been filled that it sends on itself.
        # With lanes all of them are lane 0's from before the step.
        if pending.filled:
            self._leave([each for each in pending.filled if step.lanes or each.stop <= step.position])
        named = None if taken is None else Named(taken.count, taken.mark)
        done = Computed(
            step.number,
            step.position,
            step.want,
            step.fill_until,
            pending.result,
            named,
            step.lanes,
            step.ended,
        )
        self._sender.keep(done)
        return Kept(pending, done, Ack(step.number, max(0.0, pending.queue_ms), pending.compute_ms))

    async def _deliver(self, kept: Kept) -> None:
        await self._sender.deliver(kept.done, kept.ack)
        self._delivered(kept)

    def _delivered(self, kept: Kept) -> None:
        pending = kept.pending
        if pending.filled and self._life.state is not State.FREED:
            position = pending.step.position
            self._leave(
                [] if pending.step.lanes else [each for each in pending.filled if each.stop > position]
            )
        self._backlog.let_go(pending.load)

    def _leave(self, filled: list[Filled]) -> None:
        self._reuse.leave(filled, self._sender.rows)


def tell_lacking(outbox: Outbox[Item], link: Link, number: int) -> None:
    """A next hop does not know what step `number` named."""
    outbox.post(Lacking(link, number))
