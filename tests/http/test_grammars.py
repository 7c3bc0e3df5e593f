"""`response_format`: whatever the model would say, the text is JSON of the schema; in each dialect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from swarm.cli.demo_nodes import shipped_model
from tests.http.swarm import Api, real_api

pytestmark = pytest.mark.net

SCHEMA = {
    "type": "object",
    "properties": {
        "sum": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["even", "odd"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["sum", "tags"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA, "strict": True}}
USER = [{"role": "user", "content": "What is 12 + 30?"}]
ASK = {"messages": USER, "temperature": 0, "max_tokens": 80, "response_format": FORMAT}


@pytest.fixture(scope="module")
def shared() -> Iterator[Api]:
    """The model that ships, which was never taught JSON."""
    with real_api(shipped_model()) as found:
        yield found


def check_sum(text: str) -> None:
    """It is what the schema says."""
    found = json.loads(text)
    assert set(found) == {"sum", "tags"}
    assert 0 <= found["sum"] <= 99
    assert 1 <= len(found["tags"]) <= 2
    assert set(found["tags"]) <= {"even", "odd"}


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1, "top_p": 0.9, "seed": 1}])
def test_whole_and_streamed(shared: Api, sampling: dict[str, Any]) -> None:
    """The same JSON, which ends by itself; and of several answers each is JSON."""
    with shared.client() as client:
        whole = client.post("/v1/chat/completions", json={**ASK, **sampling, "n": 2}).json()
        streamed = client.post("/v1/chat/completions", json={**ASK, **sampling, "stream": True})
    for choice in whole["choices"]:
        assert choice["finish_reason"] == "stop"
        check_sum(choice["message"]["content"])
    chunks = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]


def test_one_that_is_cut_says_so(shared: Api) -> None:
    """`length`, and what there is begins a text of the schema."""
    with shared.client() as client:
        said = client.post("/v1/chat/completions", json={**ASK, "max_tokens": 5}).json()
    [choice] = said["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    ("path", "body", "read"),
    [
        (
            "/v1/completions",
            {"prompt": "1", "response_format": FORMAT, "max_tokens": 80},
            lambda said: said["choices"][0]["text"],
        ),
        (
            "/v1/responses",
            {"input": "1", "text": {"format": {"type": "json_schema", "name": "sum", "schema": SCHEMA}}},
            lambda said: said["output"][0]["content"][0]["text"],
        ),
        (
            "/api/chat",
            {"messages": USER, "format": SCHEMA, "stream": False},
            lambda s: s["message"]["content"],
        ),
        ("/generate", {"prompt": "1", "response_format": FORMAT}, lambda said: said["text"]),
    ],
)
def test_in_each_dialect(shared: Api, path: str, body: dict[str, Any], read: Any) -> None:
    """By the field that it has there."""
    with shared.client() as client:
        said = client.post(path, json={"seed": 2, **body})
    assert said.status_code == 200, said.text
    check_sum(read(said.json()))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "wat"}}}, "wat"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "missing"),
        ({"type": "xml"}, "json_object"),
        (
            {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 70_000]}}},
            "at most",
        ),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_cannot_be_is_told(shared: Api, given: dict[str, Any], why: str, stream: bool) -> None:
    """400 with the reason, before the head of a stream."""
    with shared.client() as client:
        said = client.post("/v1/chat/completions", json={**ASK, "response_format": given, "stream": stream})
    assert said.status_code == 400
    assert why in said.json()["error"]["message"]
    assert said.json()["error"]["param"] == "response_format"
