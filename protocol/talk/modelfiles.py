"""Config, tokenizer and chat template of a model: from the cache on this machine, else from a node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from protocol.errors import NoRoute, PeerUnavailable, RemoteProtocolError
from protocol.files import write_whole
from protocol.model import Manifest, check_files, parse_manifest
from protocol.records import Announcement
from protocol.talk.exchange import fetch_model
from protocol.transport.base import Transport

_MANIFEST = "manifest.msgpack"

# Nodes asked for the files, of those that have answered: what comes is checked against the digest, so one is enough.
NODES: Final = 4
# After this the next one is asked too, beside a slow one.
HEAD_START_S: Final = 5.0
# The largest tokenizers in use (33 MB) come in this time over 2 Mbit/s.
FETCH_WITHIN_S: Final = 150.0


async def model_files(
    transport: Transport, nodes: Sequence[Announcement], digest: bytes, cache: Path
) -> tuple[Manifest, dict[str, bytes]]:
    """The model's manifest and small files, all checked against its digest; cached under `cache`.

    `nodes` are those that have answered. Raises: NoRoute, if none hands them over.
    """
    folder = cache / digest.hex()
    found = await trio.to_thread.run_sync(_read, folder, digest)
    if found is not None:
        return found
    fetched = await _fetch(transport, nodes[:NODES], digest)
    await trio.to_thread.run_sync(_write, folder, *fetched)
    return fetched


async def _fetch(
    transport: Transport, nodes: Sequence[Announcement], digest: bytes
) -> tuple[Manifest, dict[str, bytes]]:
    """From whichever node is the first to hand everything over; each has a head start over the next."""
    failures: list[str] = []
    found: list[tuple[Manifest, dict[str, bytes]]] = []

    async def fetch(node: Announcement, failed: trio.Event, scope: trio.CancelScope) -> None:
        try:
            found.append(await fetch_model(transport, node.peer, node.addrs, digest))
            scope.cancel()
        except (PeerUnavailable, RemoteProtocolError) as error:
            failures.append(f"{node.peer}: {error}")
            failed.set()

    with trio.move_on_after(FETCH_WITHIN_S):
        async with trio.open_nursery() as nursery:
            for node in nodes:
                failed = trio.Event()
                nursery.start_soon(fetch, node, failed, nursery.cancel_scope)
                with trio.move_on_after(HEAD_START_S):
                    await failed.wait()
    if not found:
        why = "; ".join(failures) or ("not in time" if nodes else "none has answered")
        raise NoRoute(f"no node hands over the model's tokenizer: {why}")
    return found[0]


def _read(folder: Path, digest: bytes) -> tuple[Manifest, dict[str, bytes]] | None:
    """What the cache holds, or None if that is nothing, or not what the digest names."""
    try:
        manifest = parse_manifest((folder / _MANIFEST).read_bytes(), digest)
        contents = {file.name: (folder / file.name).read_bytes() for file in manifest.files}
        check_files(manifest, contents)
    except (OSError, RemoteProtocolError):
        return None
    return manifest, contents


def _write(folder: Path, manifest: Manifest, contents: dict[str, bytes]) -> None:
    """Fill the cache; files appear whole, the manifest last. A disk that does not take them costs only the cache."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, data in [*contents.items(), (_MANIFEST, manifest.encode())]:
            write_whole(folder / name, data)
    except OSError:
        return
