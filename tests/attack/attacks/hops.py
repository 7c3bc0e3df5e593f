"""Nodes that are in the route and lie. Each announces one half of the model, faster than anybody, and answers.

What they say could be said of any step; what they never say is a finite number of the right shape that is merely
wrong, for nobody could tell.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import numpy as np
import trio
from numpy.typing import NDArray

from protocol import limits
from protocol.candidates import Candidates
from protocol.errors import SwarmError
from protocol.messages import (
    MAP_PROTOCOL,
    SESSION_PROTOCOL,
    Ack,
    Attach,
    Error,
    LinkDown,
    MapReply,
    MapRequest,
    Message,
    NextHop,
    Open,
    Opened,
    Output,
    Ping,
    Pong,
    Relink,
    Step,
)
from protocol.records import Announcement
from protocol.talk.channel import Channel
from protocol.tensors import from_numpy
from protocol.transport.base import Stream
from tests.attack.stranger import Field, Stranger, stranger, try_to

FAST = {"decode_ms": 0.0, "prefill_ms": 0.0, "head_ms": 0.0, "queue_ms": 0.0}
SAY_AGAIN_S = 2.0


class Lying:
    """One session at a liar: what it was asked, and the channel to the client it lies to."""

    def __init__(self, channel: Channel, opened: Open, hidden_size: int) -> None:
        self.channel = channel
        self.next: NextHop | None = opened.next
        self.hidden_size = hidden_size
        self.received = 0

    async def say(self, *messages: Message) -> None:
        """To the client."""
        await self.channel.send(*messages)


Lie = Callable[[Lying, Message], Awaitable[None]]


async def serve_lies(field: Field, half: int, lie: Lie) -> None:
    """Be a node of the first half (0) or the second, and answer each message of a session with `lie`."""
    honest = field.nodes[half]
    sessions: dict[bytes, Lying] = {}

    async def session(stream: Stream) -> None:
        async with Channel(stream) as channel:
            first = await channel.receive()
            if isinstance(first, Open):
                lying = sessions[first.session] = Lying(channel, first, honest.hidden_size)
                await lying.say(Opened(honest.dtype, honest.numerics, goes_back=True))
                print("met", flush=True)
            elif isinstance(first, Attach) and first.session in sessions:
                lying = sessions[first.session]
            else:
                return
            while (message := await channel.receive()) is not None:
                if isinstance(message, Step):
                    lying.received = max(lying.received, message.number + 1)
                elif isinstance(message, Relink):
                    lying.next = message.next
                await lie(lying, message)

    async with stranger(listens=True) as me:
        me.transport.serve(SESSION_PROTOCOL, partial(_tolerate, session))
        await _announce(me, field.nodes, honest)


async def _announce(me: Stranger, nodes: Sequence[Announcement], honest: Announcement) -> None:
    """Be in the maps of all, for ever."""

    def says() -> bytes:
        return me.says(honest, addrs=me.transport.addrs, links=(), **FAST)

    async def hand_out(stream: Stream) -> None:
        async with Channel(stream) as channel:
            await channel.expect(MapRequest, limits.CONTROL_TIMEOUT_S)
            await channel.send(MapReply((says(),)))

    me.transport.serve(MAP_PROTOCOL, partial(_tolerate, hand_out))
    while True:
        for node in nodes:
            await try_to(partial(me.push, node, [says()]))
        await trio.sleep(SAY_AGAIN_S)


async def _tolerate(handler: Callable[[Stream], Awaitable[None]], stream: Stream) -> None:
    try:
        await handler(stream)
    except SwarmError:
        stream.reset()


async def _pong(lying: Lying, message: Message, *, computed: int) -> None:
    if isinstance(message, Ping):
        await lying.say(Pong(message.nonce, lying.received, computed))


def _hidden(step: Step, width: int, value: float) -> Output:
    data: NDArray[np.float32] = np.full((step.inputs.rows, width), value, np.float32)
    return Output(step.number, step.position, hidden=from_numpy(data))


# --- the first half


async def _loses_its_link(lying: Lying, message: Message, *, value: float, width: int | None) -> None:
    await _pong(lying, message, computed=lying.received)
    if isinstance(message, Step):
        if lying.next is not None:
            await lying.say(LinkDown(lying.next.session, "lost"), Ack(message.number, 0.0, 0.0))
        else:
            await lying.say(_hidden(message, width or lying.hidden_size, value))
    elif isinstance(message, Relink) and message.next is None:
        data: NDArray[np.float32] = np.full((1, width or lying.hidden_size), value, np.float32)
        for number in range(lying.received):
            await lying.say(Output(number, 0, hidden=from_numpy(data)))


async def link_down_then_nan(field: Field) -> None:
    """It cannot reach the next hop, it says; what the client is to carry is NaN."""
    await serve_lies(field, 0, partial(_loses_its_link, value=math.nan, width=None))


async def link_down_then_another_width(field: Field) -> None:
    """The same with hidden states of another model."""
    await serve_lies(field, 0, partial(_loses_its_link, value=0.5, width=7))


async def acks_without_sending_on(field: Field) -> None:
    """It has computed and sent on, it says."""

    async def lie(lying: Lying, message: Message) -> None:
        await _pong(lying, message, computed=lying.received)
        if isinstance(message, Step):
            await lying.say(Ack(message.number, 0.0, 1.0))

    await serve_lies(field, 0, lie)


async def pongs_without_computing(field: Field) -> None:
    """It is alive and never done."""
    await serve_lies(field, 0, partial(_pong, computed=0))


async def blames_the_client(field: Field) -> None:
    """The request itself is at fault, it says, and nobody else would take it."""

    async def lie(lying: Lying, message: Message) -> None:
        if isinstance(message, Step):
            await lying.say(Error("bad_step", "your fault", elsewhere=False))

    await serve_lies(field, 0, lie)


async def link_down_for_ever(field: Field) -> None:
    """After every relink the link is down again."""

    async def lie(lying: Lying, message: Message) -> None:
        await _pong(lying, message, computed=lying.received)
        if isinstance(message, Step | Relink) and lying.next is not None:
            await lying.say(LinkDown(lying.next.session, "lost again"))

    await serve_lies(field, 0, lie)


# --- the second half


async def slanders_the_hop_before(field: Field) -> None:
    """What the honest hop before sends is bad, it says."""

    async def lie(lying: Lying, message: Message) -> None:
        if isinstance(message, Step):
            await lying.say(Error("bad_hidden", "NaN", elsewhere=True))

    await serve_lies(field, 1, lie)


def _answers(ids: list[int], logits: list[float], lse: float, rows: int = 1) -> Lie:
    async def lie(lying: Lying, message: Message) -> None:
        await _pong(lying, message, computed=lying.received)
        if isinstance(message, Step) and message.want.kind == "candidates":
            asked: NDArray[np.float32] = np.zeros((rows, len(message.want.ids)), np.float32)
            found = Candidates(
                np.array([ids] * rows, np.int32),
                np.array([logits] * rows, np.float32),
                np.array([lse] * rows, np.float32),
                asked,
            )
            last = message.position + message.inputs.rows - 1
            await lying.say(Output(message.number, last, candidates=found), Ack(message.number, 0.0, 0.0))
        elif isinstance(message, Step):
            await lying.say(Ack(message.number, 0.0, 0.0))

    return lie


async def repeated_candidates(field: Field) -> None:
    """One id, many times."""
    await serve_lies(field, 1, _answers([7] * 40, [1.0] * 40, 9.0))


async def unsorted_candidates(field: Field) -> None:
    """The best last."""
    await serve_lies(field, 1, _answers(list(range(40)), [float(n) for n in range(40)], 50.0))


async def nan_candidates(field: Field) -> None:
    """Logits that are no numbers."""
    await serve_lies(field, 1, _answers([7], [math.nan], 9.0))


async def too_many_rows(field: Field) -> None:
    """More rows than were asked for."""
    await serve_lies(field, 1, _answers([7], [1.0], 9.0, rows=5))


async def ids_of_no_vocabulary(field: Field) -> None:
    """A token that does not exist."""
    await serve_lies(field, 1, _answers([1 << 19], [1.0], 9.0))


async def no_output(field: Field) -> None:
    """Acks for what was wanted."""

    async def lie(lying: Lying, message: Message) -> None:
        await _pong(lying, message, computed=lying.received)
        if isinstance(message, Step):
            await lying.say(Ack(message.number, 0.0, 0.0))

    await serve_lies(field, 1, lie)


ATTACKS = (
    link_down_then_nan,
    link_down_then_another_width,
    acks_without_sending_on,
    pongs_without_computing,
    blames_the_client,
    link_down_for_ever,
    slanders_the_hop_before,
    repeated_candidates,
    unsorted_candidates,
    nan_candidates,
    too_many_rows,
    ids_of_no_vocabulary,
    no_output,
)
