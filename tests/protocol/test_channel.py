"""Messages over a stream."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from protocol import limits
from protocol.candidates import NOTHING
from protocol.codec import encode
from protocol.errors import LocalProtocolError, Lost, Malformed, SwarmError, TimedOut, TooLarge
from protocol.messages import Ack, Attach, Close, Error, Message, Opened, Ping, Pong, Step
from protocol.numerics import Numerics
from protocol.session import Side, State, StreamState
from protocol.talk.channel import Channel
from protocol.tensors import Tensor
from protocol.transport.base import Handler, Stream
from protocol.transport.memory.transport import MemoryTransport
from tests.protocol.network import say_nothing, two_peers
from tests.protocol.samples import MESSAGES, OTHER, same

ECHO = "/test/messages/1"


async def dial(client: MemoryTransport, server: MemoryTransport) -> Stream:
    """A stream to the server."""
    return await client.open_stream(server.peer, server.addrs, ECHO)


def sends(*pieces: bytes) -> Handler:
    """A server that sends these bytes as they are, and finishes."""

    async def handler(stream: Stream) -> None:
        for piece in pieces:
            await stream.send(piece)
        await stream.finish()
        while await stream.receive():
            pass

    return handler


async def echo(stream: Stream) -> None:
    """Sends every message back."""
    async with Channel(stream) as channel:
        while (message := await channel.receive()) is not None:
            await channel.send(message)


async def test_every_message_goes_there_and_back(autojump_clock: MockClock) -> None:
    """In order; None once the peer has finished."""
    async with two_peers(ECHO, echo) as (client, server), Channel(await dial(client, server)) as channel:
        assert channel.peer == OTHER.peer
        for message in MESSAGES.values():
            await channel.send(message)
        for message in MESSAGES.values():
            assert same(await channel.receive(), message)
        await channel.stream.finish()
        assert await channel.receive() is None


async def test_large_messages_of_many_tasks_do_not_mix(autojump_clock: MockClock) -> None:
    """Each message goes whole, whoever else is sending; a slow reader slows them all."""
    async with (
        two_peers(ECHO, echo) as (client, server),
        Channel(await dial(client, server)) as channel,
        trio.open_nursery() as nursery,
    ):
        for number in range(5):
            nursery.start_soon(channel.send, Error(str(number), "x" * 1000, True))
            nursery.start_soon(channel.send, large(number))
        seen = [await channel.receive() for _ in range(10)]
        assert {m.code for m in seen if isinstance(m, Error)} == set("01234")
        assert {m.number for m in seen if isinstance(m, Step)} == set(range(5))


def large(number: int) -> Step:
    """A step of a megabyte."""
    return Step(number, 0, Tensor("f32", (256, 1024), bytes([number]) * (1 << 20)), NOTHING)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\xff\xff\xff\xff", TooLarge),
        (b"\x00\x00\x00\x01\xc0", Malformed),
        (encode(Ping(1))[:-1], Malformed),
        (b"\x00", Malformed),
        (b"GET / HTTP/1.1\r\n\r\n", TooLarge),
    ],
    ids=["huge", "rubbish", "cut", "cut in the length", "another protocol"],
)
async def test_what_a_hostile_peer_sends(
    autojump_clock: MockClock, data: bytes, error: type[SwarmError]
) -> None:
    """Good messages before it still arrive; then the error, and the stream is reset."""
    reset = trio.Event()

    async def handler(stream: Stream) -> None:
        await stream.send(encode(Ping(7)) + data)
        await stream.finish()
        try:
            await stream.receive()
        finally:
            reset.set()

    async def client_side(client: MemoryTransport, server: MemoryTransport) -> None:
        async with Channel(await dial(client, server)) as channel:
            assert await channel.receive() == Ping(7)
            await channel.receive()

    async with two_peers(ECHO, handler) as (client, server):
        with pytest.raises(error):
            await client_side(client, server)
        with trio.fail_after(5):
            await reset.wait()


async def test_the_frame_limit_of_a_channel(autojump_clock: MockClock) -> None:
    """A control channel takes small frames only."""
    data = encode(large(1))
    async with two_peers(ECHO, sends(data)) as (client, server):
        async with Channel(await dial(client, server), frame_limit=len(data) - 4) as channel:
            assert isinstance(await channel.receive(), Step)
        async with Channel(await dial(client, server), frame_limit=len(data) - 5) as channel:
            with pytest.raises(TooLarge):
                await channel.receive()


async def test_a_limit_may_rise_once_the_peer_is_known(autojump_clock: MockClock) -> None:
    """What was refused by its length is taken afterwards, and nothing of it is lost."""
    data = encode(large(1))
    async with (
        two_peers(ECHO, sends(data)) as (client, server),
        Channel(await dial(client, server), frame_limit=1000) as channel,
    ):
        with pytest.raises(TooLarge):
            await channel.receive()
        channel.frame_limit = limits.FRAME_BYTES
        assert channel.frame_limit == limits.FRAME_BYTES
        assert same(await channel.receive(), large(1))


async def test_after_a_send_was_cut_short_nothing_more_is_sent(autojump_clock: MockClock) -> None:
    """A cancelled send may leave half a frame behind; what came after it would be read as its rest."""

    async def slow(stream: Stream) -> None:
        await trio.sleep_forever()

    async with two_peers(ECHO, slow) as (client, server), Channel(await dial(client, server)) as channel:
        with trio.move_on_after(1) as scope:
            for number in range(10):
                await channel.send(large(number))
        assert scope.cancelled_caught
        with pytest.raises(Lost, match="cut short"):
            await channel.send(Ping(1))


async def expect(handler: Handler, kind: type[Message] = Pong, within_s: float = 2.0) -> Message:
    """What a client that expects one answer makes of a server."""
    async with two_peers(ECHO, handler) as (client, server), Channel(await dial(client, server)) as channel:
        return await channel.expect(kind, within_s)


async def test_expect(autojump_clock: MockClock) -> None:
    """The message asked for; anything else is an error that says whose fault it is."""
    pong = Pong(1, 2, 3)
    assert await expect(sends(encode(pong))) == pong
    with pytest.raises(Malformed, match="answered ack"):
        await expect(sends(encode(Ack(1, 1.0, 1.0)), encode(pong)))
    with pytest.raises(Lost):
        await expect(sends())
    with pytest.raises(TooLarge):
        await expect(sends(b"\xff\xff\xff\xff"))


async def test_regression_an_honest_error_is_not_malformed(autojump_clock: MockClock) -> None:
    """A peer that says it cannot is another case than one that breaks the rules."""
    failure = Error("model", "not here any more", True)
    with pytest.raises(Lost, match="not here any more"):
        await expect(sends(encode(failure)))
    assert await expect(sends(encode(failure)), Error) == failure


async def test_silence(autojump_clock: MockClock) -> None:
    """TimedOut, exactly when it was said."""
    start = trio.current_time()
    with pytest.raises(TimedOut, match="within 2 s"):
        await expect(say_nothing)
    assert 2.0 <= trio.current_time() - start < 2.1


async def test_half_a_message_and_silence(autojump_clock: MockClock) -> None:
    """Bytes alone do not extend the time."""

    async def drip(stream: Stream) -> None:
        for byte in encode(Error("x" * 60, "y" * 1000, True)):
            await stream.send(bytes([byte]))
            await trio.sleep(0.5)

    with pytest.raises(TimedOut):
        await expect(drip)


async def test_a_timeout_loses_nothing(autojump_clock: MockClock) -> None:
    """What had come of a message is kept for the next time of asking."""
    data = encode(Pong(1, 2, 3))

    async def slow(stream: Stream) -> None:
        await stream.send(data[:10])
        await trio.sleep(5)
        await stream.send(data[10:])
        await stream.receive()

    async with two_peers(ECHO, slow) as (client, server), Channel(await dial(client, server)) as channel:
        with pytest.raises(TimedOut):
            await channel.expect(Pong, 2.0)
        assert await channel.expect(Pong, 9.0) == Pong(1, 2, 3)


async def test_the_table_is_held_in_both_directions(autojump_clock: MockClock) -> None:
    """Our own bug is not sent; the peer's is Malformed."""
    sent: list[Message | None] = []

    async def handler(stream: Stream) -> None:
        async with Channel(stream) as channel:
            sent.append(await channel.receive())
            await channel.send(Opened("f32", Numerics("f32"), goes_back=True))  # no answer to an Attach
            sent.append(await channel.receive())

    async with two_peers(ECHO, handler) as (client, server):
        state = StreamState(Side.OPENER)
        async with Channel(await dial(client, server), state=state) as channel:
            with pytest.raises(LocalProtocolError):
                await channel.send(Ping(1))
            await channel.send(Attach(bytes(16), 4))
            with pytest.raises(Malformed, match="opened"):
                await channel.receive()
            await channel.send(Close())
            assert state.state is State.CLOSED
        await trio.sleep(1)
    assert sent == [Attach(bytes(16), 4), Close()]


