"""The application: which path leads where."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from protocol.errors import SwarmError
from swarm.http import openai_paths, other_paths, state_paths
from swarm.http.errors import ApiError, bad_request
from swarm.http.forms import error_response
from swarm.http.guard import Guard
from swarm.http.metrics import Metrics
from swarm.http.replies import Gone, as_api_error
from swarm.http.service import Service
from swarm.http.settings import Settings


def application(service: Service, settings: Settings, metrics: Metrics) -> ASGIApp:
    """The whole of it, behind its guard."""
    app = FastAPI(
        title="swarm",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    _answer_errors(app)
    app.include_router(openai_paths.router(service))
    app.include_router(other_paths.router(service))
    app.include_router(state_paths.router(service, metrics))
    return Guard(app, settings, metrics)


def _answer_errors(app: FastAPI) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error_response(request.url.path, error)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(request.url.path, _first_fault(error.errors()))

    async def not_there(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return error_response(request.url.path, ApiError(error.status_code, _plainly(request, error)))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def other(request: Request, error: Exception) -> Response:
        return error_response(request.url.path, as_api_error(error))

    for kind, handler in (
        (ApiError, refused),
        (RequestValidationError, invalid),
        (HTTPException, not_there),
        (Gone, gone),
        (SwarmError, other),
        (Exception, other),
    ):
        app.add_exception_handler(kind, handler)


def _first_fault(faults: Sequence[Any]) -> ApiError:
    """What is wrong with a body: the first thing, and where."""
    fault = faults[0]
    if fault["type"] == "json_invalid":
        return bad_request("the body is not JSON")
    where = [str(part) for part in fault["loc"] if part != "body"]
    param = ".".join(where) or None
    return bad_request(f"{param or 'the body'}: {fault['msg']}", param)


def _plainly(request: Request, error: HTTPException) -> str:
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return "there is nothing at this path"
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return f"this path does not take {request.method}"
    return str(error.detail)
