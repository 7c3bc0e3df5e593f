"""Before the swarm is entered, and when it has holes: what is told, and to whom."""

from __future__ import annotations

import pytest

from swarm.http import limits
from tests.http.swarm import api
from tests.support.waiting import block_until

ASK = {"messages": [{"role": "user", "content": "1"}], "temperature": 0, "max_tokens": 3}


def test_it_is_up_before_the_swarm_is_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are told to come again; health says why; and then it answers."""
    monkeypatch.setattr(limits, "JOIN_EVERY_S", 0.5)
    with api(unreachable=1) as found, found.client() as client:
        early = client.post("/v1/chat/completions", json=ASK)
        block_until(lambda: "nobody answers" in client.get("/health").json().get("why", "nobody answers"))
        found.wait_joined()
        assert early.status_code == 503
        assert early.json()["error"]["code"] == "joining"
        assert int(early.headers["retry-after"]) >= 1
        assert client.get("/health").json() == {
            "status": "ok",
            "joined": True,
            "complete": True,
            "missing": [],
        }
        assert client.get("/ready").json()["hops"] == 2
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200


def test_a_hole_is_told_with_what_fills_it() -> None:
    """503 and the command, in each dialect's form; streams are told before their head is sent."""
    with api((0, 4)) as found, found.client() as client:
        for stream in (False, True):
            said = client.post("/v1/chat/completions", json={**ASK, "stream": stream})
            assert said.status_code == 503
            error = said.json()["error"]
            assert error["code"] == "no_route"
            assert error["missing"] == [[4, 8]]
            assert "swarm node --model fake --layers 3:6 --join /" in error["message"]
            assert int(said.headers["retry-after"]) >= 1
        assert client.get("/ready").status_code == 503
        assert client.get("/health").json()["missing"] == [[4, 8]]
        ollama = client.post("/api/chat", json={"messages": ASK["messages"]})
        assert "nobody serves" in ollama.json()["error"]
        anthropic = client.post("/v1/messages", json={"messages": ASK["messages"], "max_tokens": 3})
        assert anthropic.json()["error"]["type"] == "api_error"
