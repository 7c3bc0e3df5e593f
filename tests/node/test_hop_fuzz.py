"""Whatever strangers say, in any order: named errors at most, and the session of another goes on."""

from __future__ import annotations

import logging
import random
from dataclasses import replace

import numpy as np
import pytest
import trio

from protocol.candidates import Want
from protocol.codec import encode
from protocol.errors import Lost
from protocol.messages import (
    Attach,
    Close,
    Error,
    Fork,
    Instead,
    Known,
    Lane,
    LinkDown,
    MapRequest,
    Message,
    NextHop,
    Open,
    Output,
    Ping,
    Relink,
    Step,
    Unknown,
)
from protocol.model import Span
from protocol.tensors import Tensor, from_numpy
from tests.node.conftest import Node, Swarm
from tests.node.fakes import MANIFEST, STAGES, Client, expected_ids, ids_of, opened, token_rows
from tests.support.waiting import eventually

WHOLE = Span(0, STAGES)
ROUNDS = 20
IDS = [bytes([n] * 16) for n in range(3)]


class Stranger:
    """Says anything."""

    def __init__(self, rng: random.Random, node: Node) -> None:
        self._rng = rng
        self._node = node
        self._span = WHOLE
        self._number = 0
        self._length = 0

    def first(self) -> Message:
        """Mostly what a client begins with."""
        return self._open() if self._rng.random() < 0.8 else self.message()

    def message(self) -> Message:
        """Any message there is, more or less sensible."""
        rng = self._rng
        kind = rng.randrange(12)
        if kind < 7:
            return self._good_step()
        if kind == 7:
            return self._step()
        if kind < 10:
            return Relink(self._next(), rng.random() < 0.5, rng.randrange(9), rng.randrange(STAGES + 1))
        if kind == 10:
            return Ping(rng.randrange(9))
        attach = Attach(rng.choice(IDS), rng.randrange(STAGES))
        if rng.random() < 0.3:
            return rng.choice([self._known(), Instead(rng.randrange(9)), Unknown(rng.randrange(9))])
        others = [self._open(), attach, Close(), Error("x", "y", False), MapRequest()]
        return rng.choice([*others, LinkDown(IDS[0], "")])

    def _open(self) -> Open:
        rng = self._rng
        start = rng.randrange(STAGES)
        span = rng.choice([WHOLE, Span(start, rng.randrange(start, STAGES) + 1)])
        self._span = span
        digest = MANIFEST.digest if rng.random() < 0.9 else bytes(32)
        tokens = rng.choice([8, 64, 64, 2000])
        fork = Fork(rng.choice(IDS), rng.randrange(9), rng.randrange(6)) if rng.random() < 0.3 else None
        if fork is not None:
            self._number, self._length = fork.after, fork.position
        return Open(rng.choice(IDS), digest, span, tokens, self._next(), rng.random() < 0.3, fork)

    def _next(self) -> NextHop | None:
        me = self._node.transport
        peer = self._rng.choice([None, "rubbish", me.peer])
        return None if peer is None else NextHop(peer, self._rng.choice(IDS))

    def _good_step(self) -> Step:
        """One that a client might send: new, rolled back, repeated, live or a fill."""
        rng = self._rng
        rows = rng.choice([1, 1, 2, 7])
        position = rng.choice([self._length, self._length, rng.randint(0, self._length)])
        floats = from_numpy(np.full((rows, 8), 0.5, np.float32))
        inputs = token_rows([rows] * rows) if self._span.start == 0 else floats
        fill = STAGES if rng.random() < 0.2 else None
        head = self._span.stop == STAGES
        want = Want("candidates" if head else rng.choice(["nothing", "hidden"]), rng.random() < 0.5)
        step = Step(max(0, self._number - (rng.random() < 0.2)), position, inputs, want, fill)
        if rng.random() < 0.3:  # a part of it for others, who may be there
            lanes = [Lane(0, None, position, 1)]
            for left in range(rows - 1, 0, -1):
                parent = rng.choice([None, 0, 0, rng.randrange(4)])
                lanes.append(Lane(left, parent, rng.choice([position, max(1, self._length)]), 1))
            step = replace(step, lanes=tuple(lanes), ended=rng.choice([(), (), (1, 2)]))
        self._number += 1
        self._length = position + rows
        return step

    def _step(self) -> Step:
        rng = self._rng
        kind = rng.choice(["nothing", "hidden", "candidates"])
        want = Want(
            kind,
            rng.random() < 0.5,
            rng.choice([0, 1, 40]),
            rng.choice([(), (1,), (99,)]),
            rng.choice([1.0, 1e-3]),
        )
        fill = rng.choice([None, None, rng.randrange(STAGES + 1)])
        lanes = [
            Lane(rng.randrange(4), rng.choice([None, rng.randrange(4)]), rng.randrange(10), rng.randrange(4))
            for _ in range(rng.choice([0, 0, 1, 3]))
        ]
        ended = tuple(rng.sample(range(4), rng.choice([0, 0, 2])))
        return Step(rng.randrange(6), rng.randrange(10), self._inputs(), want, fill, tuple(lanes), ended)

    def _known(self) -> Known:
        rng = self._rng
        inputs = rng.choice([None, self._inputs()])
        mark = rng.choice([bytes(32), rng.randbytes(32)])
        return Known(
            rng.randrange(6), rng.randrange(10), rng.choice([0, 32, 512]), mark, inputs, self._step().want
        )

    def _inputs(self) -> Tensor:
        rng = self._rng
        rows = rng.choice([0, 1, 2, 7, 600])
        floats = np.full((rows, rng.choice([8, 8, 8, 3])), rng.choice([0.5, 0.5, np.nan, 3e38]), np.float32)
        return rng.choice([token_rows([rng.choice([1, 31, 32, -1])] * rows), from_numpy(floats)])


