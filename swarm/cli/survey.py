"""The map of a swarm, whatever models it serves: what `swarm status` shows."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import trio

from protocol import identity
from protocol.errors import SwarmError
from protocol.hints import RecordRule
from protocol.messages import DialReply, DialRequest
from protocol.records import Announcement
from protocol.talk.exchange import ask_dial
from protocol.transport.background import background_tasks
from protocol.transport.base import PeerAddrs
from swarm.cli.joined import places
from swarm.routing.view import View

# Nodes that are shown though they do not answer; an announcement outlives a node that died by up to a minute.
SILENT_SHOWN = 16
# Nodes that are asked to dial back, each of another origin.
DIALLERS = 3


@dataclass(frozen=True, slots=True)
class Survey:
    """Who announces what, those that answered first, and how far away these are."""

    announcements: tuple[Announcement, ...]
    rtt_ms: dict[str, float]
    weights: dict[bytes, str | None]  # by model: the digest of what is served, where that is the whole
    disputes: dict[bytes, str]  # by model: a line about nodes that differ about its weights
    doors: tuple[str, ...]  # where some of them were met


class Surveyor:
    """Takes surveys of one swarm."""

    def __init__(self, view: View) -> None:
        self._view = view

    async def survey(self) -> Survey:
        """Ask everybody known anew, and those that were only now heard of."""
        view = self._view
        await view.refresh()
        if view.silent(1):
            await view.refresh()
        said = view.answered()
        weights: dict[bytes, str | None] = {}
        disputes: dict[bytes, str] = {}
        for one in {a.digest: a for a in said}.values():
            verdict = view.verdict(one.digest)
            whole, line = verdict.whole(one.stages), verdict.describe(one.blocks)
            weights[one.digest] = whole.hex() if whole is not None else None
            if line is not None:
                disputes[one.digest] = line
        return Survey(
            (*said, *view.silent(SILENT_SHOWN)),
            dict(view.rtt_ms),
            weights,
            disputes,
            tuple(places(view.book)),
        )

    async def dial_back(self, request: DialRequest) -> list[DialReply]:
        """What some nodes say that answered and were asked to dial: the nearest of each origin."""
        view = self._view
        nearest: dict[str | None, Announcement] = {}
        for said in sorted(view.answered(), key=lambda said: view.rtt_ms[said.peer]):
            nearest.setdefault(view.book.origin(said.peer), said)
        replies: list[DialReply] = []

        async def ask(said: Announcement) -> None:
            with suppress(SwarmError):  # one that does not know how is of another version
                replies.append(await ask_dial(view.transport, PeerAddrs(said.peer, said.addrs), request))

        async with trio.open_nursery() as nursery:
            for said in list(nearest.values())[:DIALLERS]:
                nursery.start_soon(ask, said)
        return replies

    def complaint(self) -> str:
        """One line on whose clock is wrong; empty if nobody's is."""
        return self._view.complaint()


@asynccontextmanager
async def enter(addrs: Sequence[str]) -> AsyncIterator[Surveyor]:
    """Enter the swarm through any of the addresses. Raises: ConfigError, Unreachable."""
    from protocol.transport.libp2p import open_transport  # takes a second, which only this pays

    me = identity.generate()
    async with (
        open_transport(me.key, dht="client", validate=RecordRule()) as transport,
        background_tasks() as nursery,
    ):
        view = View(transport, nursery, random.Random())
        await view.enter(addrs)
        yield Surveyor(view)
