"""Whoever hangs up ends the work: in line, while the prompt is computed, while the answer is; streaming or not."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from functools import cache, partial

import pytest

from swarm.http.settings import Settings
from tests.http.swarm import Api, api
from tests.sim.test_answers import EOS
from tests.sim.world import greedy_reference
from tests.support.waiting import block_until

LONG = 900  # tokens: eight steps of a prompt
FOREVER = 100


@cache
def endless() -> list[int]:
    """A prompt whose answer goes on for FOREVER tokens."""
    prompts = ([first, second, 7, 9] for first in range(3, 32) for second in range(3, 32))
    return next(prompt for prompt in prompts if not EOS & set(greedy_reference(prompt, FOREVER)))


def ask(api: Api, *, stream: bool, prompt: int = 4, most: int = FOREVER) -> socket.socket:
    """A request that nobody has answered yet."""
    ids = endless() if prompt == 4 else [3 + n % 20 for n in range(prompt)]
    body = json.dumps({"prompt": ids, "max_tokens": most, "temperature": 0, "stream": stream})
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    asking = socket.create_connection(api.address, timeout=10)
    asking.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return asking


def wait_idle(api: Api) -> None:
    """Return when nodes hold nothing and nobody is in line."""
    block_until(lambda: api.sessions() == 0 and api.serving.service.line.active == 0)
    assert api.serving.service.line.waiting == 0


@pytest.mark.parametrize("stream", [False, True])
def test_in_decode(stream: bool) -> None:
    """The nodes' sessions end long before the answer would."""
    with api(step_s=0.02) as found:
        with closing(ask(found, stream=stream)):
            block_until(lambda: found.steps() > 10)
        wait_idle(found)
        assert found.steps() < FOREVER


@pytest.mark.parametrize("stream", [False, True])
def test_in_prefill(stream: bool) -> None:
    """Steps of the prompt that are queued at nodes are not computed."""
    with api(step_s=0.2) as found:
        with closing(ask(found, stream=stream, prompt=LONG)):
            block_until(lambda: found.steps() > 0)
        wait_idle(found)
        assert sum(rows for node in found.world.nodes for _, rows in node.engine.steps) < 2 * LONG


@pytest.mark.parametrize("stream", [False, True])
def test_in_line(stream: bool) -> None:
    """Who waits for a place and leaves never takes it."""
    with api(step_s=0.02, settings=Settings(port=0, places=1, queued=2)) as found:
        line = found.serving.service.line
        with closing(ask(found, stream=True)):
            block_until(lambda: line.active == 1)
            with closing(ask(found, stream=stream)):
                block_until(lambda: line.waiting == 1)
            block_until(lambda: line.waiting == 0)
            assert line.active == 1
        wait_idle(found)


def test_many_at_once_leave_nothing() -> None:
    """Some of each kind, all hung up on at any moment."""
    with api(step_s=0.002, settings=Settings(port=0, places=4, queued=8)) as found:
        for _ in range(3):
            asking = [ask(found, stream=n % 2 == 0, prompt=4 if n % 3 else 300) for n in range(12)]
            before = found.steps()
            block_until(partial(lambda most: found.steps() > most, before + 5))
            for each in asking:
                each.close()
            wait_idle(found)
