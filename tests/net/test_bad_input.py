"""What cannot be and who means ill: each costs one clear line or a refusal, and the nodes go on serving others.

The commands run in this process, as `swarm` runs them; the nodes are processes. Two models are in one swarm.
"""

from __future__ import annotations

import math
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import swarm
from protocol import limits
from protocol.candidates import Candidates, Want
from protocol.errors import ConfigError, SwarmError
from protocol.hints import RecordRule
from protocol.identity import Identity, generate
from protocol.messages import (
    MAP_PROTOCOL,
    SESSION_PROTOCOL,
    Ack,
    Error,
    MapReply,
    MapRequest,
    Message,
    Open,
    Opened,
    Output,
    Refused,
    Step,
)
from protocol.model import Span
from protocol.numerics import Numerics
from protocol.records import Announcement, parse_record, sign_record
from protocol.session import Side, StreamState
from protocol.talk.channel import Channel
from protocol.talk.exchange import exchange_maps
from protocol.tensors import from_numpy
from protocol.transport.base import Handler, Stream, Transport
from protocol.transport.libp2p import open_transport
from swarm.cli import main
from tests.support.forge import Forge
from tests.support.local_swarm import LOOPBACK, LocalSwarm
from tests.support.models import VOCABULARY, make_model
from tests.support.processes import Processes
from tests.support.waiting import eventually

pytestmark = [pytest.mark.net, pytest.mark.timeout(180)]

LAYERS = 2
STAGES = LAYERS + 2
KV_TOKENS = 300  # less than the models' context of 512
PROMPT = [5, 4, 3]
NOBODY = "/ip4/127.0.0.1/udp/9/quic-v1/p2p/12D3KooWL6mTvFXi9JSMNbz6Q1PG2sgCYaqje8mdbLGWmYpXG3Vk"


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str
    seconds: float

    def failed(self, status: int, pattern: str) -> None:
        """It did, with this status and one line that has the pattern, and said nothing else."""
        said = self.err.splitlines()
        assert self.status == status, self
        assert len(said) == 1, self
        assert said[0].startswith("error: ")
        assert re.search(pattern, said[0]), said[0]


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`swarm ...`, in this process."""
    monkeypatch.setenv("SWARM_HOME", str(tmp_path))
    monkeypatch.delenv("SWARM_JOIN", raising=False)

    def run_it(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["swarm", *map(str, words)])
        capsys.readouterr()
        began = time.monotonic()
        status = main()
        out, err = capsys.readouterr()
        return Ran(status, out, err, time.monotonic() - began)

    return run_it


# --- a node that cannot be


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A sound checkpoint in several files."""
    return make_model("llama", tmp_path / "sharded", seed=1, layers=LAYERS, sharded=True)


def test_a_model_that_is_not_there(run: Run, tmp_path: Path) -> None:
    """A path of nothing and a folder of something else."""
    run("node", "--model", tmp_path / "nothing").failed(2, "nothing")
    (tmp_path / "empty").mkdir()
    assert run("node", "--model", tmp_path / "empty").status in (1, 2)


def test_a_shard_that_is_missing(run: Run, sharded: Path) -> None:
    """The line names the file."""
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    run("node", "--model", sharded, "--layers", "0:2").failed(1, lost.name)


def test_a_tensor_that_is_missing(run: Run, sharded: Path) -> None:
    """The line names it."""
    name = "model.layers.1.mlp.up_proj.weight"
    for shard in sharded.glob("*.safetensors"):
        tensors = load_file(shard)
        if tensors.pop(name, None) is not None:
            save_file(tensors, shard)
    run("node", "--model", sharded, "--layers", "0:2").failed(1, re.escape(name))


@pytest.mark.parametrize("damage", [lambda data: data[:-1000], lambda _: b"junk"], ids=["short", "junk"])
def test_a_shard_that_is_damaged(run: Run, sharded: Path, damage: Callable[[bytes], bytes]) -> None:
    """The line names the file."""
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.write_bytes(damage(shard.read_bytes()))
    run("node", "--model", sharded, "--layers", "0:2").failed(1, shard.name)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--layers", "1:9"], "1:9.*0:2"),
        (["--layers", "2:1"], "2:1"),
        (["--layers", "some"], "some"),
        (["--layers", "0:2", "--max-memory", "10"], "memory"),
        (["--listen", "/ip4/127.0.0.1/tcp/4001"], "malformed address"),
        (["--listen", "rubbish"], "malformed address 'rubbish'"),
        (["--join", "/ip4/127.0.0.1/udp/4001/quic-v1"], "peer id"),
        (["--join", "127.0.0.1:4001"], "malformed address"),
    ],
)
def test_options_of_a_node_that_cannot_be(run: Run, sharded: Path, options: list[str], pattern: str) -> None:
    """Status 2, and what would be right."""
    run("node", "--model", sharded, *options).failed(2, pattern)


