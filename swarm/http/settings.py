"""Who may ask, and from where: what the user says of it, checked before anything is opened."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from protocol.errors import ConfigError
from swarm.http import limits

# Shorter ones are guessed: 16 characters of a random key are 80 bits or more.
KEY_CHARS: Final = 16
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Settings:
    """Where to listen and whom to serve.

    keys     any of them opens the API; none: everybody who reaches the address may ask
    open     whether an address that others reach is meant to be without a key
    names    names under which others reach this, beside addresses and localhost
    origins  sites whose pages may ask, as "https://chat.example"
    places   answers that are computed at once
    queued   requests that wait for a place

    Raises: ConfigError.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    keys: tuple[str, ...] = ()
    open: bool = False
    names: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    places: int = limits.PARALLEL
    queued: int = limits.QUEUED

    def __post_init__(self) -> None:
        for key in self.keys:
            if len(key) < KEY_CHARS or not (key.isascii() and key.isprintable()) or " " in key:
                raise ConfigError(
                    f"a key has at least {KEY_CHARS} letters, digits and signs, and no blanks: "
                    "`openssl rand -hex 32` makes one"
                )
        for name in self.names:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"--allow-host {name}: give a host's name, as chat.example")
        for origin in self.origins:
            if not _is_origin(origin):
                raise ConfigError(f"--allow-origin {origin}: give it as browsers do, as https://chat.example")
        if not self.keys and not self.open and not _is_loopback(self.host):
            raise ConfigError(
                f"{self.host} can be reached by others: set SWARM_API_KEY or give --key-file FILE, "
                "or say --no-key if everybody may ask"
            )

    @property
    def share(self) -> int:
        """The most places that one asker may have: all, where there is but one."""
        alone = len(self.keys) == 1 or (not self.keys and _is_loopback(self.host))
        return self.places if alone else max(1, self.places * 3 // 4)

    def opens(self, given: str | None) -> bool:
        """Whether this key may ask; takes as long whatever is wrong with it."""
        if not self.keys:
            return True
        guess = (given or "").encode(errors="replace")
        return sum(hmac.compare_digest(guess, key.encode()) for key in self.keys) > 0

    def serves_host(self, host: str) -> bool:
        """Whether a Host field names this server; else some page's name was made to lead here (DNS rebinding)."""
        name = _name_of(host)
        if name is None:
            return False
        if name == "localhost" or name.endswith(".localhost") or name in self.names:
            return True
        return _is_address(name)

    def takes_origin(self, origin: str, host: str) -> bool:
        """Whether a page of this origin may ask: our own, or one that was allowed."""
        if origin in self.origins:
            return True
        return _is_origin(origin) and origin.partition("://")[2] == host.lower()


def parse_keys(text: str) -> tuple[str, ...]:
    """The keys of a file or a variable: one a line, # begins a remark."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(line for line in lines if line)


def parse_names(names: Sequence[str]) -> frozenset[str]:
    """Names as they are compared."""
    return frozenset(name.lower().rstrip(".") for name in names)


def _name_of(host: str) -> str | None:
    """The name or address in a Host field, without the port; None, if it is no such field."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]\s/@]+)(:[0-9]{1,5})?", host, re.ASCII)
    return found[1].strip("[]").lower().rstrip(".") if found else None


def _is_origin(origin: str) -> bool:
    try:
        parts = urlsplit(origin)
        name = _name_of(parts.netloc)
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and name is not None
        and origin == f"{parts.scheme}://{parts.netloc}"
    )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
