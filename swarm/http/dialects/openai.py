"""What OpenAI's endpoints have in common."""

from __future__ import annotations

import secrets
import time
from typing import Any, Final

from pydantic import Field

from swarm.http.dialects.fields import Fields, SamplingFields
from swarm.http.outcome import Outcome

FINISH: Final = {"eos": "stop", "stop": "stop", "length": "length"}


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