def test_a_port_that_is_taken(run: Run, sharded: Path) -> None:
    """Somebody else has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        listen = f"/ip4/127.0.0.1/udp/{port}/quic-v1"
        run("node", "--model", sharded, "--layers", "0:2", "--listen", listen).failed(2, str(port))


def test_nobody_to_join(run: Run, sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After as long as there is for it, the line says where nobody is."""
    monkeypatch.setattr("node.daemon.JOIN_WITHIN_S", 1.0)
    join = ["--layers", "0:2", "--join", NOBODY]
    run("node", "--model", sharded, *join).failed(1, "no node answers at /ip4/127.0.0.1/udp/9/")


# --- a client that asks for what cannot be


@dataclass(frozen=True)
class Swarm:
    """One node of each of two models."""

    nodes: LocalSwarm
    models: tuple[Path, Path]

    @property
    def join(self) -> str:
        """The address of the node of the first model."""
        return self.nodes.join


@pytest.fixture(scope="module")
def two_models(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """They run for the whole module: whatever a test does to them, the next one is served."""
    folder = tmp_path_factory.mktemp("two")
    models = (
        make_model("llama", folder / "first", seed=1, layers=LAYERS, eos_token_id=None),
        make_model("qwen2", folder / "second", seed=2, layers=LAYERS, eos_token_id=None),
    )
    with Processes(launch=forge.start) as processes:
        extra = ["--threads", "1", "--kv-tokens", str(KV_TOKENS)]
        nodes = LocalSwarm(processes, models[0], folder, extra=extra)
        nodes.start(f"0:{LAYERS}")
        others = LocalSwarm(processes, models[1], folder, extra=[*extra, "--join", nodes.join])
        others.start(f"0:{LAYERS}")
        yield Swarm(nodes, models)
        for node in (*nodes.nodes, *others.nodes):
            assert node.running
            assert not any("Traceback" in line for line in node.process.lines)


def test_a_swarm_of_two_models(run: Run, two_models: Swarm) -> None:
    """It is the door's, unless said otherwise: by name or by digest. Each answers for itself."""
    ask = ["generate", "hello", "--raw", "-n", 4, "--join", two_models.join]
    run(*ask, "--model", "third").failed(2, "'third'.*first.*second")
    answers = [run(*ask, *said) for said in ([], ["--model", "first"], ["--model", "second"])]
    assert [(ran.status, ran.err) for ran in answers] == [(0, "")] * 3
    assert answers[0].out == answers[1].out != answers[2].out


def test_a_prompt_that_is_too_long(run: Run, two_models: Swarm) -> None:
    """The line has both numbers."""
    ask = ["generate", "x" * 600, "--raw", "--join", two_models.join, "--model", "first"]
    run(*ask).failed(2, "600 tokens.*511")


def test_a_session_that_nobody_has_room_for(run: Run, two_models: Swarm) -> None:
    """The line says for how many there is room."""
    ask = [
        "generate",
        "x" * 200,
        "--raw",
        "-n",
        200,
        "--wait",
        0,
        "--join",
        two_models.join,
        "--model",
        "first",
    ]
    ran = run(*ask)
    ran.failed(1, f"room for 400 tokens.*{KV_TOKENS}")
    assert ran.seconds < 10


def test_addresses_that_lead_nowhere(run: Run, two_models: Swarm) -> None:
    """Fast; one address that answers is enough, whatever the others are."""
    for command in (["generate", "hello"], ["status"], ["route"]):
        ran = run(*command, "--join", NOBODY)
        ran.failed(1, "no node answers")
        assert ran.seconds < 8
        run(*command, "--join", "127.0.0.1:4001").failed(2, "malformed address")
    ask = ["generate", "hello", "-n", 2, "--model", "first"]
    assert run(*ask, "--join", NOBODY, "--join", "nonsense", "--join", two_models.join).status == 0


def test_a_terminal_without_unicode(two_models: Swarm, tmp_path: Path) -> None:
    """What it cannot show becomes something it can; the answer comes and nothing fails."""
    for extra in ([], ["--json"]):
        argv = [sys.executable, "-m", "swarm", "generate", "h\udcc3llo", "--raw", "-n", "12", *extra]
        done = subprocess.run(
            [*argv, "--join", two_models.join, "--model", "second"],
            env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "SWARM_HOME": str(tmp_path), "PATH": ""},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b""), done
        assert done.stdout.isascii()
        assert done.stdout.strip()


