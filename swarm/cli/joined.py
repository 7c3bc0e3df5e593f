"""Where to enter the swarm: what the user says, else the swarm entered last."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from protocol.book import RecordBook
from protocol.errors import ConfigError, Unreachable
from protocol.files import read_small, write_whole
from protocol.transport.addresses import sound_addresses

# Doors kept of the swarm entered last: one that is still open is enough.
DOORS: Final = 8
# Eight addresses take 4 KiB at most; whatever is longer, others have put there.
_FILE_BYTES: Final = 64 * 1024
_NOWHERE: Final = (
    "no swarm to join: give --join ADDRESS (every node prints its own), set SWARM_JOIN, or try `swarm demo`"
)


@dataclass(frozen=True, slots=True)
class Doors:
    """Addresses to knock at, and whether they are only remembered."""

    addrs: tuple[str, ...]
    remembered: bool = False

    @contextmanager
    def knocking(self) -> Iterator[None]:
        """Around the attempt to enter: if nothing answers that was only remembered, the error says so."""
        try:
            yield
        except Unreachable as error:
            if not self.remembered:
                raise
            tried = f"{len(self.addrs)} address{'es' * (len(self.addrs) > 1)} tried"
            raise Unreachable(
                f"no node answers of the swarm entered last ({tried}); --join ADDRESS names another"
            ) from error


def find_doors(given: Sequence[str]) -> Doors:
    """Where to enter. Raises: ConfigError, if nothing says where."""
    if given:
        return Doors(tuple(given))
    if remembered := _remembered():
        return Doors(remembered, remembered=True)
    raise ConfigError(_NOWHERE)


def remember(entered: Sequence[str], others: Iterable[str] = ()) -> None:
    """Keep these doors for the next time, those that were used first. A disk that does not take them is no error."""
    kept = list(dict.fromkeys(sound_addresses([*entered, *others])))[:DOORS]
    path = _path()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(path, json.dumps({"join": kept}).encode())


def places(book: RecordBook) -> Iterator[str]:
    """Doors to keep: where nodes were met. What is only announced may be anybody's place."""
    for record in book:
        yield from book.proven(record.peer)[:1]


def _remembered() -> tuple[str, ...]:
    """What the file holds of doors; whatever else it is or holds counts as nothing."""
    try:
        value = json.loads(read_small(_path(), _FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        return ()
    said = value.get("join") if isinstance(value, dict) else None
    texts = said[: 2 * DOORS] if isinstance(said, list) else []
    return sound_addresses(text for text in texts if isinstance(text, str))[:DOORS]


def _path() -> Path:
    home = os.environ.get("SWARM_HOME")
    return (Path(home) if home else platformdirs.user_config_path("swarm")) / "joined.json"
