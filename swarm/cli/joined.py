"""Where to enter the swarm: what the user says, else SWARM_JOIN, else the swarm entered last."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from protocol import limits
from protocol.errors import ConfigError, Unreachable

# Doors kept of the swarm entered last: one that is still open is enough.
DOORS: Final = 8
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
    if from_environment := os.environ.get("SWARM_JOIN", "").replace(",", " ").split():
        return Doors(tuple(from_environment))
    if remembered := _remembered():
        return Doors(remembered, remembered=True)
    raise ConfigError(_NOWHERE)


def remember(entered: Sequence[str], others: Iterable[str] = ()) -> None:
    """Keep these doors for the next time, those that were used first. A disk that does not take them is no error."""
    kept = list(dict.fromkeys([*entered, *others]))[:DOORS]
    path = _path()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump({"join": kept}, file)
        os.replace(file.name, path)


def _remembered() -> tuple[str, ...]:
    try:
        value = json.loads(_path().read_text(encoding="utf-8"))["join"]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    sound = [a for a in value if isinstance(a, str) and len(a) <= limits.ADDRESS_BYTES] if value else []
    return tuple(sound[:DOORS])


def _path() -> Path:
    home = os.environ.get("SWARM_HOME")
    return (Path(home) if home else platformdirs.user_config_path("swarm")) / "joined.json"
