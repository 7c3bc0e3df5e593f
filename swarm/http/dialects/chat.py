"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from swarm.http.asking import Ask, checked_count, checked_stop
from swarm.http.dialects.fields import messages_of
from swarm.http.dialects.openai import OpenAiFields, OpenAiWriter


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
        "logprobs": (False,),
        "top_logprobs": (0,),
        "response_format": ({"type": "text"},),
        "logit_bias": ({},),
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "min_p": (0,),
    }
    messages: list[Any]
    max_completion_tokens: int | None = Field(None, ge=1)

    def ask(self) -> Ask:
        """The same as any dialect asks it. Raises: ApiError, 400."""
        return Ask(
            messages_of(self.messages),
            self.sampling(),
            self.max_completion_tokens or self.max_tokens,
            checked_stop(self.stop),
            checked_count(self.n),
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
