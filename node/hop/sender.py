"""Where a session's results go: into the journal, then to the next hop or back to the client."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import trio

from node.hop.answers import Answers
from node.hop.next_hop import Link, OnUnknown, OpenStream
from node.hop.steps import JOURNAL_IDS, Computed, KeptOutputs, Named, Shape, output_of, size_of
from protocol import limits
from protocol.entries import Entry
from protocol.journal import Journal
from protocol.messages import Ack, Instead, Known, LinkDown, NextHop, Output, Relink, Step
from protocol.tensors import Tensor
from protocol.transport.allowance import Allowance

logger = logging.getLogger(__name__)

# The one key of a session's allowance.
REPLAYS = "replays"
# All that a client hears of how a link fails, whatever it was.
LINK_FAILED = "the link to the next hop does not work"


class Sender:
    """Used by one task, which emits in the order of computing; `drop_link` alone may be called by another.

    What is sent again, to whomever, is paced: a client cannot have a long journal replayed over and over. Rows that
    the next hop may know are named; where it does not know them, `on_unknown` hears of it and has this task
    `send_instead`, once for each link.
    """

    def __init__(
        self, shape: Shape, open_stream: OpenStream, on_unknown: OnUnknown, answers: Answers, *, bridged: bool
    ) -> None:
        self.emitted = 0  # the highest number plus one
        self._shape = shape
        self._open_stream = open_stream
        self._on_unknown = on_unknown
        self._answers = answers
        self._bridged = bridged
        self._live_from = 0  # steps before this number were fills, which nobody waits for
        self._relink: Relink | None = None
        self._journal = None if shape.has_head else Journal(shape.max_tokens, JOURNAL_IDS)
        self._kept = KeptOutputs(shape.answer_bytes)
        replay_bytes = float(shape.journal_bytes)
        self._again = Allowance(replay_bytes / limits.REPLAY_EVERY_S, limits.REPLAYS_BURST * replay_bytes)
        self._link: Link | None = None
        self._progress = trio.Event()
        self._is_over = False

    def begin_with(self, number: int, journal: Journal | None) -> None:
        """Steps below `number` were another session's, and their results are in `journal`."""
        self.emitted = self._live_from = number
        self._journal = journal

    async def fork(self, length: int, after: int, most_tokens: int) -> Journal | None:
        """Once all steps below `after` are emitted: a journal that begins with their first `length` rows.

        None, with the head: there is none. Raises: LocalProtocolError, if that is not what there is.
        """
        while self.emitted < after and not self._is_over:
            if self._progress.is_set():
                self._progress = trio.Event()
            await self._progress.wait()
        return None if self._journal is None else self._journal.fork(length, after, most_tokens)

    def start_link(
        self, nursery: trio.Nursery, target: NextHop, open_stream: OpenStream | None = None
    ) -> Link:
        """From now on results go to `target`; the stream is opened in the background."""
        self._link = link = Link(target, self._shape.span.stop, self._on_unknown)
        nursery.start_soon(self._run_link, link, open_stream or self._open_stream)
        return link

    def drop_link(self) -> None:
        """Close the stream to the next hop; results are kept in the journal until `relink`."""
        if self._link is not None:
            self._link.abandon()

    def forget(self) -> None:
        """The session is over: give back what is kept."""
        self._link = None
        self._kept = KeptOutputs(0)
        self._is_over = True
        self._progress.set()
        if self._journal is not None:
            self._journal = Journal(0)

    def keep(self, done: Computed) -> None:
        """Keep a result, which is then to be delivered."""
        if self._journal is not None and isinstance(done.result, Tensor):
            self._journal.take(_step_of(done, done.result))
        self.emitted = done.number + 1
        self._progress.set()
        if done.fill_until is not None:
            self._live_from = self.emitted

    async def deliver(self, done: Computed, ack: Ack) -> None:
        """Send a kept result on, then acknowledge the step.

        Raises: Malformed, if the client wants what this hop does not have.
        """
        done = self._as_relinked(done)
        if self._link is None:
            await self._answers.send(*self._for_client(done), ack)
            return
        step = self._for_link(done, self._link)
        if step is not None:
            await self._link.send(step)
        self._answers.send_later(ack)

    def deliver_now(self, done: Computed, ack: Ack) -> bool:
        """As `deliver`, before any other task runs; False, and nothing is sent, where it has to wait."""
        done = self._as_relinked(done)
        if self._link is None:
            return self._answers.send_now(*self._for_client(done), ack)
        step = self._for_link(done, self._link)
        if step is not None and not self._link.send_now(step):
            return False
        self._answers.send_later(ack)
        return True

    async def emit_again(self, number: int) -> None:
        """What step `number` gave goes to the client again, if results go there; nothing is computed."""
        if number < self._live_from or self._link is not None:
            return
        if self._journal is None:
            output = self._kept.find(number)
        else:
            entry = self._journal.find(number)
            output = None if entry is None else output_of(_live(entry), bridged=self._bridged)
        if output is not None:
            await self._pause(size_of(output))
            await self._answers.send(output)

    async def send_instead(self, link: Link, number: int) -> None:
        """Send a next hop that does not know the rows of step `number` all rows of that and of what came after it."""
        if link is not self._link or self._journal is None or not await link.send(Instead(number)):
            return
        for step in self._journal.since(number):
            if not await link.send(step):
                return

    def rows(self, start: int, stop: int) -> Tensor | None:
        """What was emitted of positions start:stop, if it stands; None where the head is."""
        return None if self._journal is None else self._journal.rows(start, stop)

    async def relink(self, nursery: trio.Nursery, relink: Relink) -> None:
        """Turn to another next hop, or to the client, and bring it up to date. Raises: Malformed, as `emit`."""
        self._relink = relink
        self._bridged = relink.bridged and relink.next is None
        if relink.next is not None:
            await self._replay_to(self.start_link(nursery, relink.next), relink)
        else:
            self._link = None
            await self._replay_to_client(relink)

    def _for_link(self, done: Computed, link: Link) -> Step | Known | None:
        """What the next hop is sent of a result."""
        if not isinstance(done.result, Tensor):
            return None
        step = _step_of(done, done.result)
        if not self._goes_on(step):
            return None
        return _with_names(step, done.named) if link.names_rows else step

    def _as_relinked(self, done: Computed) -> Computed:
        """A hop may be relinked while it is itself being filled: what it computes then belongs to the journal that
        the relink asked for, and goes to the new place like the rest of it."""
        if self._relink is None or done.number >= self._relink.live_from:
            return done
        if self._bridged:
            return replace(done, fill_until=None)
        return replace(done, fill_until=max(done.fill_until or 0, self._relink.fill_until))

    def _goes_on(self, step: Step) -> bool:
        return step.fill_until is None or self._shape.span.stop < step.fill_until

    def _for_client(self, done: Computed) -> Sequence[Output]:
        if self._bridged and done.fill_until is not None and self._shape.span.stop < done.fill_until:
            done = replace(done, fill_until=None)  # the client fills the hop behind with it
        output = output_of(done, bridged=self._bridged)
        if output is None:
            return ()
        if output.candidates is not None:
            self._kept.keep(output)
        return (output,)

    async def _replay_to(self, link: Link, relink: Relink) -> None:
        assert self._journal is not None, "no hop after the head"
        for step in self._journal.replay(relink.live_from, relink.fill_until):
            if self._goes_on(step):
                await self._pause(len(step.inputs.data))
                if not await link.send(step):
                    return  # the journal keeps the rest for the next relink

    async def _replay_to_client(self, relink: Relink) -> None:
        if self._journal is None:
            for output in self._kept.since(relink.live_from):
                await self._pause(size_of(output))
                await self._answers.send(output)
            return
        for entry in self._journal.entries:
            if self._bridged or entry.number >= relink.live_from:
                await self._pause(len(entry.rows.data))
            if self._bridged:
                await self._answers.send(Output(entry.number, entry.position, hidden=entry.rows))
            elif entry.number >= relink.live_from:
                for output in self._for_client(_live(entry)):
                    await self._answers.send(output)

    async def _run_link(self, link: Link, open_stream: OpenStream) -> None:
        reason = await link.run(open_stream)
        if reason is not None and self._link is link:
            logger.info("the link to %s is down: %s", link.target.peer, reason)
            await self._answers.send(LinkDown(link.target.session, LINK_FAILED))

    async def _pause(self, again_bytes: int) -> None:
        await trio.sleep(self._again.wait_s(REPLAYS, trio.current_time(), again_bytes))


def _step_of(done: Computed, rows: Tensor) -> Step:
    return Step(done.number, done.position, rows, done.want, done.fill_until, done.lanes, done.ended)


def _live(entry: Entry) -> Computed:
    return Computed(entry.number, entry.position, entry.want, None, entry.rows)


def _with_names(step: Step, named: Named | None) -> Step | Known:
    """The step, with the rows that the next hop may know named instead. A fill goes to who has nothing yet."""
    if named is None or step.fill_until is not None:
        return step
    inputs = step.inputs.row_slice(named.rows, step.inputs.rows) if named.rows < step.inputs.rows else None
    return Known(step.number, step.position, named.rows, named.mark, inputs, step.want)
