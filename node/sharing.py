"""What this node gives of its weights to peers: at once what it serves, and what else it has when that is read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from node.backend import Model
from node.presence.giver import Giver
from node.presence.shelf import Shelf
from node.presence.upload import Upload
from protocol.errors import EngineError
from protocol.inventory import Inventory
from protocol.model import Span
from protocol.transport.base import Transport

logger = logging.getLogger(__name__)

# While sessions are computed, weights that nobody has asked for are not read; looked at again after this.
_PAUSE_S: Final = 1.0


class Sharing:
    """Gives the stages of one model that are on this machine."""

    def __init__(self, model: Model, transport: Transport, upload: Upload) -> None:
        self._model = model
        self._shelf = Shelf(model.manifest.digest, model.manifest.stages)
        self._giver = Giver(self._shelf, upload)
        self._giver.serve(transport)

    async def put(self, span: Span) -> None:
        """Give these stages, whose inventories are known, from now on."""
        for stage in span:
            await self._put(stage)

    async def put_the_rest(self, is_busy: Callable[[], bool]) -> None:
        """Give whatever else of the model is on this machine, stage by stage, as each is read."""
        for stage in range(self._model.manifest.stages):
            try:
                if self._shelf.stages[stage] is None and await trio.to_thread.run_sync(
                    self._model.has, stage
                ):
                    while is_busy():  # noqa: ASYNC110 - time does it
                        await trio.sleep(_PAUSE_S)
                    await self._put(stage)
            except EngineError as error:
                logger.info("stage %d cannot be given: %s", stage, error)

    async def _put(self, stage: int) -> None:
        # A node that is told to leave does not wait for it. The type stubs are of an older trio.
        inventory, starts = await trio.to_thread.run_sync(self._read, stage, abandon_on_cancel=True)  # type: ignore[call-arg, unused-ignore]
        self._shelf.put(stage, inventory, starts)

    def _read(self, stage: int) -> tuple[Inventory, dict[str, tuple[Path, int]]]:
        places = self._model.stored(stage)
        starts = {name: (path, tensor.start) for name, (path, tensor) in places.items()}
        return self._model.inventory(stage), starts
