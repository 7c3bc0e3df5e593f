"""uvicorn in a thread of its own, on a socket that is bound before the thread starts."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from protocol.errors import ConfigError, LocalProtocolError
from swarm.http import limits
from swarm.http.connections import Connection

# How long answers under way have when the server is to end; they are cut off then.
GRACE_S: Final = 1
_STARTED_S: Final = 10.0
_ENDED_S: Final = 5.0


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises: ConfigError, if that cannot be."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, proto)
    except OSError as error:
        raise ConfigError(f"{host} is no address of this machine: {error.strerror}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(limits.CONNECTIONS)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}; --port takes another"
        ) from error
    return bound


@contextmanager
def serving(app: ASGIApp, bound: socket.socket) -> Iterator[None]:
    """Serve on the socket, which is closed in the end; answers under way are cut off then."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=limits.HEAD_BYTES,
        timeout_keep_alive=limits.KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    # Every malformed request is a warning of its own, and strangers write as many as they like.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    server = _Server(config)
    thread = threading.Thread(target=server.run, args=([bound],), name="http", daemon=True)
    thread.start()
    try:
        if not server.listening.wait(_STARTED_S):
            raise LocalProtocolError("the HTTP server did not start")
        yield
    finally:
        # Whose answers are cut off is known, and each would be told as an exception.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        server.should_exit = True
        thread.join(_ENDED_S)
        with contextlib.suppress(OSError):
            bound.close()


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()
