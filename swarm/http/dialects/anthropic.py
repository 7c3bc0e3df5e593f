"""`POST /v1/messages`, as Anthropic has it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Final

from pydantic import Field

from swarm.http.answering import Begun, Ended, Over, Said, Text
from swarm.http.asking import Ask, Conversation, checked_stop
from swarm.http.dialects.fields import Fields, SamplingFields, messages_of, text_of
from swarm.http.dialects.openai import FINISH, new_id
from swarm.http.errors import ApiError
from swarm.http.forms import SSE, anthropic_error, event
from swarm.http.outcome import Outcome, how

_REASONS: Final = {"eos": "end_turn", "stop": "stop_sequence"}


class MessageFields(SamplingFields):
    """The body of `/v1/messages`."""

    refused: ClassVar = {
        "container": (),
        "mcp_servers": ([],),
        "service_tier": ("auto", "standard_only"),
        "thinking": ({"type": "disabled"},),
        "tools": ([],),
        "tool_choice": ({"type": "auto"}, {"type": "none"}),
    }
    model: str | None = None
    messages: list[Any]
    system: str | list[Any] | None = None
    max_tokens: int = Field(ge=1)
    stop_sequences: list[str] | None = None
    stream: bool = False

    def ask(self) -> Ask:
        """The same as any dialect asks it. Raises: ApiError, 400."""
        stop = checked_stop(self.stop_sequences, "stop_sequences")
        said = _conversation(self.messages, self.system)
        return Ask(said, self.decoded(stop), self.max_tokens)


class CountFields(Fields):
    """The body of `/v1/messages/count_tokens`."""

    refused: ClassVar = {"tools": ([],)}
    model: str | None = None
    messages: list[Any]
    system: str | list[Any] | None = None

    def conversation(self) -> Conversation:
        """What is to be counted. Raises: ApiError, 400."""
        return _conversation(self.messages, self.system)


def _conversation(messages: list[Any], system: str | list[Any] | None) -> Conversation:
    first = [] if system is None else [{"role": "system", "content": text_of(system, "system")}]
    return messages_of([*first, *messages])


class MessageWriter:
    """A message, whole or as the events that lead to it."""

    media_type = SSE

    def __init__(self, model: str, fields: MessageFields) -> None:
        self._outcome = Outcome()
        self._stops = fields.stop_sequences or []
        self._head = {"id": new_id("msg"), "type": "message", "role": "assistant", "model": model}

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        """See `Writer`."""
        [ended] = outcome.ended
        return {
            **self._head,
            "content": [{"type": "text", "text": ended.answer.text}],
            **self._reason(ended),
            "usage": {**_read(outcome), "output_tokens": outcome.new_tokens},
            "swarm": how(outcome.begun_of(0), ended),
        }

    def frames(self, said: Said) -> Iterable[str]:
        """See `Writer`."""
        self._outcome.note(said)
        match said:
            case Begun():
                usage = {**_read(self._outcome), "output_tokens": 0}
                nothing: dict[str, Any] = {
                    "content": [],
                    "stop_reason": None,
                    "stop_sequence": None,
                    "usage": usage,
                }
                yield _event("message_start", message={**self._head, **nothing})
                block = {"type": "text", "text": ""}
                yield _event("content_block_start", index=0, content_block=block)
                yield _event("ping")
            case Text():
                yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": said.text})
            case Ended():
                yield _event("content_block_stop", index=0)
                usage = {"output_tokens": self._outcome.new_tokens}
                yield _event("message_delta", delta=self._reason(said), usage=usage)
            case Over():
                yield _event("message_stop")

    def broken(self, error: ApiError) -> str:
        """See `Writer`."""
        return event("error", anthropic_error(error))

    def _reason(self, ended: Ended) -> dict[str, str | None]:
        reason = ended.answer.finish_reason
        known = "max_tokens" if FINISH[reason] == "length" else _REASONS.get(reason, "end_turn")
        # Of several texts that end an answer it is not told which did.
        found = self._stops[0] if known == "stop_sequence" and len(self._stops) == 1 else None
        return {"stop_reason": known, "stop_sequence": found}


def _read(outcome: Outcome) -> dict[str, int]:
    """What was read of the prompt: anew, and from sessions that had it."""
    return {
        "input_tokens": outcome.prompt_tokens - outcome.held,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": outcome.held,
    }


def _event(name: str, **more: Any) -> str:
    return event(name, {"type": name, **more})
