"""`/v1/chat/completions`: what OpenAI's clients send and read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.http.swarm import Api, api

ASK = {"messages": [{"role": "user", "content": "1"}], "temperature": 0, "max_tokens": 6}


@pytest.fixture(scope="module")
def shared() -> Iterator[Api]:
    """One swarm for all that harm nothing."""
    with api() as found:
        yield found


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    """What a stream says, without the word that ends it."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_whole_and_streamed_are_the_same(shared: Api) -> None:
    """Text, reason and route; a stream begins with the role and ends with the reason, and nobody asked for usage."""
    with shared.client() as asker:
        whole = asker.post("/v1/chat/completions", json=ASK)
        streamed = asker.post("/v1/chat/completions", json={**ASK, "stream": True})
    assert whole.status_code == 200, whole.text
    [choice] = whole.json()["choices"]
    said = chunks(streamed)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    deltas = [chunk["choices"][0] for chunk in said]
    assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(delta["delta"].get("content", "") for delta in deltas) == choice["message"]["content"]
    assert [delta["finish_reason"] for delta in deltas] == [None] * (len(deltas) - 1) + [
        choice["finish_reason"]
    ]
    assert deltas[-1]["delta"] == {}
    assert all(chunk["choices"] for chunk in said)
    assert whole.headers["x-swarm-route"] == streamed.headers["x-swarm-route"]
    assert [hop["layers"] for hop in whole.json()["swarm"]["route"]] == [
        "embedding + layers 0:3",
        "layers 3:6 + head",
    ]
