"""OpenAI's own client, unmodified, against a swarm; others are tried by scripts/clients."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from swarm.http.settings import Settings
from tests.http.swarm import api

KEY = "0123456789abcdef0123"
USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": "1"}]
NEW = 6


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    """A client with the key of a server that wants one."""
    with (
        api(settings=Settings(port=0, keys=(KEY,))) as found,
        OpenAI(base_url=f"{found.url}/v1", api_key=KEY, max_retries=0) as made,
    ):
        yield made


def test_chats(client: OpenAI) -> None:
    """Whole, as chunks, and by the helper for streams."""
    whole = client.chat.completions.create(model="fake", messages=USER, temperature=0, max_tokens=NEW)
    text = whole.choices[0].message.content
    assert text
    chunks = client.chat.completions.create(
        model="fake",
        messages=USER,
        temperature=0,
        max_completion_tokens=NEW,
        stream=True,
        stream_options={"include_usage": True},
    )
    read = list(chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in read if chunk.choices) == text
    assert read[-1].usage == whole.usage
    # The helper takes an answer that was cut for no answer: this one ends by itself, before its last character.
    with client.chat.completions.stream(
        model="fake", messages=USER, temperature=0, max_tokens=NEW, stop=[text[-1]]
    ) as stream:
        assert stream.get_final_completion().choices[0].message.content == text[: text.index(text[-1])]


def test_responses(client: OpenAI) -> None:
    """Whole, and by the helper that follows the events."""
    whole = client.responses.create(model="fake", input="1", temperature=0, max_output_tokens=NEW)
    assert whole.output_text
    with client.responses.stream(model="fake", input="1", temperature=0, max_output_tokens=NEW) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created"
    assert "response.output_text.delta" in kinds


def test_errors(client: OpenAI) -> None:
    """Each is the class that its status stands for."""
    with pytest.raises(openai.NotFoundError, match="'fake'"):
        client.chat.completions.create(model="gpt-4", messages=USER)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="fake", messages=USER, reasoning_effort="low")
    assert refused.value.param == "reasoning_effort"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="another").models.list()
