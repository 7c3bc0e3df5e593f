"""A hop's promises to its client and to its neighbours, over the memory transport."""

from __future__ import annotations

import numpy as np
import pytest
import trio

from node.compute.casting import cast_hidden
from node.compute.loop import WorkerThread
from node.compute.scheduler import Budget
from protocol.candidates import HIDDEN, NOTHING, Want
from protocol.errors import Lost
from protocol.messages import (
    Ack,
    Attach,
    Close,
    Error,
    Message,
    Opened,
    Output,
    Ping,
    Pong,
    Refused,
    Relink,
    Step,
)
from protocol.model import Span
from protocol.tensors import Tensor, from_numpy
from tests.node.conftest import Swarm
from tests.node.fakes import (
    STAGES,
    Client,
    ManualExecutor,
    acked,
    expected_ids,
    hidden_of,
    hidden_rows,
    ids_of,
    opened,
    token_rows,
)
from tests.support.waiting import eventually

WHOLE = Span(0, STAGES)
FRONT, BACK = Span(0, 4), Span(4, STAGES)
LAST = Want("candidates", top=3)
EVERY = Want("candidates", every=True, top=3)
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


async def test_steps_before_opened_are_served(swarm: Swarm) -> None:
    """A client may send steps before it has seen Opened; outputs, then Acks, come in order of computing."""
    client = await swarm.client(await swarm.node(WHOLE))
    await client.open(WHOLE)
    await client.step(0, 0, token_rows(TOKENS[:6]), LAST)
    await client.step(1, 6, token_rows(TOKENS[6:7]), LAST)
    assert (await client.expect(Opened)).dtype == "f32"
    expected = expected_ids(TOKENS)
    assert ids_of(await client.expect(Output)) == [expected[5]]
    assert (await client.expect(Ack)).number == 0
    output = await client.expect(Output)
    assert (output.number, output.position, ids_of(output)) == (1, 6, [expected[6]])
    assert (await client.expect(Ack)).number == 1


async def test_two_hops_give_what_one_gives(swarm: Swarm) -> None:
    """Hidden states go from hop to hop, whatever opens first; every hop acknowledges to the client."""
    front, back = await swarm.node(FRONT), await swarm.node(BACK)
    first, second = await swarm.client(front), await swarm.client(back)
    await first.open(FRONT, next=back.as_next(second))  # its Attach arrives before the Open at the back
    await first.step(0, 0, token_rows(TOKENS), EVERY)
    await first.expect(Opened)
    await opened(second, BACK)
    assert (await first.expect(Ack)).number == 0
    assert ids_of(await second.expect(Output)) == expected_ids(TOKENS)
    assert (await second.expect(Ack)).number == 0


async def test_a_real_worker_thread(swarm: Swarm) -> None:
    """The same over the thread that nodes use."""
    executor = WorkerThread()
    client = await opened(await swarm.client(await swarm.node(WHOLE, executor=executor)), WHOLE)
    for number, token in enumerate(TOKENS):
        await client.step(number, number, token_rows([token]), LAST)
        assert ids_of(await client.expect(Output)) == [expected_ids(TOKENS)[number]]
        ack = await client.expect(Ack)
        assert ack.compute_ms > 0
    executor.close()


@pytest.mark.parametrize(
    ("want", "rows"), [(HIDDEN, [0, 1, 2]), (Want("hidden"), [2]), (NOTHING, []), (LAST, None)], ids=str
)
async def test_the_last_hop_before_the_clients_own_head(
    swarm: Swarm, want: Want, rows: list[int] | None
) -> None:
    """It returns the hidden rows that are wanted; it cannot return candidates."""
    client = await opened(await swarm.client(await swarm.node(FRONT)), FRONT)
    await client.step(0, 0, token_rows(TOKENS[:3]), want)
    if rows is None:
        assert (await client.expect(Error)).code == "malformed"
        return
    messages = await client.gather(acked(0))
    expected = hidden_rows(TOKENS[:3], 4).numpy().tolist()
    assert [hidden_of(message) for message in messages[:-1]] == (
        [[expected[i] for i in rows]] if rows else []
    )
    assert all(isinstance(m, Ack) or (isinstance(m, Output) and m.position == rows[0]) for m in messages)


