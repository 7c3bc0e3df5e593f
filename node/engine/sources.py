"""Where a checkpoint's files come from: a folder, or the Hugging Face hub. Foreign errors end here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, Protocol

from node.engine import shards
from protocol.errors import BadCheckpoint, ConfigError

HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# For the hub to answer, or to send something more of a file.
_WITHIN_S: Final = 10.0
_RANGE: Final = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", re.ASCII)
_PARTIAL: Final = 206


class Source(Protocol):
    """A checkpoint's files by name."""

    @property
    def name(self) -> str:
        """Short, to show to people."""

    def find(self, file: str) -> Path | None:
        """The file on this machine, fetched if need be; None if the checkpoint has no such file."""

    def has(self, file: str) -> bool:
        """Whether the file is on this machine already."""

    def files(self) -> list[str]:
        """The names of all files; of a repository that cannot be reached, of those that are on this machine.

        Raises: ConfigError.
        """

    def part(self, file: str, start: int, stop: int) -> tuple[bytes, int]:
        """These bytes of a file, or as many of them as there are, and the size of the whole, which is not fetched.

        Raises: BadCheckpoint, if there is no such file; ConfigError.
        """

    def tensor_names(self, file: str) -> list[str]:
        """The tensors in a safetensors file, without fetching its weights; none if there is no such file.

        Raises: BadCheckpoint, ConfigError.
        """


class FolderSource:
    """A folder on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.resolve().name

    def find(self, file: str) -> Path | None:
        """See `Source`."""
        path = self.folder / file
        return path if path.is_file() else None

    def has(self, file: str) -> bool:
        """See `Source`."""
        return self.find(file) is not None

    def files(self) -> list[str]:
        """See `Source`."""
        return [path.name for path in self.folder.iterdir() if path.is_file()]

    def part(self, file: str, start: int, stop: int) -> tuple[bytes, int]:
        """See `Source`."""
        return _read_part(self.folder / file, start, stop)

    def tensor_names(self, file: str) -> list[str]:
        """See `Source`."""
        path = self.find(file)
        return list(shards.read_header(path)) if path is not None else []


class HubSource:
    """A repository on the hub; files are kept in huggingface_hub's cache and are all of one revision."""

    def __init__(self, repo: str, cache_dir: str | None) -> None:
        from huggingface_hub.utils.logging import set_verbosity_error

        set_verbosity_error()  # each of its attempts is a warning otherwise; what comes of them is one line of ours
        self.name = repo
        self._cache_dir = cache_dir
        self._revision: str | None = None

    def find(self, file: str) -> Path | None:
        """See `Source`. Raises: ConfigError, one line, if the hub cannot give it."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
        )

        try:
            found = hf_hub_download(self.name, file, revision=self._revision, cache_dir=self._cache_dir)
        except GatedRepoError as error:
            reason = "it is gated: accept its licence on the hub and log in with `hf auth login`"
            raise ConfigError(f"{self.name} cannot be fetched: {reason}") from error
        except RepositoryNotFoundError as error:
            raise ConfigError(f"{self.name}: neither a folder here nor a public model on the hub") from error
        except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
            if self._revision is not None and self._is_offline():
                return None
            reason = f"{file} is not in the cache and the hub cannot be reached"
            raise ConfigError(f"{self.name}: no folder of that name, and {reason}") from error
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise ConfigError(f"{self.name} cannot be fetched: {first_line(error)}") from error
        path = Path(found)
        # Every file after the first comes from the commit that the first came from.
        self._revision = self._revision or path.parents[file.count("/")].name
        return path

    def has(self, file: str) -> bool:
        """See `Source`."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.name, file, cache_dir=self._cache_dir, revision=self._revision)
        return isinstance(found, str)

    def tensor_names(self, file: str) -> list[str]:
        """See `Source`; asks the hub for the header alone unless the file is here already."""
        from huggingface_hub import HfApi, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, SafetensorsParsingError

        here = try_to_load_from_cache(self.name, file, cache_dir=self._cache_dir, revision=self._revision)
        if isinstance(here, str):
            return list(shards.read_header(Path(here)))
        try:
            metadata = HfApi().parse_safetensors_file_metadata(self.name, file, revision=self._revision)
        except EntryNotFoundError:
            return []
        except SafetensorsParsingError as error:
            raise BadCheckpoint(f"{self.name}/{file}: corrupt safetensors header") from error
        except (HfHubHTTPError, OSError) as error:
            if self._revision is not None and self._is_offline():
                return []
            raise ConfigError(f"{self.name} cannot be fetched: {first_line(error)}") from error
        return list(metadata.tensors)

    def files(self) -> list[str]:
        """See `Source`."""
        from huggingface_hub import snapshot_download

        try:
            return self._listed()
        except ConfigError:
            try:
                folder = Path(snapshot_download(self.name, cache_dir=self._cache_dir, local_files_only=True))
            except (OSError, ValueError):
                folder = None
            if folder is None:
                raise
        self._revision = self._revision or folder.name
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    def _listed(self) -> list[str]:
        from huggingface_hub import HfApi

        try:
            about = HfApi().model_info(self.name, revision=self._revision, timeout=_WITHIN_S)
        except Exception as error:  # of whatever the network is made of there
            raise ConfigError(f"{self.name} cannot be fetched: {first_line(error)}") from error
        self._revision = self._revision or about.sha
        return [file.rfilename for file in about.siblings or ()]

    def part(self, file: str, start: int, stop: int) -> tuple[bytes, int]:
        """See `Source`."""
        from huggingface_hub import get_session, get_token, hf_hub_url, hf_raise_for_status
        from huggingface_hub.errors import EntryNotFoundError

        if self.has(file) and (here := self.find(file)) is not None:
            return _read_part(here, start, stop)
        url = hf_hub_url(self.name, file, revision=self._revision)
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if token := get_token():
            headers["Authorization"] = f"Bearer {token}"
        try:
            with get_session().stream("GET", url, headers=headers, timeout=_WITHIN_S) as response:
                hf_raise_for_status(response)
                size = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
                if response.status_code != _PARTIAL or size is None or int(size[1]) != start:
                    raise OSError("the hub gives no parts of files")
                found = bytearray()
                for piece in response.iter_bytes():
                    found += piece
                    if len(found) >= stop - start:
                        break
        except EntryNotFoundError as error:
            raise BadCheckpoint(f"{self.name}: {file} is missing") from error
        except Exception as error:  # of whatever the network is made of there
            raise ConfigError(f"{self.name} cannot be fetched: {first_line(error)}") from error
        return bytes(found[: stop - start]), int(size[2])

    @staticmethod
    def _is_offline() -> bool:
        from huggingface_hub.constants import is_offline_mode

        return is_offline_mode()


def open_source(model: str, cache_dir: str | None) -> Source:
    """The source that `model` names: a folder, or else a hub id. Raises: ConfigError."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return FolderSource(folder)
    if folder.exists():
        wanted = "a folder with config.json, a GGUF file, or a hub id like org/name"
        raise ConfigError(f"{model} is a file; a model is {wanted}")
    if HUB_ID.fullmatch(model):
        return HubSource(model, cache_dir)
    raise ConfigError(f"{model}: no such folder, and not a hub id like org/name")


def _read_part(path: Path, start: int, stop: int) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read: {error.strerror}") from error


def is_hub_id(model: str) -> bool:
    """Whether this may name a model of the hub, or a file of one."""
    repository = "/".join(model.partition(":")[0].split("/", 2)[:2])
    return HUB_ID.fullmatch(repository) is not None


def first_line(error: Exception) -> str:
    """An exception in one line, for a message to people."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
