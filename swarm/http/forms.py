"""The forms of responses: JSON, streams of events or of lines, and errors in the words of each dialect."""

from __future__ import annotations

import json
from typing import Any, Final

from starlette.responses import Response

from swarm.http.errors import ApiError

SSE: Final = "text/event-stream"
LINES: Final = "application/x-ndjson"
DONE: Final = "data: [DONE]\n\n"


def packed(value: object) -> str:
    """JSON, as short as it can be; no lone surrogates, which are no UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def data(value: object) -> str:
    """An event of a stream."""
    return f"data: {packed(value)}\n\n"


def event(name: str, value: object) -> str:
    """An event that has a name."""
    return f"event: {name}\ndata: {packed(value)}\n\n"


def line(value: object) -> str:
    """A line of a stream of lines."""
    return f"{packed(value)}\n"


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response with one JSON value."""
    content = packed(value).encode(errors="replace")
    return Response(content, status, headers, media_type="application/json")


def error_fields(error: ApiError) -> dict[str, Any]:
    """OpenAI's form."""
    fields: dict[str, Any] = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    if error.missing:
        fields["missing"] = [list(span) for span in error.missing]
    return {"error": fields}


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """Anthropic's."""
    kind = {"server_error": "api_error"}.get(error.type, error.type)
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def ollama_error(error: ApiError) -> dict[str, Any]:
    """Ollama's."""
    return {"error": error.message}


def error_response(path: str, error: ApiError) -> Response:
    """An error in the form of the dialect that is spoken at `path`."""
    if path.startswith("/api/"):
        fields = ollama_error(error)
    elif path.startswith("/v1/messages"):
        fields = anthropic_error(error)
    else:
        fields = error_fields(error)
    return json_response(fields, error.status, error.headers)
