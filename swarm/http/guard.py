"""The door of the API: what a request must be before anything looks at what it asks."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from swarm.http import limits
from swarm.http.errors import ApiError, full
from swarm.http.forms import error_response
from swarm.http.metrics import Metrics
from swarm.http.pages import PAGE_PATHS
from swarm.http.settings import Settings

_ASKER: Final = "swarm.asker"
# Asked by health checks and by pages before they have a key; these tell nothing that a key protects.
WITHOUT_KEY: Final = PAGE_PATHS | {"/health"}
# Pages are opened by links on other sites; what they load comes from here.
_PAGES: Final = frozenset({"/"})

_EVERYWHERE: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    # What strangers say becomes text and never markup, whatever a script of ours might try.
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Head:
    """A request before its body; fields by their names in small letters."""

    method: str
    path: str
    fields: Mapping[str, str]
    size: int = 0  # bytes

    @property
    def key(self) -> str | None:
        """The key that it shows, in OpenAI's way or Anthropic's."""
        kind, _, key = self.fields.get("authorization", "").partition(" ")
        return key.strip() if kind.lower() == "bearer" else self.fields.get("x-api-key")


def refusal(head: Head, settings: Settings) -> ApiError | None:
    """Why a request is not taken, if it is not: decided by its head alone."""
    fields = head.fields
    if head.size > limits.HEAD_BYTES:  # the parser sees to it only where it comes in parts
        return ApiError(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"the head of a request has at most {limits.HEAD_BYTES} bytes",
            "too_large",
        )
    host, origin = fields.get("host", ""), fields.get("origin")
    if not settings.serves_host(host):
        hint = "reach it by its address or as localhost, or serve with --allow-host NAME"
        return ApiError(HTTPStatus.FORBIDDEN, f"this host name is not served: {hint}", "bad_host")
    if origin is not None and not settings.takes_origin(origin, host):
        hint = "serve with --allow-origin to let its pages ask"
        return ApiError(HTTPStatus.FORBIDDEN, f"pages of this origin may not ask: {hint}", "bad_origin")
    if origin is None and fields.get("sec-fetch-site") == "cross-site" and not _opens_page(head):
        return ApiError(HTTPStatus.FORBIDDEN, "pages of other sites may not ask", "bad_origin")
    if head.method == "OPTIONS" or head.path in WITHOUT_KEY:
        return None
    if not settings.opens(head.key):
        return ApiError(
            HTTPStatus.UNAUTHORIZED, "give a valid key: Authorization: Bearer KEY", "invalid_api_key"
        )
    if head.method == "POST":
        return _body_refusal(fields)
    return None


def _opens_page(head: Head) -> bool:
    return head.method == "GET" and head.path in _PAGES and head.fields.get("sec-fetch-mode") == "navigate"


def _body_refusal(fields: Mapping[str, str]) -> ApiError | None:
    # What a page may send anywhere without asking first is a form or text, never this.
    if fields.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON: Content-Type: application/json")
    if fields.get("content-encoding", "identity").lower() != "identity":
        return ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send the body as it is, without Content-Encoding")
    length = fields.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > limits.BODY_BYTES:
        return _too_large()
    return None


def _too_large() -> ApiError:
    return ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {limits.BODY_BYTES} bytes", "too_large"
    )


def asker_named(key: str | None, client: tuple[str, int] | None) -> str:
    """A name for whoever asks: by the key, or by the address, of IPv6 by the block that one line has."""
    if key is not None:
        return hashlib.sha256(key.encode(errors="replace")).hexdigest()
    try:
        address = ipaddress.ip_address(client[0].partition("%")[0] if client else "")
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def asker_of(request: Request) -> str:
    """Who asks, for whose turn it is."""
    name: str = request.scope[_ASKER]
    return name


class Guard:
    """Refuses what may not come in, bounds the bodies of the rest, and puts on every response what protects pages."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._settings = settings
        self._bodies = Bodies()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            return
        fields = Headers(scope=scope)
        head = Head(scope["method"], scope["path"], fields, _size(scope))
        guarded = self._responding(scope, send, self._shared(fields))
        scope[_ASKER] = asker_named(head.key if self._settings.keys else None, scope.get("client"))
        if error := refusal(head, self._settings):
            await error_response(scope["path"], error)(scope, receive, guarded)
            return
        if head.method == "OPTIONS":
            await guarded(
                {"type": "http.response.start", "status": 204, "headers": [(b"content-length", b"0")]}
            )
            await guarded({"type": "http.response.body"})
            return
        if head.method != "POST":
            await self._app(scope, _again(b"", receive), guarded)
            return
        with self._bodies.one() as incoming:
            try:
                body = await incoming.read(receive)
            except ApiError as error:
                await error_response(scope["path"], error)(scope, receive, guarded)
                return
            if body is not None:
                await self._app(scope, _again(body, receive), guarded)

    def _shared(self, fields: Mapping[str, str]) -> dict[str, str]:
        """What allows the page of an allowed origin to read the response."""
        origin = fields.get("origin")
        if origin not in self._settings.origins:
            return {}
        return {
            "access-control-allow-origin": origin,
            "access-control-allow-methods": "GET, POST",
            "access-control-allow-headers": "authorization, content-type, x-api-key",
            "access-control-expose-headers": "x-swarm-route",
            "cross-origin-resource-policy": "cross-origin",
            "vary": "origin",
        }

    def _responding(self, scope: Scope, send: Send, shared: Mapping[str, str]) -> Send:
        async def responding(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update({**_EVERYWHERE, **shared})
                # Of paths only those of the application are told: anybody may ask for any other.
                path = getattr(scope.get("route"), "path", "other")
                self._metrics.responded(path, message["status"])
            await send(message)

        return responding


def _size(scope: Scope) -> int:
    fields = sum(len(name) + len(value) for name, value in scope["headers"])
    return fields + len(scope["raw_path"]) + len(scope["query_string"])


class Bodies:
    """All bodies that are held, which have a bound together."""

    def __init__(self) -> None:
        self.size = 0

    @contextmanager
    def one(self) -> Iterator[Incoming]:
        """A body, which is held until this ends."""
        incoming = Incoming(self)
        try:
            yield incoming
        finally:
            self.size -= incoming.size


class Incoming:
    """A body as it comes."""

    def __init__(self, bodies: Bodies) -> None:
        self.size = 0
        self._bodies = bodies

    async def read(self, receive: Receive) -> bytes | None:
        """All of it; None, if whoever sends it hangs up. Raises: ApiError, if it is too large or too slow."""
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(limits.BODY_S):
                while (message := await receive())["type"] != "http.disconnect":
                    parts.append(message.get("body", b""))
                    self._count(len(parts[-1]))
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(HTTPStatus.REQUEST_TIMEOUT, "the body did not come in time", "timeout") from None
        return None

    def _count(self, size: int) -> None:
        self.size += size
        self._bodies.size += size
        if self.size > limits.BODY_BYTES:
            raise _too_large()
        if self._bodies.size > limits.BODIES_BYTES:
            raise full("too many large requests at once", 1.0)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read already, and then what comes after it: that whoever asked has left."""
    given = False

    async def receiving() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return receiving
