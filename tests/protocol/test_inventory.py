"""Inventories of stages, and the parcels that they name."""

from __future__ import annotations

import hashlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import Malformed, RemoteProtocolError, TooLarge
from protocol.inventory import Inventory, InventoryTensor, make_inventory, parse_inventory
from tests.protocol.samples import inventory

MIB = limits.PARCEL_BYTES


def parse(data: bytes) -> Inventory:
    """The inventory in `data`, asked for by its own digest, as a hostile peer may announce it."""
    domain = hashlib.sha256(b"swarm stage 1").digest()
    return parse_inventory(data, hashlib.sha256(domain + data).digest()[:8])


def hostile(tensors: Any = None, hashes: Any = None, version: Any = 1) -> bytes:
    """An inventory's bytes with other values in some places."""
    _, known, parcels = msgpack.unpackb(inventory().encode())
    return bytes(
        msgpack.packb([version, known if tensors is None else tensors, parcels if hashes is None else hashes])
    )


def hashes(*numbers: int) -> list[bytes]:
    """Made up."""
    return [bytes([number] * 32) for number in numbers]


def test_parcels_follow_one_another() -> None:
    """Each tensor is cut by itself, in the order of names; only a last one is short, and an empty tensor has none."""
    sizes = {"c": 2 * MIB + 5, "a": 7, "b": 0, "d": MIB}
    tensors = {name: InventoryTensor(name, "U8", (size,), size) for name, size in sizes.items()}
    made = make_inventory(
        {
            tensors["c"]: hashes(1, 2, 3),
            tensors["a"]: hashes(4),
            tensors["b"]: [],
            tensors["d"]: hashes(5),
        }
    )
    cut = [(parcel.hash[0], parcel.tensor, parcel.start, parcel.size) for parcel in made.parcels()]
    assert cut == [
        (4, "a", 0, 7),
        (1, "c", 0, MIB),
        (2, "c", MIB, MIB),
        (3, "c", 2 * MIB, 5),
        (5, "d", 0, MIB),
    ]
    assert made.size == sum(sizes.values())
    assert parse_inventory(made.encode(), made.digest) == made


def test_the_digest_binds_everything() -> None:
    """Another name, dtype, shape, size, form or parcel is another digest; an inventory goes by its own."""
    tensor = InventoryTensor("a", "F32", (2,), 8)
    variants = [
        tensor,
        InventoryTensor("b", "F32", (2,), 8),
        InventoryTensor("a", "I32", (2,), 8),
        InventoryTensor("a", "F32", (1, 2), 8),
        InventoryTensor("a", "F32", (2,), 7),
        InventoryTensor("a", "F32", (2,), 8, heads=1),
        InventoryTensor("a", "F32", (2,), 8, raised=True),
    ]
    made = [make_inventory({each: hashes(1)}) for each in variants]
    digests = {each.digest for each in [*made, make_inventory({tensor: hashes(2)})]}
    assert len(digests) == len(variants) + 1
    with pytest.raises(Malformed, match="does not hash"):
        parse_inventory(made[0].encode(), made[1].digest)


@pytest.mark.parametrize(
    "tensor",
    [
        ["", "F32", [2], 8, 0, False],
        ["a\n", "F32", [2], 8, 0, False],
        ["__metadata__", "F32", [2], 8, 0, False],
        ["a" * (limits.TENSOR_NAME_BYTES + 1), "F32", [2], 8, 0, False],
        ["a", "f32", [2], 8, 0, False],
        ["a", 'F32"', [2], 8, 0, False],
        ["a", "F" * 17, [2], 8, 0, False],
        ["a", "F32", [-1], 8, 0, False],
        ["a", "F32", [1] * (limits.TENSOR_DIMENSIONS + 1), 8, 0, False],
        ["a", "F32", 2, 8, 0, False],
        ["a", "F32", [2], -8, 0, False],
        ["a", "F32", [2], limits.STAGE_PARCELS * MIB + 1, 0, False],
        ["a", "F32", [2], 8, -1, False],
        ["a", "F32", [2], 8, 0, 1],
        ["a", "F32", [2], 8, 0],
        "a",
    ],
)
def test_tensors_that_make_no_sense(tensor: Any) -> None:
    """What no honest node sends is Malformed."""
    assert parse(hostile([["a", "F32", [2], 8, 0, False]], b"".join(hashes(1)))).tensors
    with pytest.raises(Malformed):
        parse(hostile([tensor], b"".join(hashes(1))))


@pytest.mark.parametrize("version", [0, 2, True, None])
def test_other_versions(version: Any) -> None:
    """Are not guessed at."""
    with pytest.raises(Malformed, match="version"):
        parse(hostile(version=version))


@pytest.mark.parametrize("given", [b"", bytes(31), bytes(32), bytes(96), "text", 3, None, []])
def test_as_many_hashes_as_parcels(given: Any) -> None:
    """Two are needed; a number in the place of bytes allocates nothing."""
    data = bytes(msgpack.packb([1, msgpack.unpackb(inventory().encode())[1], given]))
    with pytest.raises(Malformed):
        parse(data)


def test_tensors_are_in_order_and_once() -> None:
    """So one stage has one digest."""
    entries = [[name, "F32", [2], 8, 0, False] for name in ("b", "a")]
    both = b"".join(hashes(1, 2))
    assert parse(hostile(entries[::-1], both)).tensors
    for wrong in (entries, [entries[0], entries[0]]):
        with pytest.raises(Malformed, match="order"):
            parse(hostile(wrong, both))


def test_more_than_a_stage_may_have() -> None:
    """Tensors, parcels and bytes are counted before anything is made of them."""
    entry = ["a", "F32", [2], 8, 0, False]
    with pytest.raises(Malformed):
        parse(hostile([entry] * (limits.STAGE_TENSORS + 1)))
    with pytest.raises(TooLarge):
        parse(hostile(hashes=bytes(limits.INVENTORY_BYTES)))


@given(st.recursive(st.none() | st.integers(-9, 9) | st.binary() | st.text(), st.lists, max_leaves=20))
def test_inventories_keep_the_law(value: Any) -> None:
    """Whoever announces a digest chooses the bytes that hash to it; those are strangers' bytes too."""
    for data in (
        msgpack.packb(value),
        msgpack.packb([1, value, value]),
        msgpack.packb([1, [value], bytes(32)]),
    ):
        with pytest.raises(RemoteProtocolError):
            parse(data)
