"""Where to enter the swarm: what the user says, else SWARM_JOIN, else the swarm entered last."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import platformdirs

from protocol import limits
from protocol.errors import ConfigError

# Doors kept of the swarm entered last: one that is still open is enough.
DOORS: Final = 8
_NOWHERE: Final = (
    "no swarm to join: give --join ADDRESS (every node prints its own), set SWARM_JOIN, or try `swarm demo`"
)


def doors(given: Sequence[str]) -> tuple[str, ...]:
    """Addresses to knock at. Raises: ConfigError, if nothing says where."""
    if given:
        return tuple(given)
    if from_environment := os.environ.get("SWARM_JOIN", "").replace(",", " ").split():
        return tuple(from_environment)
    if remembered := _remembered():
        return remembered
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
