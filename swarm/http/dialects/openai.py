"""What OpenAI's endpoints have in common."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final

from pydantic import Field

from swarm.http.answering import Begun, Called, Ended, Happened, Named, Over, Said, Text
from swarm.http.dialects.fields import Fields, SamplingFields
from swarm.http.errors import ApiError
from swarm.http.forms import DONE, SSE, data, error_fields
from swarm.http.outcome import Outcome, event_fields, how, route_fields, timings

FINISH: Final = {"eos": "stop", "stop": "stop", "until": "stop", "length": "length", "time": "length"}
# What OpenAI says of tokens that are as good as impossible; JSON has no infinity.
LEAST_LOGPROB: Final = -9999.0


class StreamOptions(Fields):
    """What a stream is to tell beside the text."""

    include_usage: bool = False


class OpenAiFields(SamplingFields):
    """Fields of chat and text completions alike."""

    model: str | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = Field(None, ge=1)


def finish_of(ended: Ended) -> str:
    """Why an answer ended, in OpenAI's words."""
    reason = FINISH[ended.answer.finish_reason]
    return "tool_calls" if ended.calls and reason == "stop" else reason


def new_id(kind: str) -> str:
    """An id that nobody else has."""
    return f"{kind}-{secrets.token_hex(12)}"


def now() -> int:
    """Seconds since 1970, as OpenAI says when something was made."""
    return int(time.time())


def usage(outcome: Outcome) -> dict[str, Any]:
    """Tokens, as far as the answers are whole."""
    return {
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.new_tokens,
        "total_tokens": outcome.prompt_tokens + outcome.new_tokens,
        "prompt_tokens_details": {"cached_tokens": outcome.held},
    }


class OpenAiWriter:
    """A completion, whole or in chunks. What a choice is called and holds is its children's."""

    media_type = SSE
    kind: ClassVar[str]  # of ids
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, model: str, fields: OpenAiFields) -> None:
        self._outcome = Outcome()
        self._head = {"id": new_id(self.kind), "created": now(), "model": model}
        self._include_usage = fields.stream_options.include_usage
        self._events = fields.swarm.events

    def opening(self) -> dict[str, Any]:
        """What a choice holds before its first text."""
        raise NotImplementedError

    def piece(self, text: str) -> dict[str, Any]:
        """What it holds of a text; of an empty one at the end."""
        raise NotImplementedError

    def message(self, ended: Ended) -> dict[str, Any]:
        """What it holds where it is whole."""
        raise NotImplementedError

    def calling(self, called: Called) -> dict[str, Any]:
        """What it holds of a call of a tool."""
        raise NotImplementedError

    def logprobs(self, tokens: Sequence[Named]) -> dict[str, Any]:
        """What it tells of its tokens."""
        raise NotImplementedError

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        """See `Writer`."""
        first = outcome.ended[0]
        return {
            **self._head,
            "object": self.whole_object,
            "choices": [
                self._whole_choice(ended, outcome.tokens.get(ended.index)) for ended in outcome.ended
            ],
            "usage": usage(outcome),
            "timings": timings(outcome.begun_of(0), first.answer),
            "swarm": how(outcome.begun_of(0), first),
        }

    def frames(self, said: Said) -> Iterable[str]:
        """See `Writer`."""
        self._outcome.note(said)
        match said:
            case Begun():
                route = self._if_asked({"route": route_fields(said.route)})
                for index in range(said.index, said.index + said.count):
                    yield self._chunk(index, self.opening(), more=route)
            case Text():
                logprobs = self.logprobs(said.tokens) if said.tokens else None
                yield self._chunk(said.index, {**self.piece(said.text), "logprobs": logprobs})
            case Called():
                yield self._chunk(said.index, self.calling(said))
            case Happened():
                if self._events:
                    blocks = self._outcome.begun_of(said.index).route.blocks
                    told = {"event": event_fields(said.event, blocks), "route": route_fields(said.route)}
                    event = self._if_asked(told)
                    yield self._chunk(said.index, self.piece(""), more=event)
            case Ended():
                begun = self._outcome.begun_of(said.index)
                more = {"timings": timings(begun, said.answer), **self._if_asked(how(begun, said))}
                yield self._chunk(said.index, self.piece(""), finish_of(said), more)
            case Over():
                if self._include_usage:
                    yield self._data({"choices": [], "usage": usage(self._outcome)})
                yield DONE

    def broken(self, error: ApiError) -> str:
        """See `Writer`."""
        return data(error_fields(error))

    def _whole_choice(self, ended: Ended, tokens: Sequence[Named] | None) -> dict[str, Any]:
        held = {**self.message(ended), "logprobs": self.logprobs(tokens) if tokens else None}
        return _choice(ended.index, held, finish_of(ended))

    def _if_asked(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {"swarm": fields} if self._events else {}

    def _chunk(
        self,
        index: int,
        held: dict[str, Any],
        finish: str | None = None,
        more: dict[str, Any] | None = None,
    ) -> str:
        return self._data({"choices": [_choice(index, held, finish)], **(more or {})})

    def _data(self, fields: dict[str, Any]) -> str:
        return data({**self._head, "object": self.chunk_object, **fields})


def _choice(index: int, held: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": index, "logprobs": None, **held, "finish_reason": finish}
