"""The model that drafts for those who name none: the sibling of the one that ships, where that is what is asked."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Final

from protocol.errors import ConfigError, SwarmError
from swarm.branches import Model
from swarm.cli import local
from swarm.cli.demo_nodes import shipped_model

NAME: Final = "tiny-draft"


class Sibling:
    """Loads it beside what a person types. It is there when it is, and never waited for; nor is it missed."""

    def __init__(self, tokenizer: bytes) -> None:
        """tokenizer: the digest of the model's that is asked."""
        self.model: Model | None = None
        folder = folder_for(tokenizer)
        self._loading = threading.Thread(target=self._load, args=(folder,), daemon=True)
        if folder is not None:
            self._loading.start()

    def wait(self) -> None:
        """Until it is loaded, or turns out not to be."""
        if self._loading.ident is not None:
            self._loading.join()

    def _load(self, folder: Path) -> None:
        try:
            self.model = local.load_whole(str(folder))
        except SwarmError:
            return  # the node's half, or its kernels, are not installed


def folder_for(tokenizer: bytes) -> Path | None:
    """Where the sibling is, if its ids are those of this tokenizer."""
    try:
        folder = shipped_model().with_name(NAME)
        own = hashlib.sha256((folder / "tokenizer.json").read_bytes()).digest()
    except (ConfigError, OSError):
        return None
    return folder if own == tokenizer else None
