"""Every strategy over a swarm gives what it gives over the whole model: undisturbed, and when hops die under it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Unpack

import numpy as np
import pytest
import trio
import trio.testing

from node.compute.call import run_alone
from node.whole import WholeModel
from protocol.candidates import Candidates, Want
from protocol.errors import ConfigError, NoRoute
from protocol.model import ManifestFile
from swarm.answer import Alternative, Answer
from swarm.branches import Branches
from swarm.client import Client
from swarm.decoding import (
    BeamSearch,
    BestOf,
    Contrastive,
    ContrastiveSearch,
    Greedy,
    Sampling,
    Speculative,
    Strategy,
    Task,
    Token,
    choose_strategy,
)
from swarm.generation import Generation
from swarm.request import Asking, Request
from swarm.session.session import Session
from tests.node.fakes import HIDDEN, MANIFEST, VOCAB, FakeEngine, token_rows
from tests.sim.beside import Beside, inline_client
from tests.sim.test_session import DOUBLE, FAULTS
from tests.sim.world import ALL, World, swarm_of
from tests.support.waiting import eventually
from tests.swarm.decoding.reference import Logits, make_model, run

PROMPT = [3, 4, 5, 6, 7, 3, 4]
NEW = 10
EOS = frozenset({1, 2})


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Time passes when everybody waits."""
    return trio.testing.MockClock(autojump_threshold=0)


@dataclass(frozen=True)
class Case:
    """A strategy and its settings, and whether it has another model beside the swarm."""

    strategy: Strategy | str
    sampling: Sampling
    beside: bool = False

    def request(self, client: Client) -> Request:
        """As a client is asked."""
        other = Beside(_likewise, VOCAB, client.tokenizer) if self.beside else None
        contrasts = isinstance(self.strategy, Contrastive)
        amateur, draft = (other, None) if contrasts else (None, other)
        return Request(
            NEW, self.sampling, self.strategy, eos=EOS, top_logprobs=2, amateur=amateur, draft=draft
        )


SHAPED = Sampling(repetition_penalty=1.2, no_repeat_ngram=2, banned={9}, logit_bias={8: 1.5})
DRAWN = Sampling(0.9, top_p=0.9, frequency_penalty=0.3, min_new_tokens=4, seed=11)
CASES = {
    "greedy": Case("greedy", SHAPED),
    "sample": Case("sample", DRAWN),
    "drafts": Case(Speculative(drafts=1, run=2), Sampling()),
    "drafts, drawn": Case(Speculative(run=2), DRAWN),
    "auto": Case("auto", Sampling()),
    "beams": Case(BeamSearch(4, 0.8, False, 3), SHAPED),
    "early": Case(BeamSearch(2, early_stopping=True), Sampling()),
    "best": Case(BestOf(3), DRAWN),
    "search": Case(ContrastiveSearch(0.6, 3), SHAPED),
    "sibling": Case(Speculative(run=0), Sampling(), beside=True),
    "sibling, drawn": Case(Speculative(run=2), DRAWN, beside=True),
    "contrastive": Case(Contrastive(0.3, amateur_temperature=2.0), SHAPED, beside=True),
}


# Which hop fails, how long after it has computed some of the answer, whether hops send to each other, and the case.
# Those that fork alike are disturbed alike: beams in every way, search in one.
DISTURBED = [
    (*way, name)
    for way in [(3, 0.0, True), (0, 0.025, True), (3, 0.015, False)]
    for name in CASES
    if name != "early" and (name != "search" or way == (0, 0.025, True))
]


@cache
def _logits(tokens: tuple[int, ...]) -> Logits:
    engine = FakeEngine(ALL)
    found = run_alone(engine, engine.new_cache(ALL), 0, token_rows(list(tokens)), Want(top=0))
    assert isinstance(found, Candidates)
    logits = np.empty(VOCAB, np.float32)
    logits[found.ids[0]] = found.logits[0]
    return logits


@cache
def _state(tokens: tuple[int, ...]) -> Logits:
    engine = FakeEngine(ALL)
    found = run_alone(engine, engine.new_cache(ALL), 0, token_rows(list(tokens)), Want(states=True))
    assert isinstance(found, Candidates)
    assert found.states is not None
    state: Logits = found.states[0]
    return state


def _expert(tokens: Sequence[int]) -> Logits:
    return _logits(tuple(tokens))


def _likewise(tokens: Sequence[int]) -> Logits:
    """Another model, which often says the same."""
    return _expert(tokens) + make_model(4, VOCAB, 0.6)(tokens)


