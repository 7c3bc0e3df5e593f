"""A swarm under attack, the honest clients beside, and the measure of the harm."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import trio

import swarm
from protocol.errors import SwarmError
from protocol.hints import RecordRule
from protocol.identity import generate
from protocol.records import parse_record
from protocol.talk.exchange import exchange_maps
from protocol.transport.libp2p import open_transport
from tests.support.local_swarm import LocalSwarm, RunningNode
from tests.support.processes import Processes
from tests.support.waiting import eventually

MIB: Final = 1 << 20

# A stranger may make others wait, but no longer than a busy machine does anyway.
TTFT_TIMES: Final = 3.0
# The machines that run this are shared, and the attacker takes its part of the same two cores; below this nobody
# calls it slow.
TTFT_FLOOR_S: Final = 2.0
# Windows, unfinished frames, journals and caches of what one block of addresses may hold at a node.
MEMORY: Final = 128 * MIB
# What the allocator keeps of it: of a connection an eighth of a MiB, of 640 some 79 MiB (measured).
MEMORY_LEFT: Final = 96 * MIB
REFLECTED_TIMES: Final = 3.0
# Cores that a node is kept busy with by an attack that sends next to nothing, beside what the honest cost it.
IDLE_CORES: Final = 0.3

# An honest client waits this long for a free slot, and an answer that takes longer has failed. These and those below
# bound what hangs, on a machine several times slower than any that this was written on; what is slow, the times say.
PATIENCE_S: Final = 20.0
ANSWER_WITHIN_S: Final = 90.0
BASELINE_ROUNDS: Final = 3
# An attacker has started and knows its victims.
BEGUN_WITHIN_S: Final = 90.0
# The attack has reached whom it is meant for.
REACHED_WITHIN_S: Final = 60.0
# After the attack: until what it held is given back and the honest are served as before.
CALM_WITHIN_S: Final = 60.0
# A node says anew how much room it has every twenty seconds.
NEWS_WITHIN_S: Final = 120.0

QUESTIONS: Final = ("What is 12 plus 30?", "Which is larger, 41 or 14?", "What comes after 7, 8, 9?")


@dataclass(frozen=True)
class Asked:
    """One honest question and how it went; `newcomer`: by a client that entered for it."""

    question: str
    newcomer: bool
    tokens: tuple[int, ...]
    ttft_s: float
    failure: str | None = None
    banned: tuple[str, ...] = ()  # peers that this client does not ask any more


@dataclass
class Harm:
    """What an attack did."""

    attack: str
    before: list[Asked]
    during: list[Asked]
    after: list[Asked] = field(default_factory=list)
    grown: int = 0  # bytes, of the node that grew most
    left: int = 0  # the same, in the end
    busy: float = 0.0  # cores, of the node that got busiest, beyond what it was before
    sent: int = 0  # bytes of the attacker, where they are counted
    reflected: int = 0  # bytes that reached third parties
    ended: list[str] = field(default_factory=list)  # nodes that are gone
    tracebacks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what the attacker says it achieved
    timed: bool = False  # whether times count

    def __str__(self) -> str:
        medians = "  ".join(
            f"{name} {1e3 * ttft(asked, newcomer=False):.0f}/{1e3 * ttft(asked, newcomer=True):.0f} ms"
            for name, asked in (("before", self.before), ("during", self.during), ("after", self.after))
            if asked
        )
        return (
            f"{self.attack}: TTFT stays/new {medians}; {len(self.during)} asked, {len(self.wrong)} wrong, "
            f"{len(self.failed)} failed; busy +{self.busy:.2f}; memory +{self.grown / MIB:.0f} MiB, "
            f"left {self.left / MIB:.0f}; sent {self.sent}, reflected {self.reflected}; "
            f"{'; '.join(self.notes[-3:])}"
        )

    @property
    def wrong(self) -> list[Asked]:
        """Answers that differ from the undisturbed ones."""
        right = {asked.question: asked.tokens for asked in self.before}
        told = [asked for asked in (*self.during, *self.after) if asked.failure is None]
        return [asked for asked in told if asked.tokens != right[asked.question]]

    @property
    def failed(self) -> list[Asked]:
        """Questions without an answer."""
        return [asked for asked in (*self.before, *self.during, *self.after) if asked.failure is not None]

    def check(self, *, idle: bool = False, stall_s: float = 0.0) -> None:
        """Raises AssertionError, with all that was measured, unless the harm is bounded (see the package).

        `idle`: of an attack that sends next to nothing, so the nodes have next to nothing to do. `stall_s`: what it
        takes a client to find a hop out that does nothing, which whoever meets it for the first time has to wait.
        """
        found = [*self.ended, *self.tracebacks]
        found += [f"wrong: {asked}" for asked in self.wrong] + [f"failed: {asked}" for asked in self.failed]
        for newcomer in (False, True):
            usual, now = ttft(self.before, newcomer=newcomer), ttft(self.during, newcomer=newcomer)
            if self.timed and now > max(TTFT_TIMES * usual, TTFT_FLOOR_S) + stall_s:
                found.append(
                    f"TTFT of {'new' if newcomer else 'staying'} clients: {usual:.2f} s -> {now:.2f} s"
                )
        if self.grown > MEMORY:
            found.append(f"memory grew by {self.grown / MIB:.0f} MiB")
        if idle and self.busy > IDLE_CORES:
            found.append(f"a node computes with {self.busy:.2f} cores more")
        if self.left > MEMORY_LEFT:
            found.append(f"{self.left / MIB:.0f} MiB are left in memory")
        if self.reflected > REFLECTED_TIMES * self.sent:
            found.append(f"{self.sent} bytes sent made {self.reflected} at a third party")
        assert not found, f"{self}\n  " + "\n  ".join(found)


def ttft(asked: Sequence[Asked], *, newcomer: bool) -> float:
    """The median time to the first token; what failed took for ever."""
    times = [each.ttft_s for each in asked if each.newcomer is newcomer]
    return statistics.median(times) if times else 0.0


class Arena:
    """Node processes, one honest client that stays, and attackers one after another."""

    def __init__(
        self, nodes: LocalSwarm, attackers: Processes, client: swarm.Client, *, timed: bool = False
    ) -> None:
        """`timed`: the machine is ours, so how long somebody waits says something."""
        self.timed = timed
        self.nodes = nodes
        self.client = client
        self._attackers = attackers

    @property
    def addrs(self) -> list[str]:
        """Of all nodes."""
        return [node.addr for node in self.nodes.nodes]

    async def endure(
        self,
        attack: str,
        *,
        seconds: float = 5.0,
        addrs: Sequence[str] | None = None,
        until_said: str = "begun",
        reached: Callable[[], int] = int,
        spent: Callable[[], int] = int,
        **options: Any,
    ) -> Harm:
        """Let a stranger attack for `seconds` while others ask, and wait until it is calm again; the harm.

        They ask on until the attacker has said `until_said`, too, which it may never. `reached` counts the bytes that
        third parties have got, `spent` those of the attacker. `addrs` are where the attacker finds the nodes, if not
        where they are.
        """
        before, usual = await self._ask_and_watch(rounds=BASELINE_ROUNDS)
        base = {node.peer: memory_of(node) for node in self.nodes.nodes}
        argv = [sys.executable, "-m", "tests.attack.attacker", attack]
        argv += [json.dumps(list(addrs or self.addrs)), json.dumps(options)]
        harm = Harm(attack, before, [], timed=self.timed)
        with self._attackers.start(argv, name=attack, cwd=Path(__file__).parents[2]) as process:
            await trio.to_thread.run_sync(process.wait_for_line, "^begun", BEGUN_WITHIN_S)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_memory, harm, base)
                harm.during, busy = await self._ask_and_watch(
                    seconds=seconds, enough=lambda: until_said in process.lines
                )
                nursery.cancel_scope.cancel()
            harm.busy = max(busy[peer] - usual[peer] for peer in busy)
            assert process.returncode is None, "the attacker failed:\n" + "\n".join(process.lines[-20:])
            harm.notes = process.lines[1:]
        harm.sent, harm.reflected = spent(), reached()
        harm.after = await self._until_calm(base)
        harm.left = max(memory_of(node) - base[node.peer] for node in self.nodes.nodes if node.running)
        for node in self.nodes.nodes:
            if not node.running:
                harm.ended.append(f"node {node.layers} ended: {node.process.lines[-3:]}")
            harm.tracebacks += [f"node {node.layers}: {tail}" for tail in tracebacks(node)]
        print(harm)
        return harm

    async def until_empty(self) -> None:
        """Wait until every node says that no session holds any of its room."""
        async with open_transport(generate().key, dht="client", validate=RecordRule()) as transport:

            async def empty() -> bool:
                for node in self.nodes.nodes:
                    records, _ = await exchange_maps(transport, node.peer, [node.addr])
                    said = parse_record(records[0], time.time()).announcement
                    if said.peer != node.peer or said.kv_tokens != said.kv_tokens_total:
                        await trio.sleep(1.0)
                        return False
                return True

            await eventually(_tolerantly(empty), NEWS_WITHIN_S, "no node holds a session")

    # -- the honest

    async def _ask_and_watch(self, **much: Any) -> tuple[list[Asked], dict[str, float]]:
        """Ask, and how many cores each node used meanwhile."""
        living = [node for node in self.nodes.nodes if node.running]
        began, used = time.monotonic(), {node.peer: cpu_seconds(node) for node in living}
        asked = await self._ask(**much)
        took_s = time.monotonic() - began
        return asked, {n.peer: (cpu_seconds(n) - used[n.peer]) / took_s for n in living if n.running}

    async def _ask(
        self, *, rounds: int = 2, seconds: float = 0.0, enough: Callable[[], bool] = lambda: True
    ) -> list[Asked]:
        """At least so many rounds and so long, and until it is `enough`, or REACHED_WITHIN_S is over.

        Each is a question by the client that stays and one by a new one.
        """
        asked: list[Asked] = []
        began = trio.current_time()

        def goes_on() -> bool:
            took_s = trio.current_time() - began
            return took_s < seconds or (took_s < REACHED_WITHIN_S and not enough())

        while len(asked) < 2 * rounds or goes_on():
            question = QUESTIONS[len(asked) // 2 % len(QUESTIONS)]
            asked.append(await ask(question, self.client))
            asked.append(await self._ask_as_newcomer(question))
        return asked

    async def _ask_as_newcomer(self, question: str) -> Asked:
        """A question by somebody who enters the swarm for it, and has never seen the model."""
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
            patch.setenv("SWARM_HOME", home)
            try:
                with trio.fail_after(ANSWER_WITHIN_S):
                    async with swarm.connect(*self.addrs, wait_s=PATIENCE_S) as client:
                        return await ask(question, client, began=began, newcomer=True)
            except (SwarmError, trio.TooSlowError) as error:
                return Asked(question, True, (), float("inf"), f"{type(error).__name__}: {error}")

    async def _until_calm(self, base: dict[str, int]) -> list[Asked]:
        """The first rounds of questions all answered, and memory given back; what there is, at the deadline."""
        asked: list[Asked] = []
        with trio.move_on_after(CALM_WITHIN_S):
            while True:
                asked = await self._ask(rounds=len(QUESTIONS))
                living = [node for node in self.nodes.nodes if node.running]
                left = max((memory_of(node) - base[node.peer] for node in living), default=0)
                if left <= MEMORY_LEFT and not any(each.failure for each in asked):
                    break
                await trio.sleep(1.0)
        return asked

    async def _follow_memory(self, harm: Harm, base: dict[str, int]) -> None:
        while True:
            for node in self.nodes.nodes:
                if node.running:
                    harm.grown = max(harm.grown, memory_of(node) - base[node.peer])
            await trio.sleep(0.1)


async def ask(
    question: str, client: swarm.Client, *, began: float | None = None, newcomer: bool = False
) -> Asked:
    """A question to a client, and how it went."""
    began = time.monotonic() if began is None else began
    first: float | None = None
    generation = client.generate(question, chat=True, max_new_tokens=24)
    try:
        with trio.fail_after(ANSWER_WITHIN_S):
            async for _ in generation:
                first = first or time.monotonic() - began
        bans, now = client._view.bans, trio.current_time()
        banned = tuple(said.peer for said in client.book.alive(time.time()) if bans.banned(said.peer, now))
        ttft_s = first or time.monotonic() - began
        return Asked(question, newcomer, generation.answer.tokens, ttft_s, banned=banned)
    except (SwarmError, trio.TooSlowError) as error:
        return Asked(question, newcomer, (), float("inf"), f"{type(error).__name__}: {error}")


def memory_of(node: RunningNode) -> int:
    """Resident bytes."""
    pages = int(Path(f"/proc/{node.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(node: RunningNode) -> float:
    """Of the processors, so far."""
    fields = Path(f"/proc/{node.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tracebacks(node: RunningNode) -> list[str]:
    """The end of each traceback that a node has printed; logged ones are indented as a whole."""
    lines = node.process.lines
    found = []
    for at, line in enumerate(lines):
        if "Traceback" in line:
            margin = line[: len(line) - len(line.lstrip())] + " "
            end = next((n for n in range(at + 1, len(lines)) if not lines[n].startswith(margin)), len(lines))
            found.append(" ".join(text.strip() for text in lines[max(at, end - 3) : end + 1]))
    return found


def _tolerantly(check: Callable[[], Awaitable[bool]]) -> Callable[[], Awaitable[bool]]:
    """A node that turns the question away has not answered it."""

    async def answer() -> bool:
        try:
            return await check()
        except SwarmError:
            await trio.sleep(1.0)
            return False

    return answer
