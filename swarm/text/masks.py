"""The client's end of the mask process: which ids a grammar leaves at a place."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from protocol.errors import Malformed
from swarm.text.process import Bounds, TextProcess
from swarm.text.wire import MIB, pack_ids

# A grammar that takes more of either is refused; the largest vocabularies take a second, and half of the memory.
BOUNDS = Bounds(memory_bytes=1024 * MIB, load_s=20, ask_s=5)


@dataclass(frozen=True, slots=True)
class Rules:
    """A grammar over a vocabulary, and the ids that end a text of it."""

    kind: str
    source: str
    vocab_size: int
    eos: tuple[int, ...]

    @property
    def mask_bytes(self) -> int:
        """Of a mask: whole words of 32 bits."""
        return -(-self.vocab_size // 32) * 4

    @property
    def name(self) -> bytes:
        """What it is called between here and the mask process."""
        said = (self.kind, self.source, self.vocab_size, self.eos)
        return hashlib.sha256(repr(said).encode()).digest()


@dataclass(frozen=True, slots=True)
class Left:
    """What may follow at a place: a bit for each id, and whether the text may end there."""

    bits: bytes
    whole: bool


def mask_process() -> TextProcess:
    """A process that starts when the first answer by a grammar is asked for."""
    return TextProcess(BOUNDS, "mask_worker", idle=True)


class Masks:
    """The masks of one grammar, asked of the process.

    What a grammar makes of it is bounded in time, memory and size. Raises: ConfigError, for a bad grammar; Malformed
    or TooLarge, where that is not known.
    """

    def __init__(self, process: TextProcess, rules: Rules) -> None:
        self._process = process
        self._rules = rules
        self._name = rules.name

    async def after(self, places: Sequence[Sequence[int]]) -> list[Left]:
        """What may follow each of these answers, as far as they go."""
        request: dict[str, Any] = {
            "do": "mask",
            "grammar": self._name,
            "places": [pack_ids(place) for place in places],
            "mask_bytes": self._rules.mask_bytes,
        }
        reply = await self._process.ask(request)
        if reply.get("unknown"):  # another process has taken the place of the one that knew it
            rules = self._rules
            said = {"kind": rules.kind, "source": rules.source}
            over = {"vocab_size": rules.vocab_size, "eos": pack_ids(rules.eos)}
            reply = await self._process.ask({**request, **said, **over})
        return self._parsed(reply, len(places))

    def _parsed(self, reply: dict[str, Any], count: int) -> list[Left]:
        masks, whole = reply.get("masks"), reply.get("whole")
        size = self._rules.mask_bytes
        if not isinstance(masks, bytes) or not isinstance(whole, bytes):
            raise Malformed("the mask process gave no masks")
        if len(masks) != size * count or len(whole) != count:
            raise Malformed("the mask process gave masks of another vocabulary")
        return [Left(masks[at * size : (at + 1) * size], bool(whole[at])) for at in range(count)]
