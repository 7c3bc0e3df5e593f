"""Idle sessions: which of them a prompt goes on from, and that there are never too many."""

from __future__ import annotations

import json

import pytest

from swarm.http import limits
from swarm.http.pool import Held, choose
from tests.http.swarm import Api, api
from tests.support.waiting import block_until

FIRST = tuple(range(100))
ROOM = 200


@pytest.mark.parametrize(
    ("held", "chosen"),
    [
        ([], None),
        ([Held(FIRST, 4096)], 0),
        ([Held(FIRST[:20], 4096)], None),  # hardly anything in common
        ([Held(FIRST, ROOM - 1)], None),  # no room for the rest
        ([Held(FIRST[:40], 4096), Held(FIRST[:60], 4096)], 1),  # the longest
        ([Held(FIRST[:40] + (7,) * 41, 4096)], None),  # somebody else's history
        ([Held(FIRST[:40] + (7,) * 40, 4096)], 0),
    ],
)
def test_which_session_is_gone_on_from(held: list[Held], chosen: int | None) -> None:
    """The one that has the most of the prompt, if it has enough, and does not lose more than it gives."""
    assert choose(held, [*FIRST, 1, 2], ROOM) == chosen


def history(turns: int) -> list[dict[str, str]]:
    """A conversation."""
    said = [{"role": "user", "content": "12345678"}, {"role": "assistant", "content": "87654321"}] * turns
    return [*said, {"role": "user", "content": "1"}]


def held_of(api: Api, turns: int) -> int:
    """How much of a conversation's prompt was there already."""
    with api.client() as client:
        body = {"messages": history(turns), "temperature": 0, "max_tokens": 2, "stream": True}
        said = client.post("/v1/chat/completions", json=body)
    lines = [line for line in said.text.splitlines() if line.startswith("data: {")]
    cached: int = json.loads(lines[-1][6:])["timings"]["cache_n"]
    return cached


def test_a_chat_that_sends_its_history_again_goes_on_from_its_session() -> None:
    """Only what is new is asked of nodes; the sessions that wait are bounded, and end with the server."""
    with api() as found:
        assert held_of(found, 4) == 0
        assert held_of(found, 5) > 30
        pool = found.serving.service.pool
        assert (pool.size, pool.taken) == (1, 1)
        assert found.sessions() == 2  # one at each node
        with found.client() as client:
            for first in range(3, 3 + limits.IDLE_SESSIONS + 2):
                body = {"prompt": [first] * 4, "temperature": 0, "max_tokens": 1}
                assert client.post("/v1/completions", json=body).status_code == 200
        assert pool.size == limits.IDLE_SESSIONS
        block_until(lambda: found.sessions() == 2 * limits.IDLE_SESSIONS)
