"""A node as a process: its key, its signals, its garbage, its end."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

import trio

from node.backend import open_backend
from node.config import NodeConfig
from node.daemon import Node
from node.events import Leaving, Metrics, Notify, Warned
from protocol.errors import ConfigError, SwarmError, unwrapped
from protocol.hints import RecordRule
from protocol.identity import Identity
from protocol.keyfile import HeldKey, hold

if TYPE_CHECKING:
    from protocol.transport.libp2p.transport import Libp2pTransport

# The event loop gets the interpreter back from the engine's Python code after this, not after 5 ms.
SWITCH_INTERVAL_S = 0.001
# What little ends in cycles (errors with their tracebacks, mostly) is freed this often.
COLLECT_EVERY_S = 60.0


def serve(config: NodeConfig, notify: Notify) -> None:
    """Serve until SIGTERM or SIGINT, then say goodbye; a second signal ends the process at once.

    `notify` is told what happens, in the event loop: it must not block.
    Raises: ConfigError, BadCheckpoint, UnsupportedModel, Unreachable.
    """
    config.check()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with _hold_key(config) as key:
        if not key.sure:
            notify(Warned(f"{config.home} cannot be locked: make sure that no other node uses it"))
        try:
            trio.run(_serve, config, key.identity, notify)
        except BaseExceptionGroup as group:
            error = unwrapped(group)
            if not isinstance(error, SwarmError):
                raise
            raise error from None


async def _serve(config: NodeConfig, identity: Identity, notify: Notify) -> None:
    from protocol.transport.libp2p import open_transport  # takes a second, which a wrong option need not cost

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_transport(
            identity.key,
            listen=config.listen,
            announce=config.announce,
            dht="server",
            validate=RecordRule(),
        ) as transport:
            node = Node(config, identity, transport, open_backend, notify)
            with ExitStack() as stack:
                if config.metrics is not None:
                    url = stack.enter_context(_metrics(config.metrics, node, transport))
                    notify(Metrics(url))
                await _run(node, signals, notify)


def _metrics(place: str, node: Node, transport: Libp2pTransport) -> AbstractContextManager[str]:
    """Raises: ConfigError, also where prometheus_client is not installed."""
    try:
        from node.metrics import serving
    except ImportError:
        raise ConfigError('metrics need prometheus_client: pip install "inference-swarm[node]"') from None
    return serving(place, node.figures, transport.statistics)


async def _run(node: Node, signals: AsyncIterator[int], notify: Notify) -> None:
    async with trio.open_nursery() as nursery:
        serving = trio.CancelScope()
        nursery.start_soon(_obey, signals, serving, notify)
        nursery.start_soon(_settle, node)
        with serving:
            await node.run()
        await node.leave()
        nursery.cancel_scope.cancel()


def _hold_key(config: NodeConfig) -> HeldKey:
    try:
        home = config.home.expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{config.home}: whose home that is, is not known here") from error
    return hold(home / "node.key")


async def _settle(node: Node) -> None:
    """What is loaded stays: the collector need not walk a hundred thousand objects of torch between two tokens.

    Nor at the end, when it would hold the exit up for seconds. What comes later it walks in milliseconds; by itself
    it would wait until there is a quarter as much of that as it found when it last looked.
    """
    await node.ready.wait()
    gc.collect()
    gc.freeze()
    while True:
        gc.collect()
        await trio.sleep(COLLECT_EVERY_S)


async def _obey(signals: AsyncIterator[int], serving: trio.CancelScope, notify: Notify) -> None:
    leaving = False
    async for number in signals:
        if leaving:
            os._exit(128 + number)
        leaving = True
        notify(Leaving())
        serving.cancel()