async def answer(*addrs: str) -> list[int]:
    """What the first model says, to a client of its own."""
    async with swarm.connect(*addrs, model="first") as client:
        generation = client.generate(PROMPT, max_new_tokens=8)
        async for _ in generation:
            pass
        return list(generation.answer.tokens)


async def test_tokens_outside_the_vocabulary(two_models: Swarm) -> None:
    """Are refused before they are sent; the session can be used."""
    async with (
        swarm.connect(two_models.join, model="first") as client,
        client.session(max_tokens=50) as session,
    ):
        for tokens in ([VOCABULARY], [-1], [2**40]):
            with pytest.raises(ConfigError, match="vocabulary"):
                await session.step(tokens)
        assert await session.step(PROMPT) is not None


# --- peers that are not of our kind


@asynccontextmanager
async def stranger(
    served: Mapping[str, Handler], identity: Identity | None = None
) -> AsyncIterator[Transport]:
    """A libp2p peer of this process, with handlers by protocol."""
    key = (identity or generate()).key
    async with open_transport(key, listen=[LOOPBACK], validate=RecordRule()) as transport:
        for protocol, handler in served.items():
            transport.serve(protocol, handler)
        yield transport


async def say_nothing(stream: Stream) -> None:
    """Reads, and is silent."""
    while await stream.receive():
        pass


@pytest.mark.parametrize("protocols", [[], ["/swarm/session/2"], ["/swarm/map/2", "/swarm/session/2"]])
async def test_a_peer_without_our_protocols(protocols: list[str], two_models: Swarm) -> None:
    """Entering through it alone fails within seconds in one line; beside a node it does not matter."""
    async with stranger(dict.fromkeys(protocols, say_nothing)) as other:
        began = trio.current_time()
        with pytest.raises(SwarmError, match=r"no node answers.*does not speak") as raised:
            async with swarm.connect(other.addrs[0]):
                pass
        assert trio.current_time() - began < 5
        assert "\n" not in str(raised.value)
        assert await answer(other.addrs[0], two_models.join) == await answer(two_models.join)


# --- hostile clients


@asynccontextmanager
async def asking(two_models: Swarm) -> AsyncIterator[tuple[Transport, Announcement]]:
    """A transport, and what the node of the first model says of itself; afterwards that node still serves."""
    before = await answer(two_models.join)
    node = two_models.nodes.nodes[0]
    async with open_transport(generate().key, dht="client", validate=RecordRule()) as transport:
        records, _ = await exchange_maps(transport, node.peer, [node.addr])
        yield transport, parse_record(records[0], time.time()).announcement
    assert await answer(two_models.join) == before


RAW = {
    "random bytes": bytes(range(256)),
    "a length without a body": b"\0\0\0\x10",
    "a body cut short": b"\0\0\1\0\x82\xa1t",
    "an oversized frame": b"\xff\xff\xff\xff" + bytes(1000),
    "no map": b"\0\0\0\1\x90",
    "an unknown tag": b"\0\0\0\7\x81\xa1t\xa3huh",
    "nested containers": b"\0\0\1\0" + b"\x91" * 256,
    "nothing": b"",
}


@pytest.mark.parametrize("protocol", [SESSION_PROTOCOL, MAP_PROTOCOL, "/swarm/model/1"])
async def test_bytes_that_are_no_message(protocol: str, two_models: Swarm) -> None:
    """The stream ends, with an error where one can be said; other streams do not notice."""
    async with asking(two_models) as (transport, said):
        for data in RAW.values():
            stream = await transport.open_stream(said.peer, said.addrs, protocol)
            with trio.fail_after(5):
                with_error = b""
                try:
                    await stream.send(data)
                    await stream.finish()
                    while chunk := await stream.receive():
                        with_error += chunk
                except SwarmError:
                    pass
            stream.reset()
            assert not with_error or b"malformed" in with_error


def hidden(rows: int, size: int, value: float = 0.0) -> NDArray[np.float32]:
    return np.full((rows, size), value, np.float32)


STEPS: dict[str, tuple[Span, NDArray[Any], int]] = {
    "ids of no vocabulary": (Span(0, STAGES), np.array([VOCABULARY], np.int32), 0),
    "a negative id": (Span(0, STAGES), np.array([-1], np.int32), 0),
    "a gap": (Span(0, STAGES), np.array([1], np.int32), 7),
    "more than was asked for": (Span(0, STAGES), np.ones(65, np.int32), 0),
    "hidden states for ids": (Span(0, STAGES), hidden(1, 64), 0),
    "ids for hidden states": (Span(1, STAGES), np.array([1], np.int32), 0),
    "another width": (Span(1, STAGES), hidden(1, 63), 0),
    "NaN": (Span(1, STAGES), hidden(1, 64, math.nan), 0),
    "infinity": (Span(1, STAGES), hidden(1, 64, math.inf), 0),
}


