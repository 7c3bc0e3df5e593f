"""Config, tokenizer and chat template of a model: from the cache on this machine, else from a node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio

from protocol.errors import NoRoute, PeerUnavailable, RemoteProtocolError
from protocol.files import write_whole
from protocol.model import Manifest, check_files, parse_manifest
from protocol.records import Announcement
from protocol.transport.base import Transport
from protocol.transport.exchange import fetch_model

_MANIFEST = "manifest.msgpack"


async def model_files(
    transport: Transport, nodes: Sequence[Announcement], digest: bytes, cache: Path
) -> tuple[Manifest, dict[str, bytes]]:
    """The model's manifest and small files, all checked against its digest; cached under `cache`.

    Raises: NoRoute, if no node hands them over.
    """
    folder = cache / digest.hex()
    found = await trio.to_thread.run_sync(_read, folder, digest)
    if found is not None:
        return found
    failures: list[str] = []
    for node in nodes:
        try:
            manifest, contents = await fetch_model(transport, node.peer, node.addrs, digest)
        except (PeerUnavailable, RemoteProtocolError) as error:
            failures.append(f"{node.peer}: {error}")
            continue
        await trio.to_thread.run_sync(_write, folder, manifest, contents)
        return manifest, contents
    raise NoRoute("no node hands over the model's tokenizer: " + "; ".join(failures[:3]))


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
