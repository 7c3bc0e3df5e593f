"""Fixed values of every kind that crosses the wire; `golden/` holds their bytes."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.candidates import Candidates, Want
from protocol.identity import Identity
from protocol.inventory import Inventory, InventoryTensor, make_inventory
from protocol.messages import (
    Ack,
    Attach,
    Close,
    DialReply,
    DialRequest,
    Error,
    FileChunk,
    FileRequest,
    Fork,
    HoldingsReply,
    HoldingsRequest,
    Instead,
    InventoryReply,
    InventoryRequest,
    Known,
    Lane,
    LinkDown,
    ManifestReply,
    ManifestRequest,
    MapReply,
    MapRequest,
    Message,
    NextHop,
    Open,
    Opened,
    Output,
    ParcelReply,
    ParcelRequest,
    Ping,
    Pong,
    Refused,
    Relink,
    Step,
    Unknown,
)
from protocol.model import Manifest, ManifestFile, Span
from protocol.numerics import Numerics
from protocol.records import Announcement, RoundTrip
from protocol.tensors import Tensor, from_numpy

IDENTITY = Identity(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = Identity(Ed25519PrivateKey.from_private_bytes(bytes(range(32, 64))))
NOW = 1_800_000_000.0  # seconds since the Unix epoch

SESSION = bytes(range(16))
NEXT_SESSION = bytes(range(16, 32))
DIGEST = bytes(range(32))
HOP = NextHop(OTHER.peer, NEXT_SESSION)


def candidates() -> Candidates:
    """Two rows of two candidates, and the logit of one id that was asked for."""
    return Candidates(
        np.array([[7, 9], [3, 1]], np.int32),
        np.array([[2.0, 1.0], [0.5, -0.5]], np.float32),
        np.array([3.0, 2.5], np.float32),
        np.array([[0.25], [-1.0]], np.float32),
    )


def manifest() -> Manifest:
    """A model of two blocks with two files."""
    files = {"config.json": b'{"hidden_size": 64}', "tokenizer.json": b"{}"}
    return Manifest(
        2,
        64,
        256,
        512,
        hashlib.sha256(b"a\nb").digest(),
        tuple(ManifestFile(name, len(data), hashlib.sha256(data).digest()) for name, data in files.items()),
    )


def inventory() -> Inventory:
    """A norm, and a matrix as GGUF has it."""
    norm = InventoryTensor("input_layernorm.weight", "BF16", (64,), 128)
    matrix = InventoryTensor("self_attn.q_proj.weight", "Q4_K", (64, 256), 9216, heads=4)
    return make_inventory({matrix: [bytes(range(32, 64))], norm: [DIGEST]})


def announcement(**changes: Any) -> Announcement:
    """What IDENTITY's node says, one second before NOW."""
    said: dict[str, Any] = {
        "peer": IDENTITY.peer,
        "addrs": ("/ip4/192.0.2.1/udp/4001/quic-v1",),
        "model": "tiny",
        "digest": DIGEST,
        "blocks": 2,
        "hidden_size": 64,
        "span": Span(0, 2),
        "dtype": "f32",
        "numerics": Numerics("int8", 1),
        "weights": (b"weights0", b"weights1"),
        "state": "serving",
        "decode_ms": 1.5,
        "prefill_ms": 0.25,
        "head_ms": 0.0,
        "queue_ms": 2.0,
        "kv_tokens": 1000,
        "kv_tokens_total": 4096,
        "links": (RoundTrip(OTHER.peer, 12.5),),
        "sequence": 5,
        "issued": NOW - 1.0,
        "expires": NOW + 59.0,
    }
    return Announcement(**(said | changes))


# Two values of the classes whose optional fields matter; the first word of each name is the message's tag.
MESSAGES: dict[str, Message] = {
    "open": Open(SESSION, DIGEST, Span(0, 3), 2048, HOP),
    "open (last hop)": Open(SESSION, DIGEST, Span(3, 6), 2048, None, bridged=True, reuse=False),
    "open (fork)": Open(SESSION, DIGEST, Span(3, 6), 2048, None, fork=Fork(NEXT_SESSION, 300, 7)),
    "opened": Opened("bf16", Numerics("bf16"), goes_back=True),
    "refused": Refused("busy", "all full", 2.5),
    "attach": Attach(SESSION, 3),
    "step": Step(1, 0, from_numpy(np.array([5, 6], np.int32)), Want(top=2, ids=(9,), temperature=0.5)),
    "step (fill)": Step(
        300, 70_000, Tensor("bf16", (1, 2), bytes.fromhex("803f 0040")), Want("nothing"), fill_until=3
    ),
    "step (lanes)": Step(
        301,
        7,
        from_numpy(np.array([5, 6, 7], np.int32)),
        Want(top=8),
        lanes=(Lane(0, None, 7, 1), Lane(70_000, 3, 8, 2)),
        ended=(2, 300),
    ),
    "known": Known(1, 0, 128, DIGEST, None, Want("nothing")),
    "known (and a row)": Known(
        1, 0, 128, DIGEST, Tensor("bf16", (1, 2), bytes.fromhex("803f 0040")), Want(top=2, temperature=0.5)
    ),
    "unknown": Unknown(300),
    "instead": Instead(300),
    "output": Output(1, 1, candidates=candidates()),
    "output (hidden)": Output(1, 0, hidden=Tensor("f16", (1, 2), bytes.fromhex("003c 0040"))),
    "ack": Ack(1, 0.5, 12.25),
    "relink": Relink(HOP, False, 2, 6),
    "relink (bridged)": Relink(None, True, 0, 6),
    "link_down": LinkDown(NEXT_SESSION, "reset"),
    "ping": Ping(65_536),
    "pong": Pong(65_536, 8, 7),
    "close": Close(),
    "error": Error("busy", "no pages left", True, 1.5),
    "map?": MapRequest((b"one", b"two")),
    "map": MapReply((b"one",)),
    "dial?": DialRequest("12D3KooWpeer", 4001),
    "dialled": DialReply("192.0.2.7", False, "no answer in time"),
    "manifest?": ManifestRequest(DIGEST),
    "manifest": ManifestReply(b"manifest"),
    "file?": FileRequest("config.json"),
    "file": FileChunk(b"{}", True),
    "holdings?": HoldingsRequest(DIGEST),
    "holdings": HoldingsReply((b"weights0", None)),
    "inventory?": InventoryRequest(b"weights0"),
    "inventory": InventoryReply(b"inventory"),
    "parcel?": ParcelRequest(DIGEST),
    "parcel": ParcelReply(b"parcel"),
}


def same(a: Any, b: Any) -> bool:
    """Whether two messages (or parts of them) say the same; arrays and views by their contents."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (a.dtype, a.shape, bytes(a.data)) == (b.dtype, b.shape, bytes(b.data))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if type(a) is not type(b):
        return False
    if isinstance(a, Message | Candidates):
        return all(same(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)
    return bool(a == b)


_P = 2**255 - 19
_EIGHTH = (
    0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
)
# The encodings, canonical or not, of the eight points of Ed25519 whose eighth multiple is nothing.
SMALL_ORDER = tuple(
    (y | sign << 255).to_bytes(32, "little") for y in (0, 1, _P - 1, _P, _P + 1, *_EIGHTH) for sign in (0, 1)
)
