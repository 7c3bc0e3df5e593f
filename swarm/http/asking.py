"""What any dialect asks for, in one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swarm.http import limits
from swarm.http.errors import bad_request
from swarm.http.tools import Tools
from swarm.request import Request

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ids:
    """Tokens to continue."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said so far, as chat templates take it; the answer is what the assistant says next.

    It may call `tools`. None: no tool was ever spoken of; with no tools in it: some were called before.
    """

    messages: tuple[Message, ...]
    tools: Tools | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """`count` answers to one prompt: text or token ids to continue, or a conversation.

    request         how tokens are chosen, and when an answer ends; its most tokens are said here
    max_new_tokens  None is what fits, at most `limits.NEW_TOKENS`
    grammar_field   the field of the request that is to blame for a bad grammar
    logprobs        whether each token is told, with its log-probability and those of the request's `top_logprobs`
    """

    prompt: str | Ids | Conversation
    request: Request
    max_new_tokens: int | None = None
    count: int = 1
    logprobs: bool = False
    grammar_field: str = "response_format"


def checked_stop(value: str | Sequence[str] | None, param: str = "stop") -> tuple[str, ...]:
    """The texts that end an answer. Raises: ApiError, 400."""
    stops = (value,) if isinstance(value, str) else tuple(value or ())
    if len(stops) > limits.STOPS:
        raise bad_request(f"{param}: at most {limits.STOPS} texts", param)
    if any(not stop or len(stop) > limits.STOP_CHARS for stop in stops):
        raise bad_request(f"{param}: each has 1 to {limits.STOP_CHARS} characters", param)
    return stops


def checked_count(value: int | None, param: str = "n") -> int:
    """How many answers. Raises: ApiError, 400."""
    count = 1 if value is None else value
    if not 1 <= count <= limits.CHOICES:
        raise bad_request(f"{param}: from 1 to {limits.CHOICES}", param)
    return count


def checked_most(value: int | None, param: str) -> int | None:
    """The most tokens of an answer. Raises: ApiError, 400."""
    if value is not None and value < 1:
        raise bad_request(f"{param}: at least 1", param)
    return value