def reference(case: Case) -> list[tuple[tuple[int, ...], str]]:
    """What the strategy finds over the unsplit fake model, best first."""
    beside = VOCAB if case.beside else None
    task = Task(
        PROMPT,
        VOCAB,
        NEW,
        case.sampling,
        EOS,
        amateur_vocab=beside,
        draft_vocab=beside,
        hidden_size=HIDDEN,
    )
    strategy = choose_strategy(case.strategy, case.sampling)
    found = run(
        strategy.decode(task), _expert, PROMPT, _likewise, states=lambda tokens: _state(tuple(tokens))
    )
    others = [(tuple(token.id for token in each.tokens), each.reason) for each in found.ending.others]
    return [(tuple(found.ids), found.ending.reason), *others]


def sequences(answer: Answer) -> list[tuple[tuple[int, ...], str]]:
    """The same of an answer."""
    return [(each.tokens, each.finish_reason) for each in told(answer)]


def told(answer: Answer) -> list[Answer | Alternative]:
    """All that an answer tells, best first."""
    return [answer, *answer.alternatives]


async def answered(client: Client, case: Case, **more: Unpack[Asking]) -> Answer:
    """The whole answer."""
    generation = client.generate(PROMPT, request=case.request(client), **more)
    pieces = [piece async for piece in generation]
    answer = generation.answer
    assert "".join(piece.text for piece in pieces) == answer.text
    assert tuple(token for piece in pieces for token in piece.tokens) == answer.chosen
    return answer


def held(world: World) -> list[int]:
    """Sessions at each node."""
    return [len(node.hop) for node in world.nodes]


async def drive(
    session: Session, case: Case, before: Callable[[int], None]
) -> list[tuple[tuple[int, ...], str]]:
    """A strategy over a session's branches, without text; `before` is called with each ask's number."""
    strategy = choose_strategy(case.strategy, case.sampling).decode(
        Task(PROMPT, VOCAB, NEW, case.sampling, EOS, top_logprobs=2, hidden_size=HIDDEN)
    )
    given: list[int] = []
    reply, number = None, 0
    async with aclosing(Branches(session)) as branches:
        while True:
            try:
                said = strategy.send(reply)
            except StopIteration as end:
                others = [
                    (tuple(token.id for token in each.tokens), each.reason) for each in end.value.others
                ]
                return [(tuple(given), end.value.reason), *others]
            reply = None
            if isinstance(said, Token):
                given.append(said.id)
            else:
                before(number)
                reply, number = await branches.answer(said), number + 1


@pytest.mark.parametrize("name", list(CASES))
async def test_over_three_nodes(name: str, clock: trio.testing.MockClock) -> None:
    """The same sequences and ends, texts of all of them, and nothing left at the nodes."""
    case = CASES[name]
    async with swarm_of((0, 3), (3, 6), (6, 8)) as world, inline_client(world) as client:
        answer = await answered(client, case)
        assert sequences(answer) == reference(case)
        for each in told(answer):
            ids = [token for token in each.tokens if token not in EOS]
            assert each.text == await client.text.decode(ids)
            assert all(len(token.best) == 2 for token in each.chosen)
        await eventually(lambda: not any(held(world)))


@pytest.mark.parametrize(("victim", "delay_s", "direct", "name"), DISTURBED)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_hop_dies_under_it(
    fault: Any, victim: int, name: str, delay_s: float, direct: bool, clock: trio.testing.MockClock
) -> None:
    """Between two steps, as branches are forked, or while steps and drafts are out: the same as undisturbed."""
    case = CASES[name]
    async with (
        swarm_of(*DOUBLE, slow=[4, 5, 6, 7]) as world,
        inline_client(world, direct=direct) as client,
    ):
        generation = client.generate(PROMPT, request=case.request(client))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_consume, generation)
            steps = world.nodes[victim].engine.steps
            await eventually(lambda: any(position > len(PROMPT) for position, _ in steps))
            await trio.sleep(delay_s)
            fault(world, victim)
        assert sequences(generation.answer) == reference(case)
        assert generation.answer.reroutes


@pytest.mark.parametrize("direct", [True, False])
async def test_what_happened_to_a_branch_is_told(direct: bool, clock: trio.testing.MockClock) -> None:
    """The reroutes of all branches are the answer's: of one session where that holds them all, of several where what
    passes goes by way of the client."""
    case = CASES["beams"]
    async with swarm_of(*DOUBLE, slow=[4, 5, 6, 7]) as world, inline_client(world, direct=direct) as client:
        generation = client.generate(PROMPT, request=case.request(client))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_consume, generation)
            first = world.nodes[0]
            await eventually(lambda: len(first.engine.caches if direct else first.hop) >= 4)
            world.network.kill(world.nodes[1].peer)
        assert sequences(generation.answer) == reference(case)
        lost = generation.answer.reroutes
        assert (len({event.session for event in lost}) == 1) is direct
        assert {event.lost for event in lost} == {world.nodes[1].peer}


