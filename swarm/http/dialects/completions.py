"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, ClassVar, Final

from pydantic import Field

from swarm.http import limits
from swarm.http.answering import Ended, Named
from swarm.http.asking import Ask, Ids, checked_count, checked_stop
from swarm.http.dialects.fields import cleaned, grammar_of
from swarm.http.dialects.openai import LEAST_LOGPROB, OpenAiFields, OpenAiWriter
from swarm.http.errors import bad_request

# As OpenAI has it, where a request does not say.
USUAL_TOKENS: Final = 16


class CompletionFields(OpenAiFields):
    """The body of a request."""

    refused: ClassVar = {
        "echo": (False,),
        "suffix": ("",),
        "best_of": (1,),
    }
    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: int | None = Field(None, ge=0)
    response_format: dict[str, Any] | None = None

    def asks(self) -> list[Ask]:
        """The same as any dialect asks it, for each prompt. Raises: ApiError, 400."""
        request = self.decoded(
            checked_stop(self.stop),
            top_logprobs=self.logprobs or 0,
            grammar=grammar_of(self.response_format, "response_format"),
        )
        most, count, told = self.max_tokens or USUAL_TOKENS, checked_count(self.n), self.logprobs is not None
        return [Ask(prompt, request, most, count, told) for prompt in prompts_of(self.prompt)]


def prompts_of(given: str | Sequence[Any]) -> list[str | Ids]:
    """One prompt or several, each a text or ids. Raises: ApiError, 400."""
    if isinstance(given, str):
        return [cleaned(given)]
    if not given:
        raise bad_request("prompt: it is empty", "prompt")
    if isinstance(given[0], int):
        return [Ids(tuple(map(int, given)))]
    if len(given) > limits.PROMPTS:
        raise bad_request(f"prompt: at most {limits.PROMPTS} at once", "prompt")
    return [cleaned(each) if isinstance(each, str) else Ids(tuple(each)) for each in given]


class CompletionWriter(OpenAiWriter):
    """A text completion."""

    kind = "cmpl"
    whole_object = chunk_object = "text_completion"

    def opening(self) -> dict[str, Any]:
        """See `OpenAiWriter`."""
        return {"text": ""}

    def piece(self, text: str) -> dict[str, Any]:
        """See `OpenAiWriter`."""
        return {"text": text}

    def message(self, ended: Ended) -> dict[str, Any]:
        """See `OpenAiWriter`."""
        return {"text": ended.text}

    def logprobs(self, tokens: Sequence[Named]) -> dict[str, Any]:
        """See `OpenAiWriter`."""
        offsets = [0, *accumulate(len(named.text) for named in tokens)]
        return {
            "tokens": [named.text for named in tokens],
            "token_logprobs": [max(named.logprob, LEAST_LOGPROB) for named in tokens],
            "top_logprobs": [
                {text: max(logprob, LEAST_LOGPROB) for text, logprob in named.best} for named in tokens
            ],
            "text_offset": offsets[: len(tokens)],
        }