async def test_a_bridged_hop_returns_all_hidden_states(swarm: Swarm) -> None:
    """Whatever a step wants, since the client carries them on."""
    client = await opened(await swarm.client(await swarm.node(FRONT)), FRONT, bridged=True)
    await client.step(0, 0, token_rows(TOKENS), LAST)
    assert hidden_of(await client.expect(Output)) == hidden_rows(TOKENS, 4).numpy().tolist()
    await client.step(1, 8, token_rows([1]), NOTHING)
    await client.expect(Ack)
    assert len(hidden_of(await client.expect(Output))) == 1


async def test_a_fill_goes_only_as_far_as_it_should(swarm: Swarm) -> None:
    """It passes hops that end before `fill_until`, gives no output, and the next live step stands on it."""
    front, back = await swarm.node(FRONT), await swarm.node(BACK)
    second = await opened(await swarm.client(back), BACK)
    first = await opened(await swarm.client(front), FRONT, next=back.as_next(second))
    await first.step(0, 0, token_rows(TOKENS[:3]), EVERY, fill=STAGES)
    assert [m for m in await second.gather(acked(0)) if isinstance(m, Output)] == []
    await first.step(1, 3, token_rows(TOKENS[3:4]), LAST)
    assert ids_of(await second.expect(Output)) == [expected_ids(TOKENS)[3]]
    await first.gather(acked(1))
    await first.step(2, 4, token_rows(TOKENS[4:5]), LAST, fill=4)
    await first.gather(acked(2))
    assert back.engine.steps == [(0, 3), (3, 1)]


async def test_rollback_is_a_step_at_an_earlier_position(swarm: Swarm) -> None:
    """The cache is cut, and what follows is as if the rejected tokens had never been."""
    client = await opened(await swarm.client(await swarm.node(WHOLE)), WHOLE)
    await client.step(0, 0, token_rows([*TOKENS[:4], 30, 31]), LAST)
    await client.step(1, 4, token_rows(TOKENS[4:]), EVERY)
    messages = await client.gather(acked(1))
    assert ids_of(messages[-2]) == expected_ids(TOKENS)[4:]


async def test_a_repeated_step_is_answered_and_not_computed(swarm: Swarm) -> None:
    """The same output and an Ack come again; a step still queued is answered once."""
    executor = ManualExecutor()
    node = await swarm.node(WHOLE, executor=executor)
    client = await opened(await swarm.client(node), WHOLE)
    await client.step(0, 0, token_rows(TOKENS), LAST)
    await client.step(0, 0, token_rows(TOKENS), LAST)
    await client.send(Ping(7))
    assert await client.expect(Pong) == Pong(7, 1, 0)
    executor.release()
    first = await client.expect(Output)
    await client.expect(Ack)
    await client.step(0, 0, token_rows(TOKENS), LAST)
    again = await client.expect(Output)
    assert ids_of(again) == ids_of(first)
    assert (await client.expect(Ack)).number == 0
    assert node.engine.steps == [(0, 8)]


async def test_a_repeated_step_does_not_travel(swarm: Swarm) -> None:
    """Where results go to another hop the client hears that its step is done, and the other hop nothing."""
    front, back = await swarm.node(FRONT), await swarm.node(BACK)
    second = await opened(await swarm.client(back), BACK)
    first = await opened(await swarm.client(front), FRONT, next=back.as_next(second))
    for _ in range(3):
        await first.step(0, 0, token_rows(TOKENS), EVERY)
        await first.gather(acked(0))
    await first.step(1, 8, token_rows([1]), LAST)
    outputs = [m.number for m in await second.gather(acked(1)) if isinstance(m, Output)]
    assert outputs == [0, 1]
    assert (front.engine.steps, back.engine.steps) == ([(0, 8), (8, 1)], [(0, 8), (8, 1)])