async def test_steps_that_cannot_be(two_models: Swarm) -> None:
    """Each ends its session with an error that says whose fault it is."""
    async with asking(two_models) as (transport, said):
        for what, (span, inputs, position) in STEPS.items():
            asked = Open(secrets.token_bytes(16), said.digest, span, 64, None)
            channel, opened = await open_session(transport, said, asked)
            assert isinstance(opened, Opened)
            await channel.send(Step(0, position, from_numpy(inputs), Want()))
            with trio.fail_after(10):
                reply = await channel.receive()
            assert isinstance(reply, Error), (what, reply)
            assert (reply.code, reply.elsewhere) == ("bad_step", False), (what, reply)


async def test_sessions_that_cannot_be(two_models: Swarm) -> None:
    """Each is refused with the code that says why."""
    async with asking(two_models) as (transport, said):
        session = bytes(range(16))
        good = Open(session, said.digest, Span(0, STAGES), 64, None)
        for change, code in (
            ({"model": bytes(32)}, "model"),
            ({"span": Span(0, STAGES + 1)}, "span"),
            ({"max_tokens": KV_TOKENS + 1}, "capacity"),
        ):
            _, reply = await open_session(transport, said, replace(good, **change))
            assert isinstance(reply, Refused)
            assert reply.code == code
        first, opened = await open_session(transport, said, good)
        assert isinstance(opened, Opened)
        _, again = await open_session(transport, said, good)
        assert isinstance(again, Refused)
        assert again.code == "busy"
        _, too_many = await open_session(
            transport, said, replace(good, session=bytes(16), max_tokens=KV_TOKENS)
        )
        assert isinstance(too_many, Refused)
        assert too_many.code == "busy"
        first.stream.reset()


async def open_session(
    transport: Transport, said: Announcement, asked: Open
) -> tuple[Channel, Message | None]:
    """A session stream, and what the node answers."""
    stream = await transport.open_stream(said.peer, said.addrs, SESSION_PROTOCOL)
    channel = Channel(stream, state=StreamState(Side.OPENER))
    await channel.send(asked)
    with trio.fail_after(5):
        return channel, await channel.receive()


async def test_announcements_that_do_not_hold(two_models: Swarm) -> None:
    """Forged, expired, of the future, for ever, senseless: none is handed on; one that is sound is."""
    async with asking(two_models) as (transport, said):
        now, liar, honest = time.time(), generate(), generate()
        own = replace(said, peer=liar.peer, state="gone", sequence=said.sequence + 1)
        nowhere = ("/ip4/127.0.0.1/udp/9/quic-v1",)
        sound = sign_record(honest, replace(own, peer=honest.peer, state="joining", addrs=nowhere)).data
        forged = bytearray(sign_record(liar, own).data)
        forged[-1] ^= 1
        bad = [bytes(forged), b"", b"\xff" * 100]
        bad += [
            sign_record(liar, replace(own, **changes)).data
            for changes in (
                {"issued": now - 100, "expires": now - 50},
                {"issued": now + 500, "expires": now + 550},
                {"expires": now + 10 * limits.RECORD_LIFE_S},
                {"span": Span(0, STAGES + 5)},
            )
        ]
        await exchange_maps(transport, said.peer, said.addrs, (*bad, sound))
        held: tuple[bytes, ...] = ()

        async def handed_on() -> bool:
            nonlocal held
            held, _ = await exchange_maps(transport, said.peer, said.addrs)
            return sound in held

        await eventually(handed_on, 5)
        assert not set(bad) & set(held)
        assert all(parse_record(data, time.time()).peer != liar.peer for data in held)


# --- hostile nodes


Talk = Callable[[Channel], Awaitable[None]]


def candidates(ids: list[int], logit: float = 1.0) -> Candidates:
    """One row."""
    logits = np.full((1, len(ids)), logit, np.float32)
    return Candidates(
        np.array([ids], np.int32), logits, np.zeros(1, np.float32), np.zeros((1, 0), np.float32)
    )


async def answer_steps(channel: Channel, reply: Callable[[Step], list[Message]]) -> None:
    """Agrees to serve, and answers each step so."""
    await channel.send(Opened("f32", Numerics("f32"), goes_back=True))
    while (message := await channel.receive()) is not None:
        if isinstance(message, Step):
            for part in reply(message):
                await channel.send(part)


