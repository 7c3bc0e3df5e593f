"""The folder of fetched models: what is in it, what makes room in it, and what is removed from it.

A folder for each model, named by its digest, which clients use too: its small files, and in `stages` its weights.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from node.store.stage import INVENTORY, PART, WHOLE, StagePaths, stages_in
from protocol.errors import ConfigError
from protocol.files import read_small, write_whole
from protocol.model import Manifest
from protocol.plain import plain

MODELS: Final = "models"  # where clients keep the small files too
_STAGES: Final = "stages"
_NAME: Final = "name.txt"
_MANIFEST: Final = "manifest.msgpack"
_NAME_BYTES: Final = 1024
# What is left of the disk for everything else.
_SPARED_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Kept:
    """The weights of one stage on this disk.

    used_at: seconds since the Unix epoch when a node last began to use it.
    """

    model: bytes
    inventory: Path
    size_bytes: int
    used_at: float


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A model on this disk: `size_bytes` with its small files."""

    digest: bytes
    name: str
    size_bytes: int
    used_at: float
    stages: int
    in_use: bool


class Cache:
    """All fetched models under one folder, and how many bytes their weights may take; None: what the disk has."""

    def __init__(self, folder: Path, most_bytes: int | None = None) -> None:
        self.folder = folder
        self._most_bytes = most_bytes

    def model_folder(self, digest: bytes) -> Path:
        """Where the small files of a model are."""
        return self.folder / MODELS / digest.hex()

    def stage(self, model: bytes, stage: int, digest: bytes) -> StagePaths:
        """Where the weights of a stage are."""
        return StagePaths(self.model_folder(model) / _STAGES, stage, digest)

    def size(self, paths: StagePaths) -> int:
        """What a stage takes of the disk now; 0 if it is not there."""
        return _size(paths(WHOLE)) + _size(paths(PART))

    def keep_files(self, name: str, manifest: Manifest, contents: Mapping[str, bytes]) -> Path:
        """Write the small files of a model, each whole; its folder. Raises: ConfigError, if the disk takes none."""
        folder = self.model_folder(manifest.digest)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for file, data in [*contents.items(), (_MANIFEST, manifest.encode()), (_NAME, name.encode())]:
                write_whole(folder / file, data)
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be written: {error.strerror or error}; --cache-dir names another place"
            ) from error
        return folder

    def models(self) -> list[KeptModel]:
        """What is here, what was used last first."""
        found = [self._describe(folder) for folder in self._folders()]
        return sorted(found, key=lambda model: -model.used_at)

    def remove(self, model: KeptModel) -> None:
        """Remove a model from the disk. Raises: ConfigError, if a node uses it."""
        folder = self.model_folder(model.digest)
        for inventory in stages_in(folder / _STAGES):
            if not _remove_stage(inventory):
                raise ConfigError(f"{model.name} is in use: a node on this machine serves it")
        shutil.rmtree(folder, ignore_errors=True)

    def make_room(self, new_bytes: int, keep: Iterable[Path]) -> list[Path]:
        """Have room for so many more bytes: weights that no node uses go, those first that were used longest ago.

        keep: inventories of stages that stay whatever happens. Gives those that went.
        Raises: ConfigError, if there is not enough.
        """
        if new_bytes <= 0:
            return []
        kept = [stage for folder in self._folders() for stage in _stages(folder)]
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            free_bytes = shutil.disk_usage(self.folder).free - _SPARED_BYTES
        except OSError as error:
            raise ConfigError(f"{self.folder} cannot be written: {error.strerror or error}") from error
        missing_bytes = new_bytes - free_bytes
        if self._most_bytes is not None:
            used_bytes = sum(stage.size_bytes for stage in kept)
            missing_bytes = max(missing_bytes, used_bytes + new_bytes - self._most_bytes)
        stays = set(keep)
        free = [s for s in kept if s.inventory not in stays and not _is_used(s.inventory)]
        gone = going(free, missing_bytes)
        if gone is None:
            lack = missing_bytes - sum(stage.size_bytes for stage in free)
            raise ConfigError(
                f"the weights take {new_bytes / 2**20:,.0f} MiB, for which {self.folder} lacks {lack / 2**20:,.0f}: "
                "see --cache-size, --cache-dir, --layers and `swarm models`"
            )
        return [stage.inventory for stage in gone if _remove_stage(stage.inventory)]

    def _folders(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            for folder in sorted((self.folder / MODELS).iterdir()):
                if folder.is_dir() and _digest(folder) is not None:
                    yield folder

    def _describe(self, folder: Path) -> KeptModel:
        digest = _digest(folder)
        assert digest is not None
        stages = _stages(folder)
        small = sum(_size(path) for path in folder.glob("*") if path.is_file())
        used_at = max([stage.used_at for stage in stages], default=folder.stat().st_mtime)
        return KeptModel(
            digest,
            _name(folder) or digest.hex()[:12],
            small + sum(stage.size_bytes for stage in stages),
            used_at,
            len(stages),
            any(_is_used(stage.inventory) for stage in stages),
        )


def default_folder() -> Path:
    """Where clients and nodes keep what they fetch, unless they are told otherwise."""
    home = os.environ.get("SWARM_HOME")
    return Path(home) / "cache" if home else platformdirs.user_cache_path("swarm")


def choose(models: Sequence[KeptModel], name: str) -> KeptModel:
    """The model that is called so, or whose digest begins so. Raises: ConfigError."""

    def is_called(model: KeptModel) -> bool:
        hexadecimal = len(name) >= 4 and model.digest.hex().startswith(name.lower())
        return hexadecimal or name in (model.name, model.name.rsplit("/", 1)[-1])

    found = [model for model in models if is_called(model)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(f"no model {name!r} is kept here; `swarm models` lists them")
    digests = ", ".join(model.digest.hex()[:12] for model in found)
    raise ConfigError(f"several models are called {name!r}: name one by its digest, {digests}")


def going(kept: Iterable[Kept], missing_bytes: int) -> list[Kept] | None:
    """Those that make so much room, the least recently used; None if all together do not."""
    found: list[Kept] = []
    for stage in sorted(kept, key=lambda stage: stage.used_at):
        if missing_bytes <= 0:
            break
        found.append(stage)
        missing_bytes -= stage.size_bytes
    return found if missing_bytes <= 0 else None


def _stages(folder: Path) -> list[Kept]:
    digest = _digest(folder)
    assert digest is not None
    found = []
    for inventory in stages_in(folder / _STAGES):
        with contextlib.suppress(OSError):
            size = sum(_size(inventory.with_suffix(suffix)) for suffix in (WHOLE, PART, INVENTORY))
            found.append(Kept(digest, inventory, size, inventory.stat().st_mtime))
    return found


def _remove_stage(inventory: Path) -> bool:
    """Whether it is gone; not while a node uses it."""
    try:
        with inventory.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for suffix in (WHOLE, PART, INVENTORY):
                inventory.with_suffix(suffix).unlink(missing_ok=True)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _is_used(inventory: Path) -> bool:
    try:
        with inventory.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _size(path: Path) -> int:
    """What a file takes of the disk: of one that is not whole, what was written."""
    try:
        return os.stat(path).st_blocks * 512
    except OSError:
        return 0


def _digest(folder: Path) -> bytes | None:
    try:
        digest = bytes.fromhex(folder.name)
    except ValueError:
        return None
    return digest if len(digest) == 32 else None


def _name(folder: Path) -> str:
    try:
        return plain(read_small(folder / _NAME, _NAME_BYTES).decode(errors="replace"))
    except OSError:
        return ""
