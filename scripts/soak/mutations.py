"""Frames that no peer of ours would send. Pure: what comes out depends on the generator alone.

A frame is *odd* when it is a message, if a strange one, after which a stream may go on, and *wild* when it is
whatever comes out if values are exchanged, types are confused, numbers are extreme, bits flip and ends are missing.
"""

from __future__ import annotations

import random
import struct
from typing import Any, Final

import msgpack

from protocol.codec import LENGTH_BYTES

Fields = dict[str, Any]

EXTREMES: Final[tuple[Any, ...]] = (
    0,
    1,
    -1,
    63,
    64,
    511,
    512,
    513,
    2**16,
    2**20,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**64 - 1,
    -(2**63),
    0.0,
    -0.0,
    1e-3,
    1e9,
    1e308,
    5e-324,
    float("nan"),
    float("inf"),
    float("-inf"),
)
CONFUSED: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    "",
    "x" * 1024,
    "x" * 1025,
    "\x00\x1b[2J\u202e",
    b"",
    b"\x00" * 16,
    b"\xff" * 17,
    [],
    [[]] * 65,
    [0] * 4097,
    {},
    {"a": {}},
    {1: 2},
    msgpack.ExtType(1, b"x"),
    msgpack.Timestamp(1),
)


def tensor(rng: random.Random, shape: tuple[int, ...], dtype: str = "f32") -> Fields:
    """Numbers of any kind, most of them tame."""
    count = 1
    for size in shape:
        count *= size
    if dtype == "i32":
        data = b"".join(struct.pack("<i", rng.randrange(200)) for _ in range(count))
    elif rng.random() < 0.8:
        data = struct.pack("<f", rng.uniform(-1, 1)) * count
    else:
        data = rng.randbytes(4 * count)
    return {"dtype": dtype, "shape": list(shape), "codec": "raw", "data": data}


def pack(fields: Fields) -> bytes:
    """A frame with this body."""
    body: bytes = msgpack.packb(fields)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def wild(rng: random.Random, fields: Fields, others: list[Fields]) -> bytes:
    """A frame of a message that has become something else. `others` are messages of other kinds."""
    kind = rng.randrange(10)
    if kind < 4:
        changed = dict(fields)
        for _ in range(rng.choice([1, 1, 2, 4])):
            _spoil(rng, changed, rng.choice(others))
        return pack(changed)
    frame = bytearray(pack(fields))
    if kind < 7:
        for _ in range(rng.choice([1, 1, 2, 8])):
            frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
    elif kind == 7:
        start = rng.randrange(len(frame))
        frame[start : start + rng.randrange(1, 9)] = rng.randbytes(rng.randrange(9))
    elif kind == 8:
        size = rng.choice([0, 1, 2**16, 2**22, 2**22 + 1, 2**26 + 1, 2**31, 2**32 - 1])
        frame[:LENGTH_BYTES] = size.to_bytes(LENGTH_BYTES, "big")
    else:
        cut = rng.randrange(len(frame))
        frame = frame[:cut] if rng.random() < 0.5 else bytearray(rng.randbytes(rng.randrange(1, 64)))
    return bytes(frame)


def _spoil(rng: random.Random, fields: Fields, other: Fields) -> None:
    """Change one value, here or further inside."""
    name = rng.choice(list(fields))
    kind = rng.randrange(6)
    if kind == 0:
        del fields[name]
        fields.setdefault("t", other.get("t", "ping"))
    elif kind == 1:
        fields[rng.choice(["extra", "t", "number", "next"])] = rng.choice(CONFUSED)
    elif kind == 2:
        fields[name] = rng.choice(EXTREMES)
    elif kind == 3:
        fields[name] = rng.choice(CONFUSED)
    elif kind == 4:
        fields[name] = rng.choice(list(other.values()))
    elif isinstance(fields[name], dict) and fields[name]:
        inner = dict(fields[name])
        _spoil(rng, inner, other)
        fields[name] = inner
    else:
        fields["t"] = other.get("t", "step")
