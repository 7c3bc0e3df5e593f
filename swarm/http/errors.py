"""What goes wrong, as HTTP tells it: a status, and words that say what to do. Dialects differ in the form."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from protocol.errors import (
    ConfigError,
    NoRoute,
    PeerUnavailable,
    RemoteProtocolError,
    SwarmError,
    unwrapped,
)

_TYPES: Final[dict[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


class ApiError(Exception):
    """What a request is answered with in place of what it asked for.

    code           a word for programmes, as OpenAI has them
    param          the field of the request that is to blame
    retry_after_s  when it may be asked again
    missing        stages that nobody serves, half-open
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        missing: Sequence[tuple[int, int]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.missing = tuple(missing)

    @property
    def type(self) -> str:
        """OpenAI's and Anthropic's word for the kind."""
        if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return "server_error"
        return _TYPES.get(self.status, "invalid_request_error")

    @property
    def headers(self) -> dict[str, str]:
        """Fields of the response that belong to it."""
        if self.retry_after_s is None:
            return {}
        return {"retry-after": str(max(1, round(self.retry_after_s)))}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: what was asked for cannot be."""
    return ApiError(HTTPStatus.BAD_REQUEST, message, code, param=param)


def unsupported(param: str, why: str) -> ApiError:
    """400: a field that is known, and that cannot be honoured here."""
    return bad_request(f"{param}: {why}", param, "unsupported_parameter")


def full(message: str, retry_after_s: float) -> ApiError:
    """429: everybody is busy."""
    return ApiError(HTTPStatus.TOO_MANY_REQUESTS, message, "busy", retry_after_s=retry_after_s)


def unavailable(
    message: str, code: str, retry_after_s: float, missing: Sequence[tuple[int, int]] = ()
) -> ApiError:
    """503: there is nobody to answer now."""
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE, message, code, retry_after_s=retry_after_s, missing=missing
    )


def translated(raised: BaseException) -> ApiError | None:
    """What an error of ours is to whoever asked; None for a bug, which is logged and told as no more than that."""
    error = unwrapped(raised)
    match error:
        case ApiError():
            return error
        case ConfigError():
            return bad_request(str(error))
        case NoRoute(missing=missing):
            return unavailable(str(error), "no_route", 5.0, missing)
        case PeerUnavailable():
            return unavailable(str(error), "unavailable", 2.0)
        case RemoteProtocolError():  # a node's fault, not the asker's
            return ApiError(HTTPStatus.BAD_GATEWAY, str(error), "bad_peer")
        case SwarmError():
            return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, str(error), "internal")
    return None
