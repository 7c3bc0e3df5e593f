"""What a browser is given: a fixed table, so that no path leads to a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from starlette.responses import Response

_WELCOME: Final = """This is a swarm's API.

For OpenAI's clients the base URL is this address and /v1. Also here: /v1/messages (Anthropic), /api/chat and
/api/generate (Ollama), /generate, /infer, /tokenize, /detokenize; /swarm/status, /swarm/events, /health, /ready,
/metrics. /openapi.json describes all of it.
"""


@dataclass(frozen=True, slots=True)
class Page:
    """Something that is the same for everybody."""

    media_type: str
    content: bytes

    async def respond(self) -> Response:
        """The response with it."""
        return Response(self.content, media_type=self.media_type)


PAGES: Final[Mapping[str, Page]] = {"/": Page("text/plain; charset=utf-8", _WELCOME.encode())}
