"""Looks at this machine for `swarm doctor`: packages, kernels, memory, disk, sockets, what is configured."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import resource
import shutil
import socket
from collections.abc import Iterable
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Final

import platformdirs

from protocol.errors import ConfigError
from protocol.keyfile import hold, load_or_create
from protocol.transport.limits import SOCKET_BUFFER
from swarm.cli import findings, joined, local
from swarm.cli.findings import Finding
from swarm.cli.sources import find_files

_DISTRIBUTION: Final = "inference-swarm"
_ECHO_WITHIN_S: Final = 1.0
_EXTRAS: Final = {"node": ("huggingface_hub", "psutil"), "http": ("fastapi", "uvicorn", "prometheus_client")}


def machine() -> Iterable[Finding]:
    """Everything about this machine that can be seen without a swarm."""
    extras = {extra: all(map(_is_there, names)) for extra, names in _EXTRAS.items()}
    yield from findings.of_packages(platform.python_version(), _wrong_packages(), extras)
    if extras["node"]:
        isa, why, processor = local.kernels()
        yield findings.of_kernels(isa, why, _is_there("torch"), processor)
        yield findings.of_memory(*local.memory())
    yield findings.of_disk(*_disk())
    yield findings.of_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield findings.of_socket(*_socket())
    yield from _key()
    files = [
        str(path) for path, _ in find_files(None)
    ]  # what is wrong in one ends every command, this one too
    yield findings.ok("config", f"settings of {' and '.join(files)}" if files else "no file of settings")
    named = os.environ.get("SWARM_JOIN", "").replace(",", " ").split()
    yield from findings.of_doors(named, "$SWARM_JOIN")


def own_peer() -> tuple[str | None, bool]:
    """The name of the node whose key is kept here, and whether it runs now."""
    path = node_home() / "node.key"
    try:
        peer = load_or_create(path).peer if path.exists() else None
    except ConfigError:
        return None, False
    try:
        with hold(path) if peer is not None else nullcontext():
            return peer, False
    except ConfigError:
        return peer, True


def node_home() -> Path:
    """Where `swarm node` keeps its key, unless it is told otherwise."""
    return Path(os.environ.get("SWARM_HOME") or "~/.inference-swarm").expanduser()


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _wrong_packages() -> dict[str, str]:
    """What the client needs and lacks, or has in another version than the one exact one."""
    wrong = {}
    try:
        needed = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {_DISTRIBUTION: "run from its source, not installed"}
    for requirement in needed:
        name, _, exact = requirement.partition("==")
        if "extra" in requirement:
            continue
        name = re.split(r"[<>=!~ \[;]", name)[0]
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong[name] = "missing"
        else:
            if exact and found != exact.strip():
                wrong[name] = f"{found} in place of {exact.strip()}"
    return wrong


def _disk() -> tuple[str, int, bool]:
    home = os.environ.get("SWARM_HOME")
    folder = Path(home) / "cache" if home else platformdirs.user_cache_path("swarm")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return str(folder), shutil.disk_usage(there).free, os.access(there, os.W_OK)


def _socket() -> tuple[str | None, int, int]:
    """What is wrong with a socket that says something to itself, its buffer, and the one that we want."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.settimeout(_ECHO_WITHIN_S)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
            # Linux counts what it adds itself.
            buffer = probe.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
            probe.bind(("0.0.0.0", 0))
            probe.sendto(b"swarm", ("127.0.0.1", probe.getsockname()[1]))
            probe.recvfrom(16)
    except OSError as error:
        return str(error), 0, SOCKET_BUFFER
    return None, buffer, SOCKET_BUFFER


def _key() -> Iterable[Finding]:
    path = node_home() / "node.key"
    if not path.exists():
        return
    try:
        load_or_create(path)
    except ConfigError as error:
        text, _, step = str(error).partition("; ")
        yield Finding("key", "wrong", text, step.removeprefix("run: ") or f"ls -l {path}")
    else:
        yield findings.ok("key", f"{path} is its owner's alone")


def doors(given: list[str] | None) -> joined.Doors | None:
    """The swarm to ask, if any is named or remembered."""
    try:
        return joined.find_doors(given or ())
    except ConfigError:
        return None
