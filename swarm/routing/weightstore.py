"""Where a client keeps which weights it has used: a small file for each model in its cache folder."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from protocol import limits
from protocol.errors import ConfigError

_FORMAT: Final = "swarm weights 1"
# A stage takes 28 bytes of the file.
_MOST_BYTES: Final = 32 * limits.STAGES + 1024


class WeightStore(Protocol):
    """Keeps the digests of stages by model digest. Called in worker threads, which may block."""

    def load(self, model: bytes) -> dict[int, bytes]:
        """What was used of a model, by stage. Raises: ConfigError, one line, if what is kept is not to be read."""

    def save(self, model: bytes, stages: Mapping[int, bytes], anew: bool) -> None:
        """Keep these stages besides those kept already, which stand; `anew`: instead of them."""


class FolderStore:
    """Files under a folder, each written whole. A disk that takes none costs only the memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, model: bytes) -> dict[int, bytes]:
        """See `WeightStore`."""
        path = self._path(model)
        try:
            with path.open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
            return _parse(data)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} does not say which weights were used: {error}") from error

    def save(self, model: bytes, stages: Mapping[int, bytes], anew: bool) -> None:
        """See `WeightStore`."""
        kept: dict[int, bytes] = {}
        with contextlib.suppress(ConfigError):
            kept = {} if anew else self.load(model)
        digests = {str(stage): digest.hex() for stage, digest in sorted({**stages, **kept}.items())}
        data = json.dumps({"format": _FORMAT, "stages": digests})
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write_whole(self._path(model), data)

    def _path(self, model: bytes) -> Path:
        return self.folder / f"{model.hex()}.json"


def _write_whole(path: Path, data: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        try:
            file.write(data)
            file.flush()
            os.replace(file.name, path)
        except OSError:
            os.unlink(file.name)
            raise


def _parse(data: bytes) -> dict[int, bytes]:
    """Raises: ValueError, for anything but what `save` writes."""
    if len(data) > _MOST_BYTES:
        raise ValueError("it is too long")
    try:
        value: Any = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is too deep") from error
    if not isinstance(value, dict) or value.get("format") != _FORMAT:
        raise ValueError("it is of another format")
    stages = value.get("stages")
    if not isinstance(stages, dict):
        raise ValueError("it names no stages")
    return {_stage(stage): _digest(digest) for stage, digest in stages.items()}


def _stage(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and int(text) < limits.STAGES):
        raise ValueError(f"{text[:20]!r} is no stage")
    return int(text)


def _digest(text: Any) -> bytes:
    if not isinstance(text, str) or len(text) != 16 or not set(text) <= set("0123456789abcdef"):
        raise ValueError("a digest has 16 digits")
    return bytes.fromhex(text)
