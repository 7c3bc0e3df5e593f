"""The open hops of a session, in order, and which boundaries the client feeds."""

from __future__ import annotations

import secrets
from collections import Counter
from dataclasses import dataclass, field

import trio

from protocol.journal import Journal
from protocol.model import Span
from swarm.session.hop_stream import HopStream
from swarm.session.outputs import hidden_bytes
from swarm.session.recovery import Gap, Place, find_gaps


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What a session is about."""

    digest: bytes
    blocks: int
    vocab_size: int
    hidden_size: int
    wanted: Span  # the stages that hops run
    max_tokens: int
    wait_s: float = 0.0  # how long to wait for somebody to serve stages that nobody serves
    direct: bool = True  # hops send to each other; else everything passes through the client


@dataclass(slots=True, eq=False)
class Chain:
    """What the session and its mender share. `done`: steps that are through, the highest such number plus one."""

    spec: SessionSpec
    id: str  # of the session, in what its user is told
    journal: Journal  # of the boundary before the first hop
    links: list[HopStream] = field(default_factory=list)
    done: int = 0
    rounds: int = 1  # how often hops may have been sent the same steps
    slow: Counter[str] = field(default_factory=Counter)  # how often each peer was too slow
    _changed: trio.Event = field(default_factory=trio.Event)

    @property
    def first(self) -> HopStream | None:
        """The hop that the client feeds, once there is one."""
        return self.links[0] if self.links else None

    @property
    def last(self) -> HopStream | None:
        """The hop whose outputs are the session's."""
        return self.links[-1] if self.links else None

    @property
    def broken(self) -> bool:
        """Whether there is something to mend."""
        return not self.links or any(link.failure or link.link_down for link in self.links)

    @property
    def sent(self) -> int:
        """Steps sent, the highest number plus one."""
        return self.journal.last_number + 1

    @property
    def settled(self) -> int:
        """Steps that every hop says are through, itself included: fewer than `done` if the last one lies."""
        living = [link for link in self.links if link.failure is None]
        return min([self.done, *(max(link.claims.acked, link.filled_at) for link in living)])

    def before(self, link: HopStream) -> HopStream | None:
        """The hop before `link`, or None if that is the client (or `link` is no longer of the session)."""
        index = self.links.index(link) if link in self.links else 0
        return self.links[index - 1] if index else None

    def behind(self, link: HopStream) -> HopStream | None:
        """The hop behind `link`, or None if that is the client (or `link` is no longer of the session)."""
        index = self.links.index(link) + 1 if link in self.links else len(self.links)
        return self.links[index] if index < len(self.links) else None

    def gaps(self) -> list[Gap]:
        """What is to be replaced, left to right."""
        places = [Place(h.hop.span, h.failure is None, h.filled) for h in self.links]
        return find_gaps(self.spec.wanted, places)

    def bridge(self, before: HopStream, behind: HopStream, fed_from: int) -> None:
        """Carry from now on what passes between two neighbours; `fed_from` steps may have passed directly."""
        behind.feed = Journal(self.spec.max_tokens)
        behind.fed_from = fed_from
        before.bridge(self.sent, self.settled, hidden_bytes(self.spec.hidden_size))
        self.rounds += 1

    def advance(self, done: int) -> None:
        """Every step below `done` is through."""
        if done > self.done:
            self.done = done
            self.notify()

    def notify(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_changed(self) -> None:
        """Until something happens to the chain."""
        await self._changed.wait()


def new_chain(spec: SessionSpec) -> Chain:
    """A session without hops yet."""
    return Chain(spec, secrets.token_hex(8), Journal(spec.max_tokens))
