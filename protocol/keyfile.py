"""The file that keeps a peer's key: made once, private, and held by one node at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import ConfigError
from protocol.files import write_whole
from protocol.identity import Identity, generate
from protocol.transport.peer_id import KEY_BYTES


def load_or_create(path: Path) -> Identity:
    """The identity kept at `path`; made there, readable by the owner only, if there is none.

    Raises: ConfigError, if the file cannot be read or written, is open to others, or holds no key.
    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # of two that make it at once, both use the one that came first
            write_whole(path, generate().key.private_bytes_raw(), replace=False)
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"the key file {path} can be read by others; run: chmod 600 {path}")
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot use the key file {path}: {error.strerror}") from error
    if len(raw) != KEY_BYTES:
        raise ConfigError(f"{path} is not a key file; move it away and a new key will be made")
    return Identity(Ed25519PrivateKey.from_private_bytes(raw))


class HeldKey:
    """A key that this process alone runs under.

    Nobody else on this machine gets it until it is closed, or the process has ended, however it did.
    """

    def __init__(self, identity: Identity, descriptor: int, *, sure: bool) -> None:
        self.identity = identity
        self.sure = sure  # False where the file system cannot tell whether somebody else has it
        self._descriptor = descriptor

    def __enter__(self) -> HeldKey:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def hold(path: Path) -> HeldKey:
    """`load_or_create`, for the whole life of a node: two under one name would be taken for one that contradicts
    itself. Blocks for as long as the disk does.

    Raises: ConfigError, also if the key is in use.
    """
    identity = load_or_create(path)
    try:
        descriptor = _open_to_lock(path)
    except OSError as error:
        raise ConfigError(f"cannot use the key file {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = _holder(os.fstat(descriptor).st_ino)
        os.close(descriptor)
        who = f" (pid {owner})" if owner else ""
        raise ConfigError(
            f"the key {path} is in use by another node{who}; give each node its own --home"
        ) from None
    except OSError:  # a network file system without locks
        return HeldKey(identity, descriptor, sure=False)
    return HeldKey(identity, descriptor, sure=True)


def _open_to_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR)  # NFS locks only what may be written
    except OSError:
        return os.open(path, os.O_RDONLY)


def _holder(inode: int) -> int | None:
    """The process that has locked a file, where the system says so (Linux: proc(5), /proc/locks)."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/locks").read_text().splitlines():
            _, kind, _, _, pid, place, *_ = line.split()
            if kind == "FLOCK" and place.rpartition(":")[2] == str(inode):
                return int(pid)
    return None
