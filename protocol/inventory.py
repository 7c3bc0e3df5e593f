"""What the weights of a stage consist of: its tensors as they are stored, in parcels that are named by their hashes.

The hash of an inventory's bytes is the stage digest, so whoever knows that can tell at once whether an inventory is
the right one, and of each parcel as it comes whether it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from protocol import limits
from protocol.errors import Malformed, RemoteProtocolError, TooLarge
from protocol.fields import FLAG, Rule, row, sequence, text, uint, wire
from protocol.unpack import unpack

STAGE_DOMAIN: Final = b"swarm stage 1"
VERSION: Final = 1  # of inventories
DIGEST_BYTES: Final = 8  # of a stage digest
_HASH_BYTES: Final = 32
# A list for each tensor and one for its shape, and those around them.
_CONTAINERS: Final = 2 * limits.STAGE_TENSORS + 2
_DTYPE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,15}", re.ASCII)
_TEXT: Final = text(limits.TENSOR_NAME_BYTES)


def _parse_name(value: Any) -> str:
    name: str = _TEXT.parse(value)
    # Safetensors files keep that one word for themselves.
    if not name or not name.isprintable() or name == "__metadata__":
        raise Malformed("that is no name of a tensor")
    return name


def _parse_dtype(value: Any) -> str:
    if not isinstance(value, str) or not _DTYPE.fullmatch(value):
        raise Malformed("that is no dtype")
    return value


@dataclass(frozen=True, slots=True)
class InventoryTensor:
    """A tensor as it is stored.

    dtype    as its format names it: "BF16", "Q4_K"
    heads    of so many heads each has its rows in pairs that turn together, as GGUF has them; 0: as safetensors does
    raised   one is added to each of its numbers
    """

    name: str = wire(Rule(_TEXT.pack, _parse_name))
    dtype: str = wire(Rule(lambda value: value, _parse_dtype))
    shape: tuple[int, ...] = wire(sequence(uint(1 << 40), limits.TENSOR_DIMENSIONS))
    size: int = wire(uint(limits.STAGE_PARCELS * limits.PARCEL_BYTES))
    heads: int = wire(uint(1 << 16), default=0)
    raised: bool = wire(FLAG, default=False)

    @property
    def parcels(self) -> int:
        """Of how many it consists."""
        return -(-self.size // limits.PARCEL_BYTES)


_TENSOR: Final = row(InventoryTensor)


@dataclass(frozen=True, slots=True)
class Parcel:
    """A part of a tensor that crosses the wire by itself: PARCEL_BYTES, the last of a tensor shorter."""

    hash: bytes  # SHA-256
    tensor: str
    start: int  # bytes from the beginning of the tensor
    size: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """The tensors of a stage, and the SHA-256 of each of their parcels, in this order."""

    tensors: tuple[InventoryTensor, ...]
    hashes: tuple[bytes, ...]

    def encode(self) -> bytes:
        """The canonical bytes, the same on every node that stores these tensors."""
        tensors = [_TENSOR.pack(tensor) for tensor in self.tensors]
        encoded: bytes = msgpack.packb([VERSION, tensors, b"".join(self.hashes)])
        return encoded

    @property
    def digest(self) -> bytes:
        """The stage digest: 8 bytes that name these weights on the wire."""
        return _digest(self.encode())

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors)

    def parcels(self) -> Iterator[Parcel]:
        """Every parcel, in order."""
        hashes = iter(self.hashes)
        for tensor in self.tensors:
            for start in range(0, tensor.size, limits.PARCEL_BYTES):
                size = min(limits.PARCEL_BYTES, tensor.size - start)
                yield Parcel(next(hashes), tensor.name, start, size)


def make_inventory(tensors: dict[InventoryTensor, list[bytes]]) -> Inventory:
    """Of tensors and the hashes of their parcels."""
    in_order = sorted(tensors, key=lambda tensor: tensor.name)
    return Inventory(tuple(in_order), tuple(digest for tensor in in_order for digest in tensors[tensor]))


def parse_inventory(data: bytes, digest: bytes) -> Inventory:
    """The inventory in `data`, which must hash to the stage digest.

    Raises: Malformed or TooLarge, the peer's fault.
    """
    if len(data) > limits.INVENTORY_BYTES:
        raise TooLarge("an inventory above the limit")
    if _digest(data) != digest:
        raise Malformed("the inventory does not hash to the stage digest")
    value = unpack(data, limits.STAGE_TENSORS, most_containers=_CONTAINERS)
    if not isinstance(value, list) or len(value) != 3 or type(value[0]) is not int or value[0] != VERSION:
        raise Malformed("not an inventory of a version that this side reads")
    _, entries, hashes = value
    if not isinstance(entries, list) or type(hashes) is not bytes:
        raise Malformed("an inventory is tensors and hashes")
    try:
        tensors = tuple(_TENSOR.parse(entry) for entry in entries)
    except RemoteProtocolError as error:
        raise Malformed(f"not an inventory: {error}") from error
    names = [tensor.name for tensor in tensors]
    if sorted(set(names)) != names:
        raise Malformed("the tensors of an inventory are in the order of their names, each once")
    if len(hashes) != _HASH_BYTES * sum(tensor.parcels for tensor in tensors):
        raise Malformed("an inventory has as many hashes as its tensors have parcels")
    split = range(0, len(hashes), _HASH_BYTES)
    return Inventory(tensors, tuple(hashes[start : start + _HASH_BYTES] for start in split))


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(STAGE_DOMAIN).digest() + data).digest()[:DIGEST_BYTES]