async def hang_up(channel: Channel) -> None:
    """At once."""


async def say_junk(channel: Channel) -> None:
    """Bytes that are no message."""
    await channel.stream.send(bytes(range(1, 200)))


async def say_too_much(channel: Channel) -> None:
    """A frame beyond all limits."""
    await channel.stream.send(b"\x7f\xff\xff\xff" + bytes(100))


async def be_silent(channel: Channel) -> None:
    """For ever."""
    await trio.sleep_forever()


async def agree_and_be_silent(channel: Channel) -> None:
    """Not even pings are answered."""
    await channel.send(Opened("f32", Numerics("f32"), goes_back=True))
    await trio.sleep_forever()


async def ack_only(channel: Channel) -> None:
    """Without the output that was wanted."""
    await answer_steps(channel, lambda step: [Ack(step.number, 0.0, 0.0)])


async def give_ids_of_no_vocabulary(channel: Channel) -> None:
    """As candidates."""
    await answer_steps(
        channel,
        lambda step: [Output(step.number, step.position + 2, candidates=candidates([VOCABULARY + 7]))],
    )


async def give_no_candidates(channel: Channel) -> None:
    """A row of none."""
    await answer_steps(
        channel, lambda step: [Output(step.number, step.position + 2, candidates=candidates([]))]
    )


async def give_nan(channel: Channel) -> None:
    """As a logit."""
    await answer_steps(
        channel, lambda step: [Output(step.number, step.position + 2, candidates=candidates([1], math.nan))]
    )


async def give_hidden_states(channel: Channel) -> None:
    """Where candidates were wanted."""
    await answer_steps(
        channel, lambda step: [Output(step.number, step.position + 2, hidden=from_numpy(hidden(1, 64)))]
    )


async def refuse_what_it_announces(channel: Channel) -> None:
    """Another model, it says."""
    await channel.send(Refused("model", "I changed my mind", 0.0))


async def speak_out_of_turn(channel: Channel) -> None:
    """A request where an answer is due."""
    await channel.stream.send(b"\0\0\0\7\x81\xa1t\xa4ping")


TALKS: list[Talk] = [
    hang_up, say_junk, say_too_much, be_silent, agree_and_be_silent, ack_only, give_ids_of_no_vocabulary,
    give_no_candidates, give_nan, give_hidden_states, refuse_what_it_announces, speak_out_of_turn,
]  # fmt: skip


@pytest.mark.parametrize("talk", TALKS, ids=lambda talk: talk.__name__)
async def test_a_node_that_means_ill(talk: Talk, two_models: Swarm) -> None:
    """It announces the whole model, faster than anybody, and then does this: the answer is the honest node's."""
    expected = await answer(two_models.join)
    identity, met = generate(), trio.Event()

    async def session(stream: Stream) -> None:
        async with Channel(stream, state=StreamState(Side.HOP)) as channel:
            await channel.receive()
            met.set()
            await talk(channel)

    async def hand_out_maps(stream: Stream) -> None:
        async with Channel(stream) as channel:
            await channel.expect(MapRequest, limits.CONTROL_TIMEOUT_S)
            await channel.send(MapReply((lie,)))

    async with stranger({SESSION_PROTOCOL: session, MAP_PROTOCOL: hand_out_maps}, identity) as liar:
        node = two_models.nodes.nodes[0]
        records, _ = await exchange_maps(liar, node.peer, [node.addr])
        honest = parse_record(records[0], time.time()).announcement
        fast = {"decode_ms": 0.0, "prefill_ms": 0.0, "head_ms": 0.0, "queue_ms": 0.0}
        lie = sign_record(identity, replace(honest, peer=identity.peer, addrs=liar.addrs, **fast)).data  # type: ignore[arg-type]
        async with swarm.connect(two_models.join, model="first") as client:
            client.book.merge([lie], time.time())
            client.book.prove(identity.peer, liar.addrs[0])
            client._view.rtt_ms[identity.peer] = 0.0  # as if it were the nearest, too
            began = trio.current_time()
            generation = client.generate(PROMPT, max_new_tokens=8)
            async for _ in generation:
                pass
            assert met.is_set()
            assert list(generation.answer.tokens) == expected
            assert trio.current_time() - began < 10


def test_the_checkpoint_of_another_is_another_model(run: Run, two_models: Swarm, tmp_path: Path) -> None:
    """A full client whose own checkpoint nobody serves is told so, with the models that there are."""
    folder = shutil.copytree(two_models.models[0], tmp_path / "mine")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    ran = run("generate", "hello", "--raw", "--join", two_models.join, "--model", folder)
    ran.failed(2, "first.*second")
