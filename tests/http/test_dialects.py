"""Each way to ask gives the answer of the unsplit model, whole and in pieces."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.http.swarm import Api, answer_of, api

PROMPT = [3, 4, 7, 9]
NEW = 6
USER = [{"role": "user", "content": "1"}]


@pytest.fixture(scope="module")
def shared() -> Iterator[Api]:
    """One swarm for all that harm nothing."""
    with api() as found:
        yield found


def post(shared: Api, path: str, **body: Any) -> httpx.Response:
    """A reply that is no error."""
    with shared.client() as client:
        said = client.post(path, json=body)
    assert said.status_code == 200, said.text
    return said


def events(said: httpx.Response) -> list[dict[str, Any]]:
    """What a stream of events holds."""
    lines = [line for line in said.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]


def chat_text(shared: Api) -> str:
    """The answer to USER."""
    said = post(shared, "/v1/chat/completions", messages=USER, temperature=0, max_tokens=NEW)
    text: str = said.json()["choices"][0]["message"]["content"]
    return text


def test_text_completions(shared: Api) -> None:
    """Of ids as of text; of several prompts each has its own answer, in order."""
    expected = [answer_of(shared, prompt, NEW) for prompt in (PROMPT, [5, 6])]
    body = {"prompt": [PROMPT, [5, 6]], "temperature": 0, "max_tokens": NEW}
    whole = post(shared, "/v1/completions", **body).json()
    assert [choice["text"] for choice in whole["choices"]] == expected
    assert whole["usage"]["prompt_tokens"] == 6
    said = events(post(shared, "/v1/completions", **body, stream=True))
    for index, text in enumerate(expected):
        pieces = [chunk["choices"][0] for chunk in said if chunk["choices"][0]["index"] == index]
        assert "".join(piece["text"] for piece in pieces) == text
        assert pieces[-1]["finish_reason"] in ("stop", "length")


def test_several_answers_to_one_prompt(shared: Api) -> None:
    """With the same seed each is drawn as it is alone; the prompt is computed once."""
    body = {"prompt": PROMPT, "temperature": 1, "max_tokens": NEW}
    texts = [
        choice["text"] for choice in post(shared, "/v1/completions", **body, seed=5, n=3).json()["choices"]
    ]
    alone = [
        post(shared, "/v1/completions", **body, seed=5 + index).json()["choices"][0]["text"]
        for index in range(3)
    ]
    assert texts == alone
    said = events(post(shared, "/v1/completions", **body, seed=5, n=3, stream=True))
    streamed = ["", "", ""]
    for chunk in said:
        streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert streamed == texts


def test_log_probabilities(shared: Api) -> None:
    """Of each token of the text and of the likeliest at its place; greedy takes the first of them."""
    asked = {"messages": USER, "temperature": 0, "max_tokens": NEW, "logprobs": True, "top_logprobs": 3}
    [choice] = post(shared, "/v1/chat/completions", **asked).json()["choices"]
    told = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in told) == choice["message"]["content"]
    assert all(token["logprob"] == token["top_logprobs"][0]["logprob"] for token in told)
    assert all(len(token["top_logprobs"]) == 3 for token in told)
    said = events(post(shared, "/v1/chat/completions", **asked, stream=True))
    streamed = [chunk["choices"][0]["logprobs"] for chunk in said]
    assert [token for each in streamed if each for token in each["content"]] == told
    old = post(shared, "/v1/completions", prompt=PROMPT, temperature=0, max_tokens=NEW, logprobs=2).json()
    logprobs = old["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == old["choices"][0]["text"]


def test_usage_is_told_where_it_is_asked_for(shared: Api) -> None:
    """A chunk of its own without choices, last."""
    asked = {"messages": USER, "max_tokens": 3, "stream": True}
    plain = events(post(shared, "/v1/chat/completions", **asked))
    assert all("usage" not in chunk for chunk in plain)
    said = events(post(shared, "/v1/chat/completions", **asked, stream_options={"include_usage": True}))
    assert said[-1]["choices"] == []
    assert said[-1]["usage"]["completion_tokens"] >= 1


def test_responses(shared: Api) -> None:
    """Events lead to the same response that is given whole."""
    expected = chat_text(shared)
    asked = {"input": "1", "temperature": 0, "max_output_tokens": NEW}
    whole = post(shared, "/v1/responses", **asked).json()
    assert whole["output"][0]["content"][0]["text"] == expected
    said = events(post(shared, "/v1/responses", **asked, stream=True))
    assert [event["sequence_number"] for event in said] == list(range(len(said)))
    assert [event["type"] for event in said][:2] == ["response.created", "response.in_progress"]
    deltas = [event["delta"] for event in said if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == expected
    last = said[-1]["response"]
    assert last["output"][0]["content"] == whole["output"][0]["content"]
    assert said[-1]["type"] == f"response.{whole['status']}"
    items = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "1"}]}]
    again = post(shared, "/v1/responses", **{**asked, "input": items}).json()
    assert again["output"][0]["content"] == whole["output"][0]["content"]


def test_anthropic(shared: Api) -> None:
    """A message, and the events that lead to it."""
    expected = chat_text(shared)
    asked = {"messages": USER, "temperature": 0, "max_tokens": NEW}
    whole = post(shared, "/v1/messages", **asked).json()
    assert whole["content"] == [{"type": "text", "text": expected}]
    said = events(post(shared, "/v1/messages", **asked, stream=True))
    kinds = [event["type"] for event in said]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    texts = [event["delta"]["text"] for event in said if event["type"] == "content_block_delta"]
    assert "".join(texts) == expected
    delta = next(event for event in said if event["type"] == "message_delta")
    assert delta["delta"]["stop_reason"] == whole["stop_reason"]
    counted = post(shared, "/v1/messages/count_tokens", messages=USER).json()
    assert (
        counted["input_tokens"] == whole["usage"]["input_tokens"] + whole["usage"]["cache_read_input_tokens"]
    )


def test_ollama(shared: Api) -> None:
    """Lines of a stream, which is what is given unless it is asked otherwise."""
    expected = chat_text(shared)
    options = {"temperature": 0, "num_predict": NEW, "num_ctx": 4096}
    for path, asked, read in (
        ("/api/chat", {"messages": USER}, lambda each: each["message"]["content"]),
        ("/api/generate", {"prompt": "1"}, lambda each: each["response"]),
    ):
        take: Callable[[dict[str, Any]], str] = read
        said = [json.loads(line) for line in post(shared, path, **asked, options=options).text.splitlines()]
        assert "".join(map(take, said)) == expected
        assert [each["done"] for each in said] == [False] * (len(said) - 1) + [True]
        assert said[-1]["eval_count"] > 0
        whole = post(shared, path, **asked, options=options, stream=False).json()
        assert (take(whole), whole["done"]) == (expected, True)
    assert post(shared, "/api/generate", model="fake").json()["done_reason"] == "load"
    with shared.client() as client:
        assert client.get("/api/tags").json()["models"][0]["name"] == "fake"
        assert client.get("/api/version").json()["version"]
    assert post(shared, "/api/show", model="fake:latest").json()["model_info"]["swarm.context_length"] == 1024


def test_our_own(shared: Api) -> None:
    """`/generate` tells how the answer came about; `/infer` gives the text; tokens are made and read."""
    ids = post(shared, "/tokenize", content="123").json()["tokens"]
    assert post(shared, "/detokenize", tokens=ids).json()["content"] == "123"
    expected = answer_of(shared, ids, NEW)
    whole = post(shared, "/generate", input_data="123", temperature=0, max_new_tokens=NEW).json()
    assert whole["text"] == expected
    assert [hop["layers"] for hop in whole["route"]] == ["embedding + layers 0:3", "layers 3:6 + head"]
    assert whole["prompt_tokens"] == len(ids)
    said = events(post(shared, "/generate", prompt="123", temperature=0, max_new_tokens=NEW, stream=True))
    assert "".join(each.get("text", "") for each in said[:-1]) == expected
    assert said[-1]["done"]
    inferred = post(shared, "/infer", prompt="123", temperature=0, max_length=NEW + len(ids)).json()
    assert inferred == {"output": expected}
    beams = post(
        shared, "/generate", prompt="123", strategy="beam_search:beams=2,returned=2", max_new_tokens=4
    )
    assert len(beams.json()["alternatives"]) == 1
    greedy = post(shared, "/infer", prompt="123", strategy="greedy", max_length=NEW + len(ids)).json()
    assert greedy == inferred


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": USER, "tools": [{"type": "function"}]}, "tools[0].function"),
        (
            "/v1/chat/completions",
            {"messages": USER, "response_format": {"type": "xml"}},
            "response_format",
        ),
        ("/v1/chat/completions", {"messages": USER, "temperature": "hot"}, "temperature"),
        ("/v1/chat/completions", {"messages": USER, "top_p": 2}, "top_p"),
        ("/v1/chat/completions", {"messages": USER, "top_logprobs": 2}, "top_logprobs"),
        ("/v1/chat/completions", {"messages": USER, "logprobs": True, "top_logprobs": 99}, "top_logprobs"),
        ("/v1/chat/completions", {"messages": USER, "logit_bias": {"999": 1}}, None),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ("/v1/completions", {"prompt": "1", "echo": True}, "echo"),
        ("/v1/completions", {"prompt": [], "n": 1}, "prompt"),
        ("/v1/completions", {"prompt": [99]}, "prompt"),
        ("/v1/completions", {"prompt": "1", "n": 9}, "n"),
        ("/v1/responses", {"input": "1", "previous_response_id": "resp_1"}, "previous_response_id"),
        ("/v1/responses", {"input": "1", "store": True}, "store"),
        ("/v1/responses", {"input": [{"type": "function_call"}]}, "input[0]"),
        ("/generate", {"prompt": "1", "input_data": "1"}, None),
        ("/generate", {"prompt": "1", "strategy": "oracle"}, "strategy"),
        ("/infer", {"prompt": "123", "max_length": 1}, "max_length"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
    ],
)
def test_what_cannot_be_honoured_is_named(
    shared: Api, path: str, body: dict[str, Any], param: str | None
) -> None:
    """400 in one line; never ignored in silence."""
    with shared.client() as client:
        said = client.post(path, json=body)
    error = said.json()["error"]
    assert said.status_code == 400, said.text
    assert "\n" not in error["message"]
    if param is not None:
        assert error["param"] == param


def test_null_is_absent_and_unknown_fields_are_ignored(shared: Api) -> None:
    """As clients send them."""
    asked = {
        "messages": USER,
        "stop": None,
        "tools": None,
        "temperature": 0,
        "user": "me",
        "no_such_field": 1,
    }
    post(shared, "/v1/chat/completions", **asked, max_tokens=NEW, max_completion_tokens=None, n=None)


def test_models(shared: Api) -> None:
    """One is served, under its name or none; another is not there, and what there is is said."""
    with shared.client() as client:
        [model] = client.get("/v1/models").json()["data"]
        assert client.get("/v1/models/fake").json() == model
        missing = client.get("/v1/models/gpt-4")
        asked = client.post("/v1/chat/completions", json={"model": "gpt-4", "messages": USER})
    for said in (missing, asked):
        assert said.status_code == 404
        assert said.json()["error"]["code"] == "model_not_found"
        assert "'fake'" in said.json()["error"]["message"]


def test_metrics_and_description(shared: Api) -> None:
    """Counts, with no peer in any label; and OpenAPI."""
    with shared.client() as client:
        text = client.get("/metrics").text
        described = client.get("/openapi.json").json()
        welcome = client.get("/")
    assert "swarm_answers_total" in text
    assert 'swarm_http_requests_total{path="/v1/chat/completions",status="200"}' in text
    assert "12D3" not in text
    assert "/v1/chat/completions" in described["paths"]
    assert "script-src 'self'" in welcome.headers["content-security-policy"]
