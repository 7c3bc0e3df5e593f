"""Answers as streams of tokens, text and events, and into the streamers of transformers, over real nodes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import trio
from transformers import AutoTokenizer, TextIteratorStreamer, TextStreamer

import swarm
from protocol.errors import ConfigError
from swarm.answer import Settled
from swarm.cli.demo_nodes import shipped_model
from swarm.streamers import feed
from tests.support.inprocess import running_nodes

pytestmark = pytest.mark.net

PROMPT = "Say: über, 日本, 🙂 and"
NEW_TOKENS = 24
# Some of these characters take several tokens each.
BIASED = swarm.Sampling(temperature=1.3, seed=5)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """That of the shipped model."""
    return AutoTokenizer.from_pretrained(shipped_model())


async def test_moments_are_the_answer_token_by_token() -> None:
    """Every token with its log-probability, in time; the text after it; and what each hop says a step cost it."""
    async with (
        running_nodes(shipped_model(), [(0, 4), (4, 8)]) as addrs,
        swarm.connect(addrs[0], remember=False) as client,
    ):
        plain = client.generate(PROMPT, sampling=BIASED, max_new_tokens=NEW_TOKENS)
        pieces = [piece.text async for piece in plain]
        generation = client.generate(PROMPT, sampling=BIASED, max_new_tokens=NEW_TOKENS)
        moments = [moment async for moment in generation.moments()]
        tokens = [moment for moment in moments if isinstance(moment, Settled)]
        texts = [moment for moment in moments if isinstance(moment, str)]
        assert tuple(each.token for each in tokens) == generation.answer.chosen == plain.answer.chosen
        assert texts == [text for text in pieces if text]
        assert isinstance(moments[0], Settled)
        seconds = [each.seconds for each in tokens]
        assert seconds == sorted(seconds)
        peers = set(generation.answer.route.peers)
        told = {cost.peer for each in tokens for cost in each.hops}
        assert told
        assert told <= peers  # an ack may come a little after its step is through
        assert sum(len(each.hops) for each in tokens) <= len(peers) * (NEW_TOKENS + 1)
        assert all(cost.compute_ms > 0 for each in tokens for cost in each.hops)


async def test_streamers_of_transformers(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """What they print and hand out is the text of the tokens, with the prompt or without; they hear of errors."""
    async with (
        running_nodes(shipped_model(), [(0, 8)]) as addrs,
        swarm.connect(addrs[0], remember=False) as client,
    ):

        def asked(prompt: str) -> swarm.Generation:
            return client.generate(prompt, sampling=BIASED, max_new_tokens=NEW_TOKENS)

        answer = await feed(asked(PROMPT), TextStreamer(tokenizer))
        prompt = await client.text.encode(PROMPT)
        assert capsys.readouterr().out == tokenizer.decode([*prompt, *answer.tokens]) + "\n"
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=20)
        await feed(asked(PROMPT), streamer)
        assert "".join(streamer) == tokenizer.decode(answer.tokens)
        with pytest.raises(ConfigError):
            await feed(asked(""), streamer)
        assert "".join(streamer) == ""


def test_streamers_from_an_ordinary_thread(tokenizer: Any, tmp_path: Path) -> None:
    """One thread generates, another reads what comes."""

    def ask(addr: str, streamer: TextIteratorStreamer) -> None:
        with swarm.blocking.connect(addr, remember=False) as client:
            answers.append(client.generate(PROMPT, max_new_tokens=8).feed(streamer))
            moments.extend(client.generate(PROMPT, max_new_tokens=8).moments())

    answers: list[swarm.Answer] = []
    moments: list[object] = []

    async def main() -> None:
        async with running_nodes(shipped_model(), [(0, 8)]) as addrs:
            streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=20)
            thread = threading.Thread(target=ask, args=(addrs[0], streamer))
            thread.start()
            text = await trio.to_thread.run_sync("".join, streamer)
            await trio.to_thread.run_sync(thread.join)
            assert text == tokenizer.decode(answers[0].tokens)
            tokens = [each.token.id for each in moments if isinstance(each, Settled)]
            assert tuple(tokens) == answers[0].tokens

    trio.run(main)
