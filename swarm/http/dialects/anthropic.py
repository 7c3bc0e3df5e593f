"""`POST /v1/messages`, as Anthropic has it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar, Final

from pydantic import Field

from swarm.http.answering import Begun, Called, Ended, Over, Said, Text
from swarm.http.asking import Ask, Conversation, checked_stop
from swarm.http.dialects.fields import Fields, SamplingFields, messages_of, text_of
from swarm.http.dialects.openai import FINISH, finish_of, new_id
from swarm.http.errors import ApiError, unsupported
from swarm.http.forms import SSE, anthropic_error, event
from swarm.http.outcome import Outcome, how
from swarm.http.tools import Tools, checked, tool_of

_REASONS: Final = {"eos": "end_turn", "stop": "stop_sequence"}


class MessageFields(SamplingFields):
    """The body of `/v1/messages`."""

    refused: ClassVar = {
        "container": (),
        "mcp_servers": ([],),
        "service_tier": ("auto", "standard_only"),
        "thinking": ({"type": "disabled"},),
    }
    model: str | None = None
    messages: list[Any]
    system: str | list[Any] | None = None
    max_tokens: int = Field(ge=1)
    stop_sequences: list[str] | None = None
    stream: bool = False
    tools: list[Any] = []  # noqa: RUF012 - pydantic copies it
    tool_choice: dict[str, Any] | None = None

    def ask(self) -> Ask:
        """The same as any dialect asks it. Raises: ApiError, 400."""
        stop = checked_stop(self.stop_sequences, "stop_sequences")
        said = _conversation(self.messages, self.system, _tools(self.tools, self.tool_choice))
        return Ask(said, self.decoded(stop), self.max_tokens)


class CountFields(Fields):
    """The body of `/v1/messages/count_tokens`."""

    model: str | None = None
    messages: list[Any]
    system: str | list[Any] | None = None
    tools: list[Any] = []  # noqa: RUF012 - pydantic copies it
    tool_choice: dict[str, Any] | None = None

    def conversation(self) -> Conversation:
        """What is to be counted. Raises: ApiError, 400."""
        return _conversation(self.messages, self.system, _tools(self.tools, self.tool_choice))


def _conversation(messages: list[Any], system: str | list[Any] | None, tools: Tools | None) -> Conversation:
    first = [] if system is None else [{"role": "system", "content": text_of(system, "system")}]
    said = [each for index, message in enumerate(messages) for each in _spoken(message, f"messages[{index}]")]
    return messages_of([*first, *said], tools=tools)


def _spoken(message: Any, param: str) -> list[Any]:
    """A message in the words that chat templates have: results of tools are messages of their own."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        return [message]
    calls = [
        {"id": block.get("id"), "function": {"name": block.get("name"), "arguments": block.get("input")}}
        for block in content
        if block.get("type") == "tool_use"
    ]
    results = [
        {
            "role": "tool",
            "tool_call_id": block.get("tool_use_id"),
            "content": text_of(block.get("content") or "", f"{param}.content"),
        }
        for block in content
        if block.get("type") == "tool_result"
    ]
    rest = [block for block in content if block.get("type") not in ("tool_use", "tool_result")]
    if calls:
        return [{**message, "content": rest, "tool_calls": calls}]
    return [*results, {**message, "content": rest}] if rest or not results else results


def _tools(given: list[Any], choice: dict[str, Any] | None) -> Tools | None:
    """What may be called. Raises: ApiError, 400."""
    if not given:
        return None
    found = []
    for index, each in enumerate(given):
        if not isinstance(each, dict) or each.get("type", "custom") not in (None, "custom"):
            raise unsupported(f"tools[{index}]", "tools are functions with a name and an input_schema")
        found.append(tool_of({**each, "parameters": each.get("input_schema")}, f"tools[{index}]"))
    tools = checked(found)
    match choice:
        case None | {"type": "auto"}:
            pass
        case {"type": "none"}:
            return None
        case {"type": "any"}:
            tools = replace(tools, must=True)
        case {"type": "tool", "name": str(name)}:
            tools = tools.only(name)
        case _:
            raise unsupported("tool_choice", "its type is auto, any, none, or tool with a name")
    return replace(tools, parallel=not (choice or {}).get("disable_parallel_tool_use", False))


class MessageWriter:
    """A message, whole or as the events that lead to it."""

    media_type = SSE

    def __init__(self, model: str, fields: MessageFields) -> None:
        self._outcome = Outcome()
        self._stops = fields.stop_sequences or []
        self._blocks = 0  # that are whole
        self._open = False  # whether one of text is not
        self._head = {"id": new_id("msg"), "type": "message", "role": "assistant", "model": model}

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        """See `Writer`."""
        [ended] = outcome.ended
        text = [{"type": "text", "text": ended.text}] if ended.text or not ended.calls else []
        return {
            **self._head,
            "content": [*text, *map(_call, ended.calls)],
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
                yield _event("ping")
            case Text():
                yield from self._open_text()
                delta = {"type": "text_delta", "text": said.text}
                yield _event("content_block_delta", index=self._blocks, delta=delta)
            case Called():
                yield from self._close_text()
                begun = {**_call(said), "input": {}}
                yield _event("content_block_start", index=self._blocks, content_block=begun)
                delta = {"type": "input_json_delta", "partial_json": said.call.arguments}
                yield _event("content_block_delta", index=self._blocks, delta=delta)
                yield _event("content_block_stop", index=self._blocks)
                self._blocks += 1
            case Ended():
                if not self._blocks:  # a message has some content
                    yield from self._open_text()
                yield from self._close_text()
                usage = {"output_tokens": self._outcome.new_tokens}
                yield _event("message_delta", delta=self._reason(said), usage=usage)
            case Over():
                yield _event("message_stop")

    def broken(self, error: ApiError) -> str:
        """See `Writer`."""
        return event("error", anthropic_error(error))

    def _open_text(self) -> Iterable[str]:
        if not self._open:
            yield _event(
                "content_block_start", index=self._blocks, content_block={"type": "text", "text": ""}
            )
        self._open = True

    def _close_text(self) -> Iterable[str]:
        if self._open:
            yield _event("content_block_stop", index=self._blocks)
            self._blocks += 1
        self._open = False

    def _reason(self, ended: Ended) -> dict[str, str | None]:
        reason = ended.answer.finish_reason
        if finish_of(ended) == "tool_calls":
            return {"stop_reason": "tool_use", "stop_sequence": None}
        known = "max_tokens" if FINISH[reason] == "length" else _REASONS.get(reason, "end_turn")
        # Of several texts that end an answer it is not told which did.
        found = self._stops[0] if known == "stop_sequence" and len(self._stops) == 1 else None
        return {"stop_reason": known, "stop_sequence": found}


def _call(called: Called) -> dict[str, Any]:
    """A call in Anthropic's words."""
    arguments = json.loads(called.call.arguments)
    return {"type": "tool_use", "id": called.id, "name": called.call.name, "input": arguments}


def _read(outcome: Outcome) -> dict[str, int]:
    """What was read of the prompt: anew, and from sessions that had it."""
    return {
        "input_tokens": outcome.prompt_tokens - outcome.held,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": outcome.held,
    }


def _event(name: str, **more: Any) -> str:
    return event(name, {"type": name, **more})