async def _consume(generation: Generation) -> None:
    async for _ in generation:
        pass


@pytest.mark.parametrize("kill", [False, True])
async def test_an_amateur_beside(kill: bool, clock: trio.testing.MockClock) -> None:
    """Another client is asked at the same time; a hop that dies under both changes nothing."""
    how, sampling = Contrastive(0.3, amateur_temperature=2.0), Sampling()
    task = Task(PROMPT, VOCAB, NEW, sampling, EOS, amateur_vocab=VOCAB)
    expected = run(how.decode(task), _expert, PROMPT)
    async with swarm_of(*DOUBLE, slow=[4, 5, 6, 7]) as world, inline_client(world) as client:
        generation = client.generate(
            PROMPT, strategy=how, amateur=client, max_new_tokens=NEW, eos=EOS, sampling=sampling
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_consume, generation)
            await eventually(lambda: len(world.nodes[0].hop) == 2)
            if kill:
                world.network.kill(world.nodes[1].peer)
        answer = generation.answer
        assert (list(answer.tokens), answer.finish_reason) == (expected.ids, expected.ending.reason)
        assert bool(answer.reroutes) is kill
        await eventually(lambda: not any(held(world)))


@pytest.mark.parametrize(("victim", "temperature"), [(0, 0.4), (3, 0.0)])
async def test_a_hop_dies_with_drafts_under_way(victim: int, temperature: float) -> None:
    """Several steps of them: the same answer as undisturbed."""
    sampling = Sampling(temperature, seed=3)
    case, drafts = Case(Speculative(drafts=3, run=0, ahead=6), sampling), WholeModel(FakeEngine(ALL))
    task = Task(PROMPT, VOCAB, 90, sampling)
    plain = run(Greedy().decode(task), lambda tokens: _logits(tuple(tokens)), PROMPT).ids
    async with (
        swarm_of(*DOUBLE, slow=[4, 5, 6, 7]) as world,
        inline_client(world) as client,
        client.session() as session,
    ):
        generation = client.generate(
            PROMPT, session=session, request=case.request(client), draft=drafts, eos=(), max_new_tokens=90
        )

        def guessed() -> int:
            return session.length - len(PROMPT) - len(generation.answer.tokens)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_consume, generation)
            await eventually(lambda: guessed() > 6, 20)
            world.network.kill(world.nodes[victim].peer)
        assert list(generation.answer.tokens) == plain
        assert generation.answer.reroutes


async def test_where_layers_keep_a_state_auto_is_as_plain() -> None:
    """Nothing is drafted; a place that is asked once more is computed again from the beginning, by the same hops."""
    sampling = Sampling(30.0, top_p=0.99, seed=2)
    async with swarm_of((0, 4), (4, 8)) as world, inline_client(world) as client:
        for node in world.nodes:
            node.engine.keeps_state, node.engine.goes_back = True, False
        answer = await answered(client, Case("auto", sampling), draft=client)
        assert list(answer.tokens) == list(reference(Case("sample", sampling))[0][0])
        assert not answer.reroutes
        assert all(rows == 1 for position, rows in world.nodes[0].engine.steps if position)


async def test_what_drafts_has_to_fit() -> None:
    """Of the same tokenizer, and beside a strategy that drafts."""
    async with swarm_of((0, 8)) as world, inline_client(world) as client:
        with pytest.raises(ConfigError, match="drafts nothing"):
            client.generate(PROMPT, strategy="beam_search", draft=client)


async def test_amateurs_that_do_not_fit(clock: trio.testing.MockClock) -> None:
    """One of another tokenizer, one where none is used, none where one is."""
    async with swarm_of((0, 8)) as world, inline_client(world) as client:
        file = ManifestFile("tokenizer.json", 3, bytes(32))
        manifest = replace(MANIFEST, files=(file,))
        other = Client(
            world.view,
            replace(client.model, manifest=manifest),
            client.text,
            None,
            world.events.append,
            wait_s=0.0,
            direct=True,
            reuse=True,
        )
        with pytest.raises(ConfigError, match="the amateur has another tokenizer"):
            client.generate(PROMPT, strategy="contrastive", amateur=other)
        with pytest.raises(ConfigError, match="the draft has another tokenizer"):
            client.generate(PROMPT, draft=other)
        with pytest.raises(ConfigError, match="no use"):
            client.conversation(amateur=client)
        with pytest.raises(ConfigError, match="needs an amateur"):
            client.generate(PROMPT, strategy="contrastive")