async def test_a_step_that_comes_again_from_the_hop_before_is_not_answered(swarm: Swarm) -> None:
    """Or two hops that feed each other would never end."""
    node = await swarm.node(BACK)
    client = await opened(await swarm.client(node), BACK)
    previous = await swarm.client(node)
    await previous.attach(client.session)
    for _ in range(3):
        await previous.step(0, 0, hidden_rows(TOKENS[:7], 4), LAST)
    await previous.step(1, 7, hidden_rows(TOKENS, 4).row_slice(7, 8), LAST)
    outputs = [m.number for m in await client.gather(acked(1)) if isinstance(m, Output)]
    assert outputs == [0, 1]
    assert node.engine.steps == [(0, 7), (7, 1)]


async def test_ping_is_answered_while_computing(swarm: Swarm) -> None:
    """Numbers received and computed, at once."""
    executor = ManualExecutor()
    client = await opened(await swarm.client(await swarm.node(WHOLE, executor=executor)), WHOLE)
    await client.step(0, 0, token_rows(TOKENS), LAST)
    await client.step(4, 8, token_rows([1]), LAST)
    await client.send(Ping(1))
    assert await client.expect(Pong) == Pong(1, 5, 0)
    executor.release()
    await client.gather(acked(4))
    await client.send(Ping(2))
    assert await client.expect(Pong) == Pong(2, 5, 5)


async def test_short_steps_of_others_go_between_the_pieces_of_a_prefill(swarm: Swarm) -> None:
    """A long step in pieces gives what it gives whole."""
    executor = ManualExecutor()
    node = await swarm.node(WHOLE, executor=executor)
    node.hop.scheduler.budget = Budget(beside=16)
    slow, quick = await opened(await swarm.client(node), WHOLE), await opened(await swarm.client(node), WHOLE)
    tokens = [i % 32 for i in range(40)]
    await quick.step(0, 0, token_rows([1]), LAST)
    await eventually(lambda: len(executor.queue) == 1)
    executor.run_one()
    await slow.step(0, 0, token_rows(tokens), EVERY)
    await eventually(lambda: len(executor.queue) == 1)
    await quick.step(1, 1, token_rows([2]), LAST)
    await quick.send(Ping(0))
    await quick.gather(lambda message: isinstance(message, Pong))
    executor.release()
    assert node.engine.steps == [(0, 1), (0, 16), (1, 1), (16, 16), (32, 8)]
    assert ids_of(await slow.expect(Output)) == expected_ids(tokens)
    assert ids_of(await quick.expect(Output)) == expected_ids([1, 2])[1:]


async def test_a_flood_of_steps_is_held_back(swarm: Swarm) -> None:
    """No more steps are read than may be held; when they are computed the rest comes, in order."""
    executor = ManualExecutor()
    node = await swarm.node(FRONT, executor=executor)
    client = await opened(await swarm.client(node), FRONT, max_tokens=200)
    for number in range(150):
        await client.step(number, number, token_rows([1]), NOTHING)
    await eventually(lambda: len(node.hop.scheduler) == 63)  # and one is with the executor
    executor.release()
    acks = [m.number for m in await client.gather(acked(149)) if isinstance(m, Ack)]
    assert acks == list(range(150))


async def test_close_gives_the_cache_back(swarm: Swarm) -> None:
    """Close, a clean end and a reset alike."""
    node = await swarm.node(WHOLE)
    for end in ("close", "finish", "reset"):
        client = await opened(await swarm.client(node), WHOLE, max_tokens=100)
        await client.step(0, 0, token_rows(TOKENS), LAST)
        await client.expect(Output)
        assert node.budget.free == 900
        if end == "close":
            await client.send(Close())
        elif end == "finish":
            await client.channel.stream.finish()
        else:
            client.channel.stream.reset()
        await eventually(lambda: node.budget.free == 1000 and len(node.hop) == 0)
        assert node.engine.caches[-1].closed


async def test_a_session_that_ends_while_computing_frees_its_cache_after(swarm: Swarm) -> None:
    """Its steps that wait never run, and the seat is free once the thread that computes is through with it."""
    executor = ManualExecutor()
    node = await swarm.node(WHOLE, executor=executor)
    client = await opened(await swarm.client(node), WHOLE, max_tokens=100)
    await client.step(0, 0, token_rows(TOKENS), LAST)
    await client.step(1, 8, token_rows([1]), LAST)
    await client.send(Close())
    await eventually(lambda: len(node.hop) == 0)
    assert node.budget.free == 900
    executor.release()
    assert node.budget.free == 1000
    assert node.engine.steps == []


