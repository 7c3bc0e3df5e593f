"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from swarm.http.answering import Called, Ended, Named
from swarm.http.asking import Ask, checked_count, checked_stop
from swarm.http.dialects.fields import grammar_of, messages_of
from swarm.http.dialects.openai import LEAST_LOGPROB, OpenAiFields, OpenAiWriter
from swarm.http.errors import bad_request, unsupported
from swarm.http.tools import Tools, chosen, functions_of
from swarm.text.stream import REPLACEMENT


class ChatFields(OpenAiFields):
    """The body of a request."""

    refused: ClassVar = {
        "audio": (),
        "modalities": (["text"],),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "prediction": (),
        "store": (False,),
        "web_search_options": (),
        "reasoning_effort": (),
        "verbosity": ("medium",),
    }
    messages: list[Any]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0)
    response_format: dict[str, Any] | None = None
    tools: list[Any] = []  # noqa: RUF012 - pydantic copies it
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True

    def ask(self) -> Ask:
        """The same as any dialect asks it. Raises: ApiError, 400."""
        if self.top_logprobs and not self.logprobs:
            raise bad_request("top_logprobs: logprobs must be true", "top_logprobs")
        tools = self._chosen_tools()
        grammar = grammar_of(self.response_format, "response_format")
        return Ask(
            messages_of(self.messages, tools=tools),
            self.decoded(checked_stop(self.stop), top_logprobs=self.top_logprobs or 0, grammar=grammar),
            self.max_completion_tokens or self.max_tokens,
            checked_count(self.n),
            self.logprobs,
        )

    def _chosen_tools(self) -> Tools | None:
        """What may be called. Raises: ApiError, 400."""
        if not self.tools:
            if self.tool_choice not in (None, "none", "auto"):
                raise bad_request("tool_choice: there are no tools", "tool_choice")
            return None
        tools = chosen(functions_of(self.tools), self.tool_choice)
        if tools is not None and self.response_format not in (None, {"type": "text"}):
            raise unsupported("response_format", "it does not go with tools; give one of them")
        return None if tools is None else replace(tools, parallel=self.parallel_tool_calls)


class ChatWriter(OpenAiWriter):
    """A chat completion."""

    kind = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self) -> dict[str, Any]:
        """See `OpenAiWriter`."""
        return {"delta": {"role": "assistant", "content": ""}}

    def piece(self, text: str) -> dict[str, Any]:
        """See `OpenAiWriter`."""
        return {"delta": {"content": text} if text else {}}

    def message(self, ended: Ended) -> dict[str, Any]:
        """See `OpenAiWriter`."""
        said: dict[str, Any] = {"role": "assistant", "content": ended.text, "refusal": None}
        if ended.calls:
            said |= {"content": ended.text or None, "tool_calls": [*map(call_fields, ended.calls)]}
        return {"message": said}

    def calling(self, called: Called) -> dict[str, Any]:
        """See `OpenAiWriter`; a call comes whole."""
        return {"delta": {"tool_calls": [{"index": called.number, **call_fields(called)}]}}

    def logprobs(self, tokens: Sequence[Named]) -> dict[str, Any]:
        """See `OpenAiWriter`."""
        return {"content": [_token(named) for named in tokens], "refusal": None}


def call_fields(called: Called) -> dict[str, Any]:
    """A call in OpenAI's words."""
    function = {"name": called.call.name, "arguments": called.call.arguments}
    return {"id": called.id, "type": "function", "function": function}


def _token(named: Named) -> dict[str, Any]:
    best = [_likely(text, logprob) for text, logprob in named.best]
    return {**_likely(named.text, named.logprob), "top_logprobs": best}


def _likely(text: str, logprob: float) -> dict[str, Any]:
    # A token may be a part of a character, which no text shows.
    whole = list(text.encode(errors="replace")) if REPLACEMENT not in text else None
    return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": whole}
