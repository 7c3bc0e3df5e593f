"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from swarm.http.answering import Named
from swarm.http.asking import Ask, checked_count, checked_stop
from swarm.http.dialects.fields import messages_of
from swarm.http.dialects.openai import LEAST_LOGPROB, OpenAiFields, OpenAiWriter
from swarm.http.errors import bad_request
from swarm.text.stream import REPLACEMENT


class ChatFields(OpenAiFields):
    """The body of a request."""

    refused: ClassVar = {
        "audio": (),
        "modalities": (["text"],),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "prediction": (),
        "store": (False,),
        "web_search_options": (),
        "reasoning_effort": (),
        "verbosity": ("medium",),
        "response_format": ({"type": "text"},),
    }
    messages: list[Any]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0)

    def ask(self) -> Ask:
        """The same as any dialect asks it. Raises: ApiError, 400."""
        if self.top_logprobs and not self.logprobs:
            raise bad_request("top_logprobs: logprobs must be true", "top_logprobs")
        return Ask(
            messages_of(self.messages),
            self.decoded(checked_stop(self.stop), top_logprobs=self.top_logprobs or 0),
            self.max_completion_tokens or self.max_tokens,
            checked_count(self.n),
            self.logprobs,
        )


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

    def message(self, text: str) -> dict[str, Any]:
        """See `OpenAiWriter`."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def logprobs(self, tokens: Sequence[Named]) -> dict[str, Any]:
        """See `OpenAiWriter`."""
        return {"content": [_token(named) for named in tokens], "refusal": None}


def _token(named: Named) -> dict[str, Any]:
    best = [_likely(text, logprob) for text, logprob in named.best]
    return {**_likely(named.text, named.logprob), "top_logprobs": best}


def _likely(text: str, logprob: float) -> dict[str, Any]:
    # A token may be a part of a character, which no text shows.
    whole = list(text.encode(errors="replace")) if REPLACEMENT not in text else None
    return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": whole}