async def say_things(stranger: Stranger, client: Client, rng: random.Random) -> None:
    """Some messages without regard to the rules, perhaps some rubbish, then an end of any kind."""
    stream = client.channel.stream
    try:
        with trio.move_on_after(0.05):
            await stream.send(encode(stranger.first()))
            for _ in range(rng.randrange(12)):
                await stream.send(encode(stranger.message()))
            if rng.random() < 0.2:
                await stream.send(rng.randbytes(rng.randrange(1, 40)))
            if rng.random() < 0.5:
                while await stream.receive():
                    pass
        if rng.random() < 0.5:
            await stream.finish()
        stream.reset()
    except Lost:
        pass


@pytest.mark.parametrize("seed", range(6))
async def test_strangers_do_no_harm(
    swarm: Swarm, seed: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No traceback, nothing left behind, and an honest session beside them is served to its end."""
    monkeypatch.setattr("protocol.limits.ATTACH_WAIT_S", 0.02)
    monkeypatch.setattr("protocol.limits.FORK_WAIT_S", 0.02)
    rng = random.Random(seed)
    node = await swarm.node(WHOLE, prefix_bytes=1 << 20)
    crowd = [await swarm.transport() for _ in range(2)]
    honest = await opened(await swarm.client(node), WHOLE)
    with caplog.at_level(logging.WARNING):
        for number in range(ROUNDS):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    client = await Client.to(rng.choice([*crowd, await swarm.transport()]), node.transport)
                    nursery.start_soon(say_things, Stranger(rng, node), client, rng)
                await honest.step(number, number, token_rows([number]), Want(top=3))
                output = (await honest.gather(lambda message: isinstance(message, Output)))[-1]
                assert ids_of(output) == expected_ids(list(range(number + 1)))[-1:]
    await eventually(lambda: len(node.hop) == 1 and node.budget.free == 1000 - 64)
    assert [record.message for record in caplog.records if record.exc_info] == []
    assert [cache.closed for cache in node.engine.caches].count(False) == 1  # the honest one's
    assert len(node.engine.steps) > ROUNDS  # strangers got that far too
