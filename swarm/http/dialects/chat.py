"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import Field

from swarm.http.answering import Begun, Ended, Happened, Said, Text
from swarm.http.asking import Ask, checked_count, checked_stop
from swarm.http.dialects.fields import messages_of
from swarm.http.dialects.openai import FINISH, OpenAiFields, new_id, now, usage
from swarm.http.errors import ApiError
from swarm.http.forms import DONE, SSE, data, error_fields
from swarm.http.outcome import Outcome, event_fields, how, route_fields, timings


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


class ChatWriter:
    """A chat completion, whole or in chunks."""

    media_type = SSE

    def __init__(self, model: str, fields: ChatFields) -> None:
        self._outcome = Outcome()
        self._head = {"id": new_id("chatcmpl"), "created": now(), "model": model}
        self._include_usage = fields.stream_options.include_usage
        self._events = fields.swarm.events

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        """See `Writer`."""
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(ended) for ended in outcome.ended],
            "usage": usage(outcome),
            "timings": timings(outcome.begun[0], outcome.ended[0].answer),
            "swarm": how(outcome.begun[0], outcome.ended[0]),
        }

    def frames(self, said: Said) -> Iterable[str]:
        """See `Writer`."""
        self._outcome.note(said)
        match said:
            case Begun():
                first: dict[str, Any] = {"swarm": {"route": route_fields(said.route)}} if self._events else {}
                for index in range(said.index, said.index + said.count):
                    yield self._chunk(index, {"role": "assistant", "content": ""}, **first)
            case Text():
                yield self._chunk(said.index, {"content": said.text})
            case Happened():
                if self._events:
                    blocks = self._outcome.begun_of(said.index).route.blocks
                    yield self._chunk(said.index, {}, swarm={"event": event_fields(said.event, blocks)})
            case Ended():
                yield from self._last(said)

    def broken(self, error: ApiError) -> str:
        """See `Writer`."""
        return data(error_fields(error))

    def _choice(self, ended: Ended) -> dict[str, Any]:
        return {
            "index": ended.index,
            "message": {"role": "assistant", "content": ended.answer.text, "refusal": None},
            "logprobs": None,
            "finish_reason": FINISH[ended.answer.finish_reason],
        }

    def _last(self, ended: Ended) -> Iterable[str]:
        begun = self._outcome.begun_of(ended.index)
        more: dict[str, Any] = {"timings": timings(begun, ended.answer)}
        if self._events:
            more["swarm"] = how(begun, ended)
        yield self._chunk(ended.index, {}, FINISH[ended.answer.finish_reason], **more)
        if self._outcome.complete:
            if self._include_usage:
                yield data({**self._frame, "choices": [], "usage": usage(self._outcome)})
            yield DONE

    def _chunk(self, index: int, delta: dict[str, str], finish: str | None = None, **more: Any) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return data({**self._frame, "choices": [choice], **more})

    @property
    def _frame(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk"}
