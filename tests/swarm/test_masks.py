"""The mask process: which ids a grammar leaves, whoever is asked and in whatever order; and that nothing stalls."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
import trio
import trio.testing

from protocol.candidates import Want
from protocol.errors import ConfigError, LocalProtocolError, Malformed, SwarmError, TooLarge
from swarm.decoding import Ask, Grammar, Together
from swarm.guided import Guided, Held, Masked
from swarm.text.masks import Masks, Rules, mask_process
from swarm.text.process import Bounds, TextProcess
from swarm.text.text import Text, load_text
from tests.support.waiting import eventually
from tests.swarm.tokenizers import byte_level, metaspace, model_files

VOCAB = 400  # more than the tokenizer has, as in many models
EOS = 1
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SAID = '{"name": "he", "age": 42}'


@asynccontextmanager
async def text_with(masks: TextProcess, files: dict[str, bytes] | None = None) -> AsyncIterator[Text]:
    """A model's text side with its mask process."""
    process = TextProcess()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.run)
        nursery.start_soon(masks.run)
        yield await load_text(process, files or model_files(), masks)
        nursery.cancel_scope.cancel()


def of(grammar: Grammar, eos: int = EOS) -> Rules:
    """It over the made-up model."""
    return Rules(grammar.kind, grammar.source, VOCAB, (eos,))


def left(bits: bytes) -> set[int]:
    """The ids of a mask."""
    return set(np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")).tolist())


async def check_text(masks: Masks, tokens: list[int]) -> None:
    """Each of these tokens may follow those before it, and the text may end after the last and nowhere else."""
    places = [tokens[:length] for length in range(len(tokens) + 1)]
    found = await masks.after(places)
    assert [each.whole for each in found] == [False] * len(tokens) + [True]
    for each, token in zip(found, tokens, strict=False):
        assert token in left(each.bits)


@pytest.mark.parametrize("tokenizer", [byte_level, metaspace])
async def test_what_a_grammar_leaves_is_its_texts(tokenizer: object) -> None:
    """JSON of a schema goes through, whichever way bytes are tokens; what is none of it is not left."""
    files = model_files(tokenizer())  # type: ignore[operator]
    async with text_with(mask_process(), files) as text:
        said = [each for each in await text.encode(SAID.replace(" ", "")) if each not in text.about.silent]
        masks = text.masks(of(Grammar.json_schema(PERSON)))
        if tokenizer is metaspace:  # it puts a blank in front of what is encoded
            said = said[1:]
        await check_text(masks, said)
        [first] = await masks.after([()])
        assert {(await text.decode([each])).strip()[:1] for each in left(first.bits)} == {"{"}
        [wrong] = await masks.after([said[1:]])
        assert left(wrong.bits) == set()
        assert not wrong.whole


async def test_sequences_may_be_asked_in_any_order() -> None:
    """Drafts that were wrong, forks and others' answers leave no trace in what is told of a place."""
    async with text_with(mask_process()) as text:
        masks = text.masks(of(Grammar.json_schema(PERSON)))
        one = await text.encode(SAID)
        other = await text.encode('{"name": "lol", "age": -7}')
        places = [each[:length] for each in (one, other) for length in range(len(each) + 1)]
        told = await masks.after(places)
        shuffled = np.random.default_rng(3).permutation(len(places)).tolist()
        again = await masks.after([places[at] for at in shuffled])
        assert again == [told[at] for at in shuffled]


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        (Grammar.json_schema({"type": "wat"}), "Invalid type: wat"),
        (Grammar.json_schema({"not": {"type": "string"}}), "Unimplemented keys"),
        (Grammar.json_schema({"$ref": "https://example.com/schema"}), "fetch"),
        (Grammar.json_schema({"$ref": "file:///etc/passwd"}), "fetch"),
        (Grammar.regex("(a"), "grammar cannot be used"),
        (Grammar.lark("start: nothing"), "grammar cannot be used"),
    ],
)
async def test_a_grammar_that_cannot_be_used_is_told(grammar: Grammar, why: str) -> None:
    """In one line, and no file or address is opened for it."""
    async with text_with(mask_process()) as text:
        with pytest.raises(ConfigError, match=why) as refused:
            await text.masks(of(grammar)).after([()])
        assert "\n" not in str(refused.value)
        assert await text.masks(of(Grammar.json_object())).after([()])


async def test_one_that_takes_too_long_is_given_up_and_holds_up_no_text() -> None:
    """Others' tokens are decoded meanwhile, and the next answer finds another process."""
    process = TextProcess(Bounds(ask_s=1, patience=0.3), "mask_worker", idle=True)
    async with text_with(process) as text:
        masks = text.masks(of(Grammar.json_object()))
        told = await masks.after([()])
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        refused: list[SwarmError] = []

        async def ask() -> None:
            try:
                await masks.after([()])
            except TooLarge as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            assert await text.decode([30, 31]) == ";<"
        assert refused
        assert await masks.after([()]) == told


async def test_another_process_goes_on_where_one_was_killed() -> None:
    """What it is asked is said whole, so nothing of an answer is lost with it."""
    process = mask_process()
    async with text_with(process) as text:
        masks = text.masks(of(Grammar.json_schema(PERSON)))
        said = await text.encode(SAID)
        before = await masks.after([said[:7]])
        pid = process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert await masks.after([said[:7]]) == before
        await eventually(lambda: process.pid not in (None, pid))


async def test_ids_that_end_an_answer_are_left_where_it_may_end() -> None:
    """All of them, and no others; where the model has none, an answer by a grammar cannot end."""
    async with text_with(mask_process()) as text:
        said = await text.encode("42")
        held = Held((5, 6), 0, VOCAB, frozenset({1, 2}))
        guide = Masked(text, Grammar.regex("[0-9]{2}"), held)
        await guide.look([(), tuple(said)])
        assert not guide.mask([5, 6])[[1, 2]].any()
        assert np.flatnonzero(guide.mask([5, 6, *said])).tolist() == [1, 2]
        with pytest.raises(LocalProtocolError):
            guide.mask([5, 6, 7])
        with pytest.raises(ConfigError, match="eos"):
            Masked(text, Grammar.regex("a"), Held((5, 6), 0, VOCAB, frozenset()))


async def test_files_that_no_grammar_goes_with_are_told() -> None:
    """A tokenizer that cannot be read is the fault of whoever handed it out."""
    process = mask_process()
    async with text_with(process) as text:
        process.give({"tokenizer.json": json.dumps({"model": {}}).encode()})
        with pytest.raises(Malformed, match="tokenizer"):
            await text.masks(of(Grammar.json_object())).after([()])


def test_the_places_of_a_step_are_those_that_tokens_are_chosen_at() -> None:
    """Of every row, or of the last; on a fork, what its parent held."""
    held = Held((5, 6, 7), 2, VOCAB, frozenset({1}))
    guided = Guided(None, None, held)  # type: ignore[arg-type]
    prefill = Ask((7,), 2, Want())
    assert guided.places(prefill) == [()]
    draft = Ask((9, 10, 11), 3, Want(every=True))
    assert guided.places(draft) == [(9,), (9, 10), (9, 10, 11)]
    assert guided.places(Ask((12,), 4, Want())) == [(9, 12)]
    both = Together((Ask((13,), 5, Want(), 1, parent=0), Ask((14,), 5, Want())))
    assert guided.places(both) == [(9, 12, 13), (9, 12, 14)]
    assert guided.places(Together((Ask((15,), 6, Want(), 1), Ask((3,), 0, Want(), -1)), (0,))) == [
        (9, 12, 13, 15)
    ]
