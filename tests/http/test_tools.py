"""Tools in the model's own chat template: calls told from text, on the way there and back; whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from swarm.cli.demo_nodes import shipped_model
from tests.http.swarm import Api, real_api
from tests.support.tooled import tooled_model

pytestmark = pytest.mark.net

WEATHER = {
    "type": "function",
    "function": {
        "name": "sky",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Oslo", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "go",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    },
}
BROKEN = {"function": {"name": "f", "arguments": "["}}
USER = [{"role": "user", "content": "What is 12 + 30?"}]
ASK = {"messages": USER, "temperature": 0, "max_tokens": 120, "parallel_tool_calls": False}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The model that ships, with a template that knows tools."""
    with real_api(tooled_model(tmp_path_factory.mktemp("model"))) as found:
        yield found


def check_weather(call: dict[str, Any]) -> None:
    """It keeps to the schema."""
    assert call["function"]["name"] == "sky"
    arguments = json.loads(call["function"]["arguments"])
    assert arguments["city"] in ("Oslo", "Rome")
    assert 1 <= arguments["days"] <= 9


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "sky"}}])
def test_a_call_that_must_be_is_made(shared: Api, choice: object) -> None:
    """Whatever the model would say: with arguments of the schema, whole and as a delta of a stream."""
    asked = {**ASK, "tools": [WEATHER], "tool_choice": choice}
    with shared.client() as client:
        whole = client.post("/v1/chat/completions", json=asked)
        streamed = client.post("/v1/chat/completions", json={**asked, "stream": True})
    assert whole.status_code == 200, whole.text
    [choice_] = whole.json()["choices"]
    assert choice_["finish_reason"] == "tool_calls"
    assert choice_["message"]["content"] is None
    [call] = choice_["message"]["tool_calls"]
    check_weather(call)
    chunks = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    [[told]] = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    assert told["index"] == 0
    assert told["function"] == call["function"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_the_model_may_answer_in_words(shared: Api) -> None:
    """Where it need not call, its text is what it would have been with this prompt."""
    with shared.client() as client:
        asked = {**ASK, "tools": [CLOCK]}
        said = client.post("/v1/chat/completions", json=asked).json()["choices"][0]
        without = client.post("/v1/chat/completions", json={**asked, "tool_choice": "none"}).json()[
            "choices"
        ][0]
        plain = client.post("/v1/chat/completions", json=ASK).json()["choices"][0]
    assert said["message"].get("tool_calls") is None
    assert said["message"]["content"]
    assert without["message"]["content"] == plain["message"]["content"]


def test_calls_and_what_came_of_them_go_back(shared: Api) -> None:
    """As OpenAI's clients send them: text may be null, arguments are JSON as text."""
    function = {"name": "sky", "arguments": '{"city": "Oslo", "days": 18446744073709551617}'}
    history = [
        *USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    with shared.client() as client:
        said = client.post("/v1/chat/completions", json={**ASK, "messages": history})
        assert said.status_code == 200, said.text
        tokens = said.json()["usage"]["prompt_tokens"]
        assert tokens > client.post("/v1/chat/completions", json=ASK).json()["usage"]["prompt_tokens"] + 20


def test_in_anthropic_s_words(shared: Api) -> None:
    """A block that calls, whole and as events; and its result on the way back."""
    tool = {"name": "go", "input_schema": CLOCK["function"]["parameters"]}
    user = {"role": "user", "content": "1 + 2"}
    asked = {"messages": [user], "temperature": 0, "max_tokens": 100, "tools": [tool]}
    choice = {"type": "any", "disable_parallel_tool_use": True}
    with shared.client() as client:
        whole = client.post("/v1/messages", json={**asked, "tool_choice": choice}).json()
        streamed = client.post("/v1/messages", json={**asked, "tool_choice": choice, "stream": True})
        [block] = whole["content"]
        assert (block["type"], block["name"], block["input"]) == ("tool_use", "go", {})
        assert whole["stop_reason"] == "tool_use"
        events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: ")]
        [begun] = [event["content_block"] for event in events if event["type"] == "content_block_start"]
        assert (begun["type"], begun["name"]) == ("tool_use", "go")
        [delta] = [event["delta"] for event in events if event["type"] == "content_block_delta"]
        assert json.loads(delta["partial_json"]) == {}
        result = {"type": "tool_result", "tool_use_id": block["id"], "content": "noon"}
        back = [user, {"role": "assistant", "content": [block]}, {"role": "user", "content": [result]}]
        said = client.post("/v1/messages", json={**asked, "messages": back, "tool_choice": {"type": "none"}})
        assert said.json()["content"][0]["type"] == "text", said.text


def test_in_ollama_s_words(shared: Api) -> None:
    """Calls with arguments as objects go back as they came."""
    call = {"function": {"name": "go", "arguments": {}}}
    history = [*USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    history.append({"role": "tool", "content": "noon", "tool_name": "go"})
    options = {"temperature": 0, "num_predict": 5}
    with shared.client() as client:
        for body in ({"messages": history}, {"messages": USER, "tools": [CLOCK]}):
            said = client.post("/api/chat", json={**body, "options": options, "stream": False})
            assert said.json()["message"]["content"], said.text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "not a name"}}]}, "tools[0].function.name"),
        ({"tools": [CLOCK, CLOCK]}, "tools"),
        (
            {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "other"}}},
            "tool_choice",
        ),
        ({"tools": [CLOCK], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [CLOCK], "response_format": {"type": "json_object"}}, "response_format"),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "strict": True,
                            "parameters": {"not": {}, "type": "object"},
                        },
                    }
                ],
                "tool_choice": "required",
            },
            "tools",
        ),
        (
            {
                "messages": [
                    *USER,
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]},
                ]
            },
            "messages[1].tool_calls[0].function.arguments",
        ),
    ],
)
def test_what_cannot_be_is_named(shared: Api, body: dict[str, Any], param: str) -> None:
    """400, and the field that is to blame."""
    with shared.client() as client:
        said = client.post("/v1/chat/completions", json={**ASK, **body})
    assert said.status_code == 400, said.text
    assert said.json()["error"]["param"] == param


def test_openai_s_client_parses_calls_and_answers(shared: Api) -> None:
    """Its helpers for structured outputs: a class for the answer, and a tool with a schema of its own."""
    from pydantic import BaseModel

    class Sum(BaseModel):
        total: bool

    with OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0) as client:
        parsed = client.chat.completions.parse(
            model="default",
            messages=[{"role": "user", "content": "What is 12 + 30?"}],
            response_format=Sum,
            temperature=0,
        )
        found = parsed.choices[0].message.parsed
        assert found is not None
        assert found.total in (True, False)
        with client.chat.completions.stream(
            model="default",
            messages=[{"role": "user", "content": "What is 12 + 30?"}],
            tools=[WEATHER],  # type: ignore[list-item]
            tool_choice="required",
            temperature=0,
            max_tokens=120,
            parallel_tool_calls=False,
        ) as stream:
            [call] = stream.get_final_completion().choices[0].message.tool_calls or []
        check_weather({"function": {"name": call.function.name, "arguments": call.function.arguments}})


def test_a_model_without_tools_says_so() -> None:
    """The template that ships knows none: 400 that names them."""
    with real_api(shipped_model()) as found, found.client() as client:
        said = client.post("/v1/chat/completions", json={**ASK, "tools": [CLOCK]})
    assert said.status_code == 400
    assert said.json()["error"]["param"] == "tools"
