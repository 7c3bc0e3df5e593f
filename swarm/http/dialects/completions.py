"""`POST /v1/completions`."""

from __future__ import annotations

from typing import Any, ClassVar

from swarm.http import limits
from swarm.http.asking import Ask, Ids, checked_count, checked_stop
from swarm.http.dialects.fields import cleaned
from swarm.http.dialects.openai import OpenAiFields, OpenAiWriter
from swarm.http.errors import bad_request


class CompletionFields(OpenAiFields):
    """The body of a request."""

    refused: ClassVar = {
        "echo": (False,),
        "suffix": ("",),
        "best_of": (1,),
        "logprobs": (0, False),
        "logit_bias": ({},),
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "min_p": (0,),
    }
    prompt: str | list[int] | list[str] | list[list[int]]

    def asks(self) -> list[Ask]:
        """The same as any dialect asks it, for each prompt. Raises: ApiError, 400."""
        prompts = prompts_of(self.prompt)
        sampling, stop, count = self.sampling(), checked_stop(self.stop), checked_count(self.n)
        return [Ask(prompt, sampling, self.max_tokens or 16, stop, count) for prompt in prompts]


def prompts_of(given: str | list[int] | list[str] | list[list[int]]) -> list[str | Ids]:
    """One prompt or several, each a text or ids. Raises: ApiError, 400."""
    if isinstance(given, str):
        return [cleaned(given)]
    if not len(given) >= 1:
        raise bad_request("prompt: it is empty", "prompt")
    if isinstance(given[0], int):
        return [Ids(tuple(token for token in given if isinstance(token, int)))]
    if len(given) > limits.PROMPTS:
        raise bad_request(f"prompt: at most {limits.PROMPTS} at once", "prompt")
    return [
        cleaned(each) if isinstance(each, str) else Ids(tuple(each))
        for each in given
        if not isinstance(each, int)
    ]


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

    def message(self, text: str) -> dict[str, Any]:
        """See `OpenAiWriter`."""
        return {"text": text}
