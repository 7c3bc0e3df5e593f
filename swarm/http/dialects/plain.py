"""Endpoints of our own: `/generate`, `/infer`, `/tokenize`, `/detokenize`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from pydantic import Field

from protocol import limits as wire_limits
from swarm.http.answering import Begun, Ended, Happened, Said, Text
from swarm.http.asking import Ask, Conversation, Ids, checked_stop
from swarm.http.dialects.fields import (
    Fields,
    SamplingFields,
    cleaned,
    grammar_of,
    messages_of,
)
from swarm.http.dialects.openai import FINISH
from swarm.http.errors import ApiError, bad_request
from swarm.http.forms import SSE, data, error_fields
from swarm.http.outcome import Outcome, event_fields, how


class StrategyFields(SamplingFields):
    """How to decode: by a strategy of that name, as `swarm generate --strategy` takes it."""

    strategy: str | None = None
    max_seconds: float | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    response_format: dict[str, Any] | None = None

    def request(self) -> Any:
        """How to answer. Raises: ApiError, 400."""
        return self.decoded(
            checked_stop(self.stop),
            self.strategy,
            max_seconds=self.max_seconds,
            grammar=grammar_of(self.response_format, "response_format"),
        )


class GenerateFields(StrategyFields):
    """The body of `/generate`: one of `input_data`, `prompt` and `messages`."""

    input_data: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    max_new_tokens: int | None = Field(None, ge=1)

    def ask(self) -> Ask:
        """The same as any dialect asks it. Raises: ApiError, 400."""
        given = [each for each in (self.input_data, self.prompt, self.messages) if each is not None]
        if len(given) != 1:
            raise bad_request("give one of input_data, prompt and messages")
        [asked] = given
        prompt: str | Conversation = cleaned(asked) if isinstance(asked, str) else messages_of(asked)
        return Ask(prompt, self.request(), self.max_new_tokens)


class InferFields(StrategyFields):
    """The body of `/infer`; `max_length` is the most tokens of prompt and answer together, as in transformers."""

    refused: ClassVar = {"stream": (False,)}
    prompt: str
    max_length: int | None = Field(None, ge=1)

    def ask(self, prompt: Sequence[int]) -> Ask:
        """The same as any dialect asks it, of its prompt in tokens. Raises: ApiError, 400."""
        if self.max_length is None:
            return Ask(Ids(tuple(prompt)), self.request())
        left = self.max_length - len(prompt)
        if left < 1:
            raise bad_request(f"max_length: the prompt alone has {len(prompt)} tokens", "max_length")
        return Ask(Ids(tuple(prompt)), self.request(), left)


class ContentFields(Fields):
    """The body of `/tokenize`."""

    content: str


class TokensFields(Fields):
    """The body of `/detokenize`."""

    tokens: list[int] = Field(max_length=wire_limits.SESSION_TOKENS)

    def check(self, vocab_size: int) -> None:
        """Raises: ApiError, 400, for ids that the model has not."""
        if self.tokens and not 0 <= min(self.tokens) <= max(self.tokens) < vocab_size:
            raise bad_request(f"tokens: ids are from 0 to {vocab_size - 1}", "tokens")


class GenerateWriter:
    """The answer with all that there is to tell, or as it comes."""

    media_type = SSE

    def __init__(self, model: str) -> None:
        self._outcome = Outcome()
        self._model = model

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        """See `Writer`."""
        [ended] = outcome.ended
        return _told(self._model, outcome.begun_of(0), ended)

    def frames(self, said: Said) -> Iterable[str]:
        """See `Writer`."""
        self._outcome.note(said)
        match said:
            case Text():
                yield data({"text": said.text})
            case Happened():
                blocks = self._outcome.begun_of(said.index).route.blocks
                yield data({"event": event_fields(said.event, blocks)})
            case Ended():
                yield data({"done": True, **_told(self._model, self._outcome.begun_of(0), said)})

    def broken(self, error: ApiError) -> str:
        """See `Writer`."""
        return data(error_fields(error))


class InferWriter(GenerateWriter):
    """The text and nothing else."""

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        """See `Writer`."""
        [ended] = outcome.ended
        return {"output": ended.answer.text}


def _told(model: str, begun: Begun, ended: Ended) -> dict[str, Any]:
    answer = ended.answer
    others = [{"text": other.text, "score": other.score} for other in answer.alternatives]
    return {
        "model": model,
        "text": answer.text,
        "finish_reason": FINISH[answer.finish_reason],
        "prompt_tokens": begun.prompt_tokens,
        "new_tokens": len(answer.tokens),
        **how(begun, ended),
        **({"score": answer.score, "alternatives": others} if others else {}),
    }
