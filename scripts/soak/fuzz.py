"""A million frames that no peer of ours would send, against a node that serves others and a client that asks.

    python scripts/soak/fuzz.py [--frames 1000000] [--client-frames 20000] [--seed 0] [--json FILE]

Two node processes serve the halves of the model that ships. A process beside sends them streams of every protocol in
every state: odd frames after which a stream goes on, and at its end a wild one. Honest clients ask meanwhile. Then
hostile nodes, which announce the whole model, say the like to honest clients. Nobody may crash, no answer may be
wrong, no node may print a traceback, and memory comes back to where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

# The node processes are started by what the tests start them with, which is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
# Before torch is imported anywhere: OpenMP threads that spin while they wait starve the other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import swarm
from protocol import limits
from protocol.candidates import Want
from protocol.codec import FrameReader, encode
from protocol.errors import RemoteProtocolError, SwarmError
from protocol.fields import pack_fields
from protocol.messages import (
    MAP_PROTOCOL,
    MODEL_PROTOCOL,
    SESSION_PROTOCOL,
    WEIGHTS_PROTOCOL,
    MapReply,
    Message,
    Open,
    Opened,
    Step,
)
from protocol.model import Span
from protocol.records import Announcement
from protocol.transport.base import Stream
from scripts.soak.mutations import EXTREMES, Fields, pack, tensor, wild
from swarm.cli.demo_nodes import shipped_model
from tests.attack import wire
from tests.attack.arena import Asked, ask, memory_of, tracebacks
from tests.attack.stranger import Stranger, stranger
from tests.attack.survey import ending_with_parent, survey
from tests.protocol.samples import MESSAGES
from tests.support.forge import Forge
from tests.support.local_swarm import LocalSwarm
from tests.support.processes import Processes

MIB: Final = 1 << 20
LAYERS: Final = ("0:4", "4:8")
QUESTIONS: Final = ("What is 12 plus 30?", "Which is larger, 41 or 14?")
ODD_FRAMES: Final = 48  # of a stream, at most; the wild one ends it
STREAMS_AT_ONCE: Final = 8
STREAMS_OF_ONE: Final = 400  # then another identity goes on: allowances are per peer
# What is spoken beside sessions, by the state that a stream of it is in.
OTHERS: Final = {"map": MAP_PROTOCOL, "model": MODEL_PROTOCOL, "weights": WEIGHTS_PROTOCOL}
ANSWER_S: Final = 0.5
LIARS: Final = 4
NONCES: Final = tuple(
    value for value in EXTREMES if isinstance(value, int) and 0 <= value <= limits.STEP_NUMBER
)
MEMORY_LEFT: Final = 64 * MIB
FAST: Final = {"decode_ms": 0.0, "prefill_ms": 0.0, "head_ms": 0.0, "queue_ms": 0.0}


@dataclass
class Result:
    """What was sent and what came of it."""

    frames: int = 0  # to nodes
    wild: int = 0  # of those
    streams: int = 0
    states: dict[str, int] = field(default_factory=dict)  # streams by the state they were in
    seconds: float = 0.0
    client_frames: int = 0
    client_seconds: float = 0.0
    right: dict[str, tuple[int, ...]] = field(default_factory=dict)  # by question
    asked: list[Asked] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # answers, also those that did not come
    tracebacks: list[str] = field(default_factory=list)
    memory_left: int = 0

    def summary(self) -> dict[str, float]:
        """The figures."""
        return {
            "frames": self.frames,
            "wild": self.wild,
            "streams": self.streams,
            "frames_per_s": self.frames / self.seconds if self.seconds else 0.0,
            "client_frames": self.client_frames,
            "client_frames_per_s": self.client_frames / self.client_seconds if self.client_seconds else 0.0,
            "answers": len(self.asked),
            "wrong": len(self.wrong),
            "tracebacks": len(self.tracebacks),
            "memory_left_mib": self.memory_left / MIB,
        }

    @property
    def sound(self) -> bool:
        """Whether nothing broke."""
        return not self.wrong and not self.tracebacks and self.memory_left <= MEMORY_LEFT


# --- against a node


class Fuzzer:
    """Streams of one state each to one node."""

    def __init__(self, node: Announcement, rng: random.Random) -> None:
        self._node = node
        self._rng = rng
        self._templates = [_fields(message) for message in examples(node)]

    async def stream(self, who: Stranger) -> tuple[str, int, int]:
        """One stream to its end: the state it was in, frames sent, wild ones among them."""
        rng = self._rng
        state = rng.choice(["idle", "opening", "open", "open", "open", "attached", *OTHERS])
        self._span = Span(self._node.span.start + rng.randrange(2), self._node.span.stop)
        self._session = secrets.token_bytes(16)
        client: Stream | None = None
        if state in ("open", "attached"):
            client = await who.stream(self._node)
            await client.send(self._open())
            await _first_answer(client)
        frames = self._odd(state)
        frames.append(wild(rng, rng.choice(self._templates), self._templates))
        if client is not None and state == "open":
            stream = client
        else:
            stream = await who.stream(self._node, OTHERS.get(state, SESSION_PROTOCOL))
        with contextlib.suppress(SwarmError), trio.move_on_after(ANSWER_S):
            await stream.send(b"".join(frames))
            await stream.finish()
            while await stream.receive():
                pass
        stream.reset()
        if client is not None:
            client.reset()
        return state, len(frames), 1

    def _open(self) -> bytes:
        bridged = self._span.stop < self._node.stages and self._rng.random() < 0.3
        return encode(wire.opening(self._node, self._span, 64, session=self._session, bridged=bridged))

    def _odd(self, state: str) -> list[bytes]:
        """Frames after which the stream goes on, if the node is what it should be."""
        rng = self._rng
        if state == "map":
            entries = [rng.randbytes(rng.choice([0, 1, 100])) for _ in range(rng.randrange(8))]
            return [pack({"t": "map?", "records": entries})]
        if state == "model":
            names = ["tokenizer.json", "config.json", "", "../x", "nul", "\x00"]
            asked = [pack({"t": "manifest?", "model": self._node.digest})]
            return asked + [pack({"t": "file?", "name": rng.choice(names)}) for _ in range(rng.randrange(4))]
        if state == "weights":
            stage = rng.choice([*self._node.weights, bytes(8)])
            kinds = [
                {"t": "holdings?", "model": self._node.digest},
                {"t": "inventory?", "stage": stage},
                {"t": "parcel?", "parcel": rng.randbytes(32)},
            ]
            return [pack(kind) for kind in rng.choices(kinds, [4, 4, 1], k=rng.randrange(4))]
        if state == "opening":
            return [self._open(), *(self._ping() for _ in range(rng.randrange(ODD_FRAMES)))]
        if state == "attached":
            return [encode(wire.attach(self._session, self._span.start)), *self._steps(share=1.0)]
        return self._steps(share=0.4) if state == "open" else []

    def _steps(self, share: float) -> list[bytes]:
        """Steps as a client might send them, new ones, rolled back and repeated; the others ping and relink."""
        rng, frames = self._rng, []
        number, length = 0, 0
        for _ in range(rng.randrange(ODD_FRAMES)):
            if rng.random() > share:
                frames.append(self._ping() if rng.random() < 0.8 else self._relink(number))
                continue
            rows, position = rng.choice([1, 1, 2, 7]), rng.randint(0, min(length, 50))
            again = number > 0 and rng.random() < 0.5
            frames.append(pack(self._step(rng.randrange(number) if again else number, position, rows)))
            if not again:
                number, length = number + 1, position + rows
        return frames

    def _ping(self) -> bytes:
        return pack({"t": "ping", "nonce": self._rng.choice(NONCES)})

    def _relink(self, number: int) -> bytes:
        rng = self._rng
        gone = wire.next_hop("x" * rng.randrange(65))
        head = self._span.stop == self._node.stages
        return pack(
            {
                "t": "relink",
                "next": None if head or rng.random() < 0.5 else pack_fields(gone),
                "bridged": rng.random() < 0.5,
                "live_from": rng.choice([0, 1, number, 2**31]),
                "fill_until": rng.randrange(1025),
            }
        )

    def _step(self, number: int, position: int, rows: int) -> Fields:
        rng, node = self._rng, self._node
        if self._span.start == 0:
            inputs = tensor(rng, (rows,), "i32")
        else:
            inputs = tensor(rng, (rows, node.hidden_size))
            if rng.random() < 0.9:
                inputs["data"] = bytes(4 * rows * node.hidden_size)
        head = self._span.stop == node.stages
        want = {
            "kind": rng.choice(["nothing", "candidates" if head else "hidden"]),
            "every": rng.random() < 0.5,
            "top": rng.choice([0, 1, 40, 2**20]),
            "ids": [rng.randrange(400) for _ in range(rng.choice([0, 0, 5]))],
            "temperature": rng.choice([0.001, 1.0, 1000.0]),
        }
        fill = rng.choice([None, None, None, 0, node.stages, 1024])
        return {
            "t": "step",
            "number": number,
            "position": position,
            "inputs": inputs,
            "want": want,
            "fill_until": fill,
        }


async def _first_answer(stream: Stream) -> None:
    with trio.move_on_after(ANSWER_S):
        await stream.receive()


def _fields(message: Message) -> Fields:
    return {"t": message.tag, **pack_fields(message)}


def examples(node: Announcement) -> list[Message]:
    """A sound message of every kind."""
    session = secrets.token_bytes(16)
    mine: list[Message] = [
        wire.opening(node, node.span, 64, session=session),
        wire.attach(session, node.span.start),
        Step(0, 0, wire.rows(node, node.span, 2), Want()),
        wire.relink(wire.next_hop(node.peer, node.addrs, session)),
    ]
    return [*MESSAGES.values(), *mine]


async def fuzz_nodes(addrs: Sequence[str], frames: int, seed: int) -> None:
    """In a process of its own: that many frames to the nodes; counts as a line of JSON now and then."""
    told = await survey(addrs)
    counts: dict[str, Any] = {"frames": 0, "wild": 0, "streams": 0, "states": Counter()}

    async def work(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        fuzzer = Fuzzer(told.nodes[number % len(told.nodes)], rng)
        while counts["frames"] < frames:
            async with stranger() as who:
                for _ in range(STREAMS_OF_ONE):
                    try:
                        state, sent, spoilt = await fuzzer.stream(who)
                    except SwarmError:
                        await trio.sleep(0.05)
                        continue
                    counts["frames"] += sent
                    counts["wild"] += spoilt
                    counts["streams"] += 1
                    counts["states"][state] += 1
                    if counts["streams"] % 500 == 0:
                        print(json.dumps(counts), flush=True)
                    if counts["frames"] >= frames:
                        return

    async with ending_with_parent(), trio.open_nursery() as nursery:
        for number in range(STREAMS_AT_ONCE):
            nursery.start_soon(work, number)
    print(json.dumps(counts), flush=True)
    print("done", flush=True)


# --- against a client


class Liar:
    """A node of the whole model that answers with whatever comes to its mind."""

    def __init__(
        self, me: Stranger, nodes: Sequence[Announcement], rng: random.Random, result: Result
    ) -> None:
        self._me = me
        self._like = like = nodes[0]
        weights = {s: digest for node in nodes for s, digest in zip(node.span, node.weights, strict=True)}
        self._weights = tuple(weights[stage] for stage in range(like.stages))  # those of the honest
        self._rng = rng
        self._result = result
        self._templates = [_fields(message) for message in examples(like)]
        me.transport.serve(SESSION_PROTOCOL, self._tolerant(self._session))
        me.transport.serve(MAP_PROTOCOL, self._tolerant(self._map))
        me.transport.serve(MODEL_PROTOCOL, self._tolerant(self._model))

    def says(self) -> bytes:
        """Its record: nobody is faster."""
        span = Span(0, self._like.stages)
        addrs, weights = self._me.transport.addrs, self._weights
        return self._me.says(self._like, addrs=addrs, span=span, weights=weights, links=(), **FAST)

    def _tolerant(self, talk: Callable[[Stream], Awaitable[None]]) -> Callable[[Stream], Awaitable[None]]:
        async def handle(stream: Stream) -> None:
            with contextlib.suppress(SwarmError):
                await talk(stream)
            stream.reset()

        return handle

    async def _map(self, stream: Stream) -> None:
        await stream.receive()
        if self._rng.random() < 0.7:
            await stream.send(encode(MapReply((self.says(),))))
            await stream.finish()
        else:
            await self._say_wild(stream, {"t": "map", "records": [self.says(), b"", b"\xff" * 50]})

    async def _model(self, stream: Stream) -> None:
        await stream.receive()
        await self._say_wild(stream, {"t": "manifest", "manifest": self._rng.randbytes(100)})

    async def _session(self, stream: Stream) -> None:
        rng, reader = self._rng, FrameReader()
        while data := await stream.receive():
            reader.feed(data)
            while (message := _next(reader)) is not None:
                if isinstance(message, Open) and rng.random() < 0.9:
                    await stream.send(encode(Opened(self._like.dtype, self._like.numerics, goes_back=True)))
                else:
                    await self._answer(stream, message)

    async def _answer(self, stream: Stream, message: Message) -> None:
        rng, number = self._rng, getattr(message, "number", 0)
        frames = [self._odd(number) for _ in range(rng.randrange(ODD_FRAMES))]
        self._result.client_frames += len(frames)
        if frames:
            await stream.send(b"".join(frames))
        await self._say_wild(stream, {"t": "output", "number": number, "position": 0, **self._output()})

    def _odd(self, number: int) -> bytes:
        rng = self._rng
        few: Fields = {"t": "ack", "number": 0, "queue_ms": 1e9, "compute_ms": 0.0}
        lost: Fields = {
            "t": "link_down",
            "next": rng.randbytes(16),
            "reason": "\x1b[2J" + "x" * rng.randrange(900),
        }
        pong: Fields = {
            "t": "pong",
            "nonce": rng.choice([0, 2**31]),
            "received": rng.choice([0, number, 2**31]),
        }
        said = rng.choices([few, lost, {**pong, "computed": rng.choice([0, 2**31])}], weights=(1, 30, 30))
        return pack(said[0])

    def _output(self) -> Fields:
        """Well-formed, but never what was wanted, one row of candidates: that would be believed."""
        rng, size = self._rng, self._like.hidden_size
        if rng.random() < 0.3:
            return {"hidden": tensor(rng, (1, rng.choice([size, 7]))), "candidates": None}
        rows, best, asked = rng.choice([0, 2, 3]), rng.choice([0, 1, 5]), rng.choice([0, 1])
        found = {
            "ids": tensor(rng, (rows, best), "i32"),
            "logits": {**tensor(rng, (rows, best)), "data": rng.randbytes(4 * rows * best)},
            "lse": tensor(rng, (rows,)),
            "asked": tensor(rng, (rows, asked)),
        }
        return {"hidden": None, "candidates": found}

    async def _say_wild(self, stream: Stream, fields: Fields) -> None:
        rng = self._rng
        fields = fields if rng.random() < 0.7 else rng.choice(self._templates)
        self._result.client_frames += 1
        as_it_is = fields["t"] == "output" and rng.random() < 0.5
        await stream.send(pack(fields) if as_it_is else wild(rng, fields, self._templates))
        await stream.finish()


def _next(reader: FrameReader) -> Message | None:
    try:
        return reader.next()
    except RemoteProtocolError:
        return None


async def fuzz_clients(
    addrs: Sequence[str],
    nodes: Sequence[Announcement],
    frames: int,
    seed: int,
    result: Result,
) -> None:
    """New clients meet liars and honest nodes, until the liars have said that many frames."""
    rng = random.Random(seed)
    began = time.monotonic()
    while result.client_frames < frames:
        async with trio.open_nursery() as nursery:
            liars: list[Liar] = []
            for _ in range(LIARS):
                liars.append(await nursery.start(_be_liar, nodes, rng, result))
            records = [liar.says() for liar in liars]
            async with swarm.connect(*addrs, wait_s=10.0) as client:
                client.book.merge(records, time.time())
                for liar in liars:
                    client.rtt_ms[liar._me.identity.peer] = 0.0  # as if they were the nearest, too
                for question in QUESTIONS:
                    _note(await ask(question, client), result)
            nursery.cancel_scope.cancel()
    result.client_seconds = time.monotonic() - began


async def _be_liar(
    nodes: Sequence[Announcement],
    rng: random.Random,
    result: Result,
    task_status: trio.TaskStatus[Liar] = trio.TASK_STATUS_IGNORED,
) -> None:
    async with stranger(listens=True) as me:
        task_status.started(Liar(me, nodes, rng, result))
        await trio.sleep_forever()


def _note(asked: Asked, result: Result) -> None:
    result.asked.append(asked)
    if asked.failure or asked.tokens != result.right[asked.question]:
        result.wrong.append(str(asked))


# --- together


async def soak(nodes: LocalSwarm, processes: Processes, options: argparse.Namespace) -> Result:
    """Both, and what came of them."""
    result = Result()
    addrs = [node.addr for node in nodes.nodes]
    told = await survey(addrs)
    async with swarm.connect(*addrs, wait_s=10.0) as client:
        result.right = {question: (await ask(question, client)).tokens for question in QUESTIONS}
        for _ in range(20):
            _note(await ask(QUESTIONS[0], client), result)
        base = {node.peer: memory_of(node) for node in nodes.nodes}
        argv = [sys.executable, "-m", "scripts.soak.fuzz", "--frames", str(options.frames)]
        argv += ["--seed", str(options.seed), "--against", json.dumps(addrs)]
        began = time.monotonic()
        with processes.start(argv, name="fuzzer", cwd=Path(__file__).parents[2]) as fuzzer:
            while fuzzer.returncode is None and all(node.running for node in nodes.nodes):
                for question in QUESTIONS:
                    _note(await ask(question, client), result)
                await trio.sleep(0.2)
            assert fuzzer.lines, "the fuzzer said nothing"
            assert fuzzer.lines[-1] == "done", "\n".join(fuzzer.lines[-20:])
            counts = json.loads(fuzzer.lines[-2])
        result.seconds = time.monotonic() - began
        result.frames, result.wild, result.streams = counts["frames"], counts["wild"], counts["streams"]
        result.states = counts["states"]
    if options.client_frames:
        await fuzz_clients(addrs, told.nodes, options.client_frames, options.seed, result)
    with trio.move_on_after(40.0):
        while _left(nodes, base) > MEMORY_LEFT / 2:  # noqa: ASYNC110 - of other processes
            await trio.sleep(1.0)
    result.memory_left = _left(nodes, base)
    result.tracebacks = [line for node in nodes.nodes for line in tracebacks(node)]
    result.wrong += [f"node {node.layers} ended" for node in nodes.nodes if not node.running]
    return result


def _left(nodes: LocalSwarm, base: dict[str, int]) -> int:
    return max((memory_of(node) - base[node.peer] for node in nodes.nodes if node.running), default=0)


def run(frames: int, client_frames: int, seed: int) -> Result:
    """A swarm of its own for it."""
    options = argparse.Namespace(frames=frames, client_frames=client_frames, seed=seed)
    with (
        tempfile.TemporaryDirectory() as home,
        Forge() as forge,
        Processes(launch=forge.start) as processes,
        Processes() as others,
    ):
        os.environ.setdefault("SWARM_HOME", home)
        extra = ["--threads", "1", "--kv-tokens", "8192"]
        nodes = LocalSwarm(processes, shipped_model(), Path(home), extra=extra)
        nodes.start(*LAYERS)
        return trio.run(soak, nodes, others, options)


def main() -> int:
    """Run and print; status 1 if anything broke."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--client-frames", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--against", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.against:
        trio.run(fuzz_nodes, options.against, options.frames, options.seed)
        return 0
    result = run(options.frames, options.client_frames, options.seed)
    for name, value in {**result.summary(), **result.states}.items():
        print(f"{name:>20}  {value:g}")
    for line in (*result.wrong, *result.tracebacks)[:10]:
        print(line)
    if options.json:
        options.json.write_text(
            json.dumps(
                {"summary": result.summary(), "states": result.states, "wrong": result.wrong}, indent=1
            )
        )
    return 0 if result.sound else 1


if __name__ == "__main__":
    sys.exit(main())