async def test_beams_compute_nothing_twice(clock: trio.testing.MockClock) -> None:
    """The prompt once, then one row for each beam and token."""
    case = CASES["beams"]
    async with swarm_of((0, 4), (4, 8)) as world, inline_client(world) as client:
        answer = await answered(client, case)
        rows = [sum(rows for _, rows in node.engine.steps) for node in world.nodes]
        assert len(set(rows)) == 1
        assert rows[0] <= len(PROMPT) + 4 * (NEW - 1)
        assert len(answer.alternatives) == 2


@pytest.mark.parametrize("name", list(CASES))
async def test_time_runs_out_within_a_step(name: str, clock: trio.testing.MockClock) -> None:
    """The step that is out is left, what there is stays; of several the best so far is told."""
    async with swarm_of((0, 4), (4, 8)) as world, inline_client(world, wait_s=3600) as client:
        generation = client.generate(PROMPT, request=CASES[name].request(client), eos=(), max_seconds=2.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_consume, generation)
            enough = 5 if name == "search" else 3  # its first token takes a step of every branch
            await eventually(lambda: len(world.nodes[1].engine.steps) >= enough)
            world.network.pause(world.nodes[1].peer)
        answer = generation.answer
        assert answer.finish_reason == "time"
        assert answer.tokens


async def test_time_runs_out_before_there_is_a_route(clock: trio.testing.MockClock) -> None:
    """Who waits for somebody to serve waits no longer than that."""
    async with swarm_of((0, 4)) as world, inline_client(world, wait_s=3600) as client:
        answer = await answered(client, CASES["greedy"], max_seconds=0.2)
        assert (answer.finish_reason, answer.tokens) == ("time", ())


async def test_a_predicate_and_a_stop_string_end_it(clock: trio.testing.MockClock) -> None:
    """After the token that makes it true; and before the text."""
    async with swarm_of((0, 8)) as world, inline_client(world) as client:
        case = CASES["greedy"]
        whole = await answered(client, case)

        def enough(text: str, tokens: Sequence[int]) -> bool:
            assert whole.text.startswith(text)
            return len(tokens) == 4

        cut = await answered(client, case, until=enough)
        assert (cut.tokens, cut.finish_reason) == (whole.tokens[:4], "until")
        stop = whole.text[2:4]
        stopped = await answered(client, case, stop=[stop])
        assert (stopped.text, stopped.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")


async def test_ends_are_those_that_were_asked_for(clock: trio.testing.MockClock) -> None:
    """Other ids than the model's end an answer, or none do."""
    async with swarm_of((0, 8)) as world, inline_client(world) as client:
        case = Case("greedy", Sampling())
        endless = await answered(client, case, eos=())
        assert (len(endless.tokens), endless.finish_reason) == (NEW, "length")
        ended = await answered(client, case, eos={endless.tokens[2]})
        cut = endless.tokens.index(endless.tokens[2]) + 1
        assert (ended.tokens, ended.finish_reason) == (endless.tokens[:cut], "eos")
        assert ended.text == await client.text.decode(list(endless.tokens[: cut - 1]))


async def test_what_a_branch_raises_reaches_the_reader(clock: trio.testing.MockClock) -> None:
    """One plain error, not a group of them; and nothing is left at the nodes that live."""
    async with swarm_of((0, 4), (4, 8)) as world, inline_client(world) as client:
        generation = client.generate(PROMPT, request=CASES["beams"].request(client))
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(NoRoute):
                    await _consume(generation)

            nursery.start_soon(read)
            await eventually(lambda: len(world.nodes[0].engine.caches) >= 4)
            world.network.kill(world.nodes[1].peer)
        assert generation.answer.finish_reason == "cancelled"
        await eventually(lambda: not len(world.nodes[0].hop))


async def test_settings_that_do_not_go_together(clock: trio.testing.MockClock) -> None:
    """At once, before anything is asked of the swarm."""
    async with swarm_of((0, 8)) as world, inline_client(world) as client:
        wrongs: list[Asking] = [
            {"strategy": "beam_search", "sampling": Sampling(1.0)},
            {"strategy": "nonsense"},
            {"stop": "text"},
            {"stop": [""]},
            {"max_seconds": 0.0},
            {"max_seconds": float("nan")},
            {"top_logprobs": 21},
            {"max_new_tokens": 0},
        ]
        for wrong in wrongs:
            with pytest.raises(ConfigError):
                client.generate(PROMPT, **wrong)


def test_what_may_be_asked_is_what_a_request_has() -> None:
    """The arguments of `generate` are the fields of a `Request`."""
    assert [field.name for field in fields(Request)] == list(Asking.__annotations__)
