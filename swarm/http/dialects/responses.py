"""`POST /v1/responses`, without state: nothing of a response is kept, and nothing is taken up from one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import Field

from swarm.http.answering import Begun, Ended, Over, Said, Text
from swarm.http.asking import Ask
from swarm.http.dialects.fields import Fields, SamplingFields, grammar_of, messages_of
from swarm.http.dialects.openai import FINISH, new_id, now
from swarm.http.errors import ApiError, unsupported
from swarm.http.forms import SSE, event
from swarm.http.outcome import Outcome, how


class TextFields(Fields):
    """The form of the text."""

    refused: ClassVar = {"verbosity": ("medium",)}
    format: dict[str, Any] | None = None


class ResponseFields(SamplingFields):
    """The body of a request."""

    refused: ClassVar = {
        "background": (False,),
        "conversation": (),
        "include": ([],),
        "max_tool_calls": (),
        "previous_response_id": (),
        "prompt": (),
        "reasoning": ({},),
        "store": (False,),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    }
    model: str | None = None
    input: str | list[Any]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    stream: bool = False
    text: TextFields = TextFields()

    def ask(self) -> Ask:
        """The same as any dialect asks it. Raises: ApiError, 400."""
        said = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        for index, item in enumerate(said):
            kind = item.get("type", "message") if isinstance(item, dict) else "message"
            if kind != "message":
                raise unsupported(f"input[{index}]", "only messages are taken")
        if self.instructions is not None:
            said = [{"role": "system", "content": self.instructions}, *said]
        request = self.decoded(grammar=grammar_of(self.text.format, "text.format"))
        return Ask(messages_of(said, "input"), request, self.max_output_tokens, grammar_field="text.format")


class ResponseWriter:
    """A response, whole or as the events that lead to it."""

    media_type = SSE

    def __init__(self, model: str, fields: ResponseFields) -> None:
        self._outcome = Outcome()
        self._fields = fields
        self._message = new_id("msg")
        self._head = {"id": new_id("resp"), "object": "response", "created_at": now(), "model": model}
        self._number = 0

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        """See `Writer`."""
        [ended] = outcome.ended
        cut = FINISH[ended.answer.finish_reason] == "length"
        used = {
            "input_tokens": outcome.prompt_tokens,
            "input_tokens_details": {"cached_tokens": outcome.held},
            "output_tokens": outcome.new_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": outcome.prompt_tokens + outcome.new_tokens,
        }
        return {
            **self._frame("incomplete" if cut else "completed"),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self._item(ended.answer.text, "incomplete" if cut else "completed")],
            "usage": used,
            "swarm": how(outcome.begun_of(0), ended),
        }

    def frames(self, said: Said) -> Iterable[str]:
        """See `Writer`."""
        self._outcome.note(said)
        match said:
            case Begun():
                for name in ("created", "in_progress"):
                    yield self._event(f"response.{name}", response=self._frame("in_progress"))
                item = {**self._item("", "in_progress"), "content": []}
                yield self._event("response.output_item.added", output_index=0, item=item)
                yield self._of_part("content_part.added", part=_part(""))
            case Text():
                yield self._of_part("output_text.delta", delta=said.text, logprobs=[])
            case Ended():
                text = said.answer.text
                whole = self.whole(self._outcome)
                yield self._of_part("output_text.done", text=text, logprobs=[])
                yield self._of_part("content_part.done", part=_part(text))
                [item] = whole["output"]
                yield self._event("response.output_item.done", output_index=0, item=item)
                yield self._event(f"response.{whole['status']}", response=whole)
            case Over():
                return

    def broken(self, error: ApiError) -> str:
        """See `Writer`."""
        fault = {"code": error.code or error.type, "message": error.message}
        frame = {**self._frame("failed"), "error": fault}
        said = self._event("error", **fault, param=error.param)
        return said + self._event("response.failed", response=frame)

    def _of_part(self, name: str, **more: Any) -> str:
        place = {"item_id": self._message, "output_index": 0, "content_index": 0}
        return self._event(f"response.{name}", **place, **more)

    def _event(self, name: str, **more: Any) -> str:
        self._number += 1
        return event(name, {"type": name, "sequence_number": self._number - 1, **more})

    def _item(self, text: str, status: str) -> dict[str, Any]:
        return {
            "id": self._message,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [_part(text)],
        }

    def _frame(self, status: str) -> dict[str, Any]:
        asked = self._fields
        held = asked.sampling()
        return {
            **self._head,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": {},
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": held.temperature if asked.temperature is None else asked.temperature,
            "text": {"format": asked.text.format or {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": held.top_p if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "usage": None,
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