@pytest.mark.parametrize(
    ("span", "max_tokens", "code"),
    [
        (Span(2, 6), 10, "span"),
        (FRONT, 2000, "capacity"),
        (FRONT, 600, "capacity"),
        (FRONT, 0, "capacity"),
        (FRONT, 300, "busy"),
    ],
    ids=str,
)
async def test_refusals(swarm: Swarm, span: Span, max_tokens: int, code: str) -> None:
    """Each says why; what may be free later says when to ask again."""
    node = await swarm.node(FRONT, kv_tokens=500)
    await opened(await swarm.client(node), FRONT, max_tokens=400)
    client = await swarm.client(node)
    await client.open(span, max_tokens=max_tokens)
    refused = await client.expect(Refused)
    assert refused.code == code
    assert (refused.retry_after_s > 0) == (code == "busy")
    if code == "capacity":
        assert "500" in refused.reason
    await client.ended()
    assert len(node.hop) == 1


async def test_too_many_sessions_of_one_peer(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """One peer cannot take everything."""
    monkeypatch.setattr("protocol.limits.SESSIONS_PER_PEER", 2)
    node, peer = await swarm.node(FRONT), await swarm.transport()
    for _ in range(2):
        await opened(await Client.to(peer, node.transport), FRONT)
    client = await Client.to(peer, node.transport)
    await client.open(FRONT)
    assert (await client.expect(Refused)).code == "busy"
    await opened(await swarm.client(node), FRONT)


async def test_a_session_id_is_taken_once(swarm: Swarm) -> None:
    """Who knows the id of another's session cannot end or replace it by opening it."""
    node = await swarm.node(WHOLE)
    client = await opened(await swarm.client(node), WHOLE)
    thief = await swarm.client(node)
    thief.session = client.session
    await thief.open(WHOLE)
    assert (await thief.expect(Refused)).code == "busy"
    await client.step(0, 0, token_rows(TOKENS), LAST)
    await client.expect(Output)


async def test_regression_a_session_id_comes_again_while_its_cache_is_closed(swarm: Swarm) -> None:
    """A client that reconnects at once is served, though the worker has yet to close what it left."""
    executor = ManualExecutor()
    node = await swarm.node(WHOLE, executor=executor)
    client = await opened(await swarm.client(node), WHOLE, max_tokens=100)
    await client.send(Close())
    await eventually(lambda: len(node.hop) == 0)
    again = await swarm.client(node)
    again.session = client.session
    await opened(again, WHOLE, max_tokens=100)
    assert node.budget.free == 800
    executor.release()
    assert node.budget.free == 900


async def test_draining(swarm: Swarm) -> None:
    """Sessions end with word that elsewhere helps; new ones are refused."""
    node = await swarm.node(WHOLE)
    client = await opened(await swarm.client(node), WHOLE)
    await node.hop.drain(1.0)
    error = await client.expect(Error)
    assert (error.code, error.elsewhere) == ("leaving", True)
    late = await swarm.client(node)
    await late.open(WHOLE)
    assert (await late.expect(Refused)).code == "draining"


async def test_an_idle_client_is_gone(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence for long enough frees the session."""
    monkeypatch.setattr("protocol.limits.SESSION_IDLE_S", 0.05)
    node = await swarm.node(WHOLE)
    client = await opened(await swarm.client(node), WHOLE)
    assert (await client.expect(Error)).code == "idle"
    await eventually(lambda: node.budget.free == 1000)


async def test_a_stream_that_says_nothing(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is not kept."""
    monkeypatch.setattr("protocol.limits.FIRST_MESSAGE_TIMEOUT_S", 0.02)
    client = await swarm.client(await swarm.node(WHOLE))
    with pytest.raises(Lost), trio.fail_after(5):
        await client.channel.receive()


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
async def test_neighbours_may_compute_in_other_dtypes(swarm: Swarm, dtype: str) -> None:
    """Their hidden states are taken as the nearest in our own."""
    client = await opened(await swarm.client(await swarm.node(BACK)), BACK)
    rows = cast_hidden(hidden_rows(TOKENS, 4), dtype)
    await client.step(0, 0, rows, LAST)
    theirs = ids_of(await client.expect(Output))
    again = await opened(await swarm.client(await swarm.node(BACK)), BACK)
    await again.step(0, 0, cast_hidden(rows, "f32"), LAST)
    assert ids_of(await again.expect(Output)) == theirs


async def test_logits_of_ids_that_are_none(swarm: Swarm) -> None:
    """The client's fault, whoever brings the step."""
    node = await swarm.node(BACK)
    client = await opened(await swarm.client(node), BACK)
    previous = await swarm.client(node)
    await previous.attach(client.session)
    await previous.step(0, 0, hidden_rows(TOKENS, 4), Want(ids=(99,)))
    error = await client.expect(Error)
    assert (error.code, error.elsewhere) == ("bad_step", False)


async def test_a_newer_attach_replaces_the_older(swarm: Swarm) -> None:
    """The older stream is closed; the session goes on with the newer."""
    node = await swarm.node(BACK)
    client = await opened(await swarm.client(node), BACK)
    old, new = await swarm.client(node), await swarm.client(node)
    await old.attach(client.session)
    await old.step(0, 0, hidden_rows(TOKENS[:4], 4), LAST)
    assert ids_of(await client.expect(Output)) == [expected_ids(TOKENS)[3]]
    await new.attach(client.session)
    await old.ended()
    await client.expect(Ack)
    await new.step(1, 4, hidden_rows(TOKENS, 4).row_slice(4, 8), LAST)
    assert ids_of(await client.expect(Output)) == [expected_ids(TOKENS)[7]]
    await client.expect(Ack)
    await new.channel.stream.finish()  # the session outlives the stream
    await client.send(Ping(1))
    assert await client.expect(Pong) == Pong(1, 2, 2)


async def test_attaching_to_nothing(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, unknown_session."""
    monkeypatch.setattr("protocol.limits.ATTACH_WAIT_S", 0.02)
    stranger = await swarm.client(await swarm.node(BACK))
    await stranger.send(Attach(bytes(16), 4))
    assert (await stranger.expect(Error)).code == "unknown_session"


def nan_rows() -> Tensor:
    """A hidden state that is none."""
    return from_numpy(np.full((1, 8), np.nan, np.float32))


BAD_STEPS = [
    (FRONT, Step(0, 0, token_rows([]), LAST)),
    (FRONT, Step(0, 0, token_rows([1] * 513), LAST)),
    (FRONT, Step(0, 1, token_rows([1]), LAST)),
    (FRONT, Step(0, 0, token_rows([1] * 65), LAST)),
    (FRONT, Step(0, 0, token_rows([99]), LAST)),
    (FRONT, Step(0, 0, token_rows([-1]), LAST)),
    (FRONT, Step(0, 0, hidden_rows([1], 4), LAST)),
    (BACK, Step(0, 0, token_rows([1]), LAST)),
    (BACK, Step(0, 0, nan_rows(), LAST)),
    (BACK, Step(0, 0, from_numpy(np.zeros((1, 9), np.float32)), LAST)),
    (BACK, Step(0, 0, from_numpy(np.zeros((1, 8, 1), np.float32)), LAST)),
]


@pytest.mark.parametrize(("span", "step"), BAD_STEPS)
async def test_bad_steps(swarm: Swarm, span: Span, step: Step) -> None:
    """They end their own session, named, and no other; from the client it is the client's fault."""
    node = await swarm.node(WHOLE)
    other = await opened(await swarm.client(node), WHOLE)
    client = await opened(await swarm.client(node), span)
    await client.send(step)
    error = await client.expect(Error)
    assert (error.code, error.elsewhere) == ("bad_step", False)
    await client.ended()
    await other.step(0, 0, token_rows(TOKENS), LAST)
    await other.expect(Output)


@pytest.mark.parametrize("step", [step for span, step in BAD_STEPS if span == BACK])
async def test_bad_hidden_states_are_the_previous_hops_fault(swarm: Swarm, step: Step) -> None:
    """The client is told that elsewhere may help."""
    node = await swarm.node(BACK)
    client = await opened(await swarm.client(node), BACK)
    previous = await swarm.client(node)
    await previous.attach(client.session)
    await previous.send(step)
    error = await client.expect(Error)
    assert (error.code, error.elsewhere) == ("bad_hidden", True)
    await previous.ended()


async def test_more_candidates_than_a_session_may_hold(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has not reserved is refused before it is computed; a row of the whole vocabulary always goes."""
    monkeypatch.setattr("protocol.limits.ANSWER_BYTES", 0)
    monkeypatch.setattr("protocol.limits.ASKED_IDS", 0)
    node = await swarm.node(WHOLE)
    client = await opened(await swarm.client(node), WHOLE)
    await client.step(0, 0, token_rows(TOKENS), Want("candidates", top=0))
    await client.gather(acked(0))
    node.engine.steps.clear()
    await client.step(1, 0, token_rows(TOKENS), Want("candidates", every=True, top=0))
    assert (await client.expect(Error)).code == "bad_step"
    assert node.engine.steps == []


@pytest.mark.parametrize("span", [FRONT, WHOLE])
async def test_bad_output(swarm: Swarm, span: Span) -> None:
    """A node whose engine spoils numbers says so itself."""
    node = await swarm.node(span)
    node.engine.spoil = True
    client = await opened(await swarm.client(node), span)
    await client.step(0, 0, token_rows(TOKENS), LAST)
    error = await client.expect(Error)
    assert (error.code, error.elsewhere) == ("bad_output", True)


async def test_an_engine_that_fails(swarm: Swarm, caplog: pytest.LogCaptureFixture) -> None:
    """The traceback is logged here; the client learns that elsewhere helps; others go on."""
    node = await swarm.node(WHOLE)
    node.engine.error = ZeroDivisionError("deliberate")
    client = await opened(await swarm.client(node), WHOLE)
    await client.step(0, 0, token_rows(TOKENS), LAST)
    error = await client.expect(Error)
    assert (error.code, error.elsewhere) == ("engine", True)
    assert "deliberate" in caplog.text
    assert "deliberate" not in error.message
    node.engine.error = None
    again = await opened(await swarm.client(node), WHOLE)
    await again.step(0, 0, token_rows(TOKENS), LAST)
    await again.expect(Output)


@pytest.mark.parametrize(
    "junk", [b"\0\0\0\1\x80", b"\xff\xff\xff\xff", b"\0\0\0\x02\xc1\xc1", b"\0\0\0\x08\x81\xa1t\xa4ping"]
)
@pytest.mark.parametrize("open_first", [False, True])
async def test_junk_ends_its_stream_only(swarm: Swarm, junk: bytes, open_first: bool) -> None:
    """Named to the sender, no traceback, and the session of another goes on."""
    node = await swarm.node(WHOLE)
    other = await opened(await swarm.client(node), WHOLE)
    client = await swarm.client(node)
    if open_first:
        await opened(client, WHOLE)
    await client.channel.stream.send(junk)
    error = await client.channel.receive() if open_first else await raw_error(client)
    assert isinstance(error, Error)
    assert error.code == "malformed"
    await eventually(lambda: len(node.hop) == 1)
    await other.step(0, 0, token_rows(TOKENS), LAST)
    await other.expect(Output)


async def raw_error(client: Client) -> Message | None:
    """What came on a stream on which we never spoke properly."""
    client.channel._state = None  # the table would not let an opener that said nothing hear anything
    return await client.channel.receive()


async def test_relink_to_a_head_is_the_end_of_the_route(swarm: Swarm) -> None:
    """No hop comes after the head."""
    node = await swarm.node(WHOLE)
    client = await opened(await swarm.client(node), WHOLE)
    await client.send(Relink(node.as_next(client), False, 0, STAGES))
    assert (await client.expect(Error)).code == "malformed"