async def test_leaving_closes_and_failing_resets(autojump_clock: MockClock) -> None:
    """The peer reads an end after a clean leave, Lost after a failure."""
    ends: list[str] = []

    async def handler(stream: Stream) -> None:
        try:
            ends.append("end" if await stream.receive() == b"" else "data")
        except Lost:
            ends.append("lost")

    async def leave(channel: Channel, failing: bool) -> None:
        async with channel:
            if failing:
                raise ValueError("deliberate")

    async with two_peers(ECHO, handler) as (client, server):
        await leave(Channel(await dial(client, server)), failing=False)
        await trio.sleep(1)
        with pytest.raises(ValueError, match="deliberate"):
            await leave(Channel(await dial(client, server)), failing=True)
        await trio.sleep(1)
    assert ends == ["end", "lost"]


async def test_what_has_nothing_in_its_way_goes_at_once(autojump_clock: MockClock) -> None:
    """Nothing is sent, or noted in the table, where others send or the reader is slow; the table holds as ever."""
    async with two_peers(ECHO, say_nothing) as (client, server):
        channel = Channel(await dial(client, server), state=StreamState(Side.OPENER))
        await channel.send(Attach(b"s" * 16, 3))
        step = Step(0, 0, Tensor("f32", (64, 1024), bytes(1 << 18)), NOTHING)
        assert channel.send_now(step, step)
        async with trio.open_nursery() as nursery:
            while channel.send_now(step):
                pass
            nursery.start_soon(channel.send, step)
            await trio.testing.wait_all_tasks_blocked()
            assert not channel.send_now(Close())
            nursery.cancel_scope.cancel()
        assert not channel.send_now(Close())  # the frame before it was cut short
        with pytest.raises(LocalProtocolError):
            Channel(await dial(client, server), state=StreamState(Side.OPENER)).send_now(Ping(1))
