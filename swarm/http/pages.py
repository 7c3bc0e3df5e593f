"""What a browser is given: a fixed table of files in the package, so that no path leads to any other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

_WELCOME: Final = b"""This is a swarm's API; a browser is shown a page here.

For OpenAI's clients the base URL is this address and /v1. Also here: /v1/messages (Anthropic), /api/chat and
/api/generate (Ollama), /generate, /infer, /tokenize, /detokenize; /swarm/status, /swarm/events, /health, /ready,
/metrics. /openapi.json describes all of it.
"""

_SCRIPT: Final = "text/javascript; charset=utf-8"
_KINDS: Final = {"js": _SCRIPT, "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
_FILES: Final = (
    "answer.js",
    "app.js",
    "ask.js",
    "chat.css",
    "chat.js",
    "commands.js",
    "dom.js",
    "icon.svg",
    "line.js",
    "map.css",
    "map.js",
    "markdown.js",
    "news.js",
    "page.css",
    "plots.js",
    "route.js",
    "settings.js",
    "speech.js",
    "swarm.js",
    "turn.js",
    "words.js",
)
# The page itself, and what it loads. Served before there is a key: they tell nothing that a key protects.
PAGE_PATHS: Final = frozenset({"/", "/favicon.ico", *(f"/page/{name}" for name in _FILES)})


@dataclass(frozen=True, slots=True)
class Page:
    """Something that is the same for everybody; `plain` is for those who are no browser."""

    media_type: str
    content: bytes
    plain: bytes | None = None

    async def respond(self, request: Request) -> Response:
        """The response with it, or that nothing has changed."""
        if self.plain is not None and "text/html" not in request.headers.get("accept", ""):
            return Response(self.plain, media_type="text/plain; charset=utf-8", headers={"vary": "accept"})
        tag = f'"{hashlib.sha256(self.content).hexdigest()[:24]}"'
        # Asked for each time, so that an update of the package is seen at once.
        fields = {"cache-control": "no-cache", "etag": tag, "vary": "accept"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=fields)
        return Response(self.content, media_type=self.media_type, headers=fields)


def pages() -> Mapping[str, Page]:
    """All of them by their paths, read once."""
    folder = resources.files("swarm.http") / "page"
    found = {
        f"/page/{name}": Page(_KINDS[name.rpartition(".")[2]], (folder / name).read_bytes())
        for name in _FILES
    }
    index = Page("text/html; charset=utf-8", (folder / "index.html").read_bytes(), _WELCOME)
    return {"/": index, "/favicon.ico": found["/page/icon.svg"], **found}
