"""Hypothesis strategies for everything that crosses the wire, within the limits that its rules state."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol import limits
from protocol.candidates import Candidates, Want
from protocol.identity import Identity
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
from protocol.plain import plain
from protocol.records import Announcement, RoundTrip
from protocol.tensors import ITEM_BYTES, Tensor
from protocol.transport.addresses import Address
from tests.protocol.samples import IDENTITY


def texts(most_bytes: int = limits.TEXT_BYTES) -> st.SearchStrategy[str]:
    """Text that fits in `most_bytes` of UTF-8."""
    return st.text(st.characters(codec="utf-8"), max_size=min(most_bytes, 200) // 4)


def remarks(
    most_cells: int = limits.SAID_CELLS, most_bytes: int = limits.TEXT_BYTES
) -> st.SearchStrategy[str]:
    """What `texts` give, as it comes in: the rest comes in changed."""
    return texts(most_bytes).map(lambda text: plain(text, most_cells))


def uints(most: int) -> st.SearchStrategy[int]:
    """0..most, the ends more often than by chance."""
    return st.integers(0, most) | st.sampled_from([0, most])


def reals(least: float, most: float) -> st.SearchStrategy[float]:
    """Finite numbers."""
    return st.floats(least, most)


spans = st.tuples(uints(limits.STAGES), uints(limits.STAGES)).filter(lambda p: p[0] != p[1]).map(
    lambda p: Span(min(p), max(p))
)  # fmt: skip
session_ids = st.binary(min_size=16, max_size=16)
digests = st.binary(min_size=32, max_size=32)
stage_digests = st.binary(min_size=8, max_size=8)
numbers = uints(limits.STEP_NUMBER)
positions = uints(limits.SESSION_TOKENS)
stages = uints(limits.STAGES)
milliseconds = reals(0.0, 1e9)
dtypes = st.sampled_from(["f32", "f16", "bf16"])
numerics = st.builds(
    Numerics, st.from_regex(r"[a-z][a-z0-9]{0,11}", fullmatch=True), st.none() | st.integers(1, 999)
)
blobs = st.binary(max_size=100)
address = st.builds(
    Address.of, st.ip_addresses().map(str), st.integers(0, 65535), st.none() | st.just(IDENTITY.peer)
)
addresses = st.lists(address.map(str), max_size=limits.ADDRESSES).map(tuple)
lanes = st.builds(
    Lane, name=numbers, parent=st.none() | numbers, position=positions, rows=uints(limits.STEP_TOKENS)
)
hops = st.none() | st.builds(NextHop, peer=texts(limits.PEER_ID_BYTES), session=session_ids)


@st.composite
def tensors(draw: st.DrawFn, dtype: str | None = None) -> Tensor:
    """Any dtype, 1 to 3 dimensions, any bits, empty ones too."""
    kind = dtype or draw(st.sampled_from(sorted(ITEM_BYTES)))
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=3)))
    size = ITEM_BYTES[kind] * math.prod(shape)
    return Tensor(kind, shape, draw(st.binary(min_size=size, max_size=size)))


@st.composite
def candidates(draw: st.DrawFn) -> Candidates:
    """Rows of logits that a head may return; minus infinity is a logit."""
    rows, best, asked = draw(st.integers(0, 4)), draw(st.integers(0, 5)), draw(st.integers(0, 3))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    logit = finite | st.just(-math.inf)
    states = draw(st.none() | hnp.arrays(np.float32, (rows, 3), elements=finite))
    return Candidates(
        draw(hnp.arrays(np.int32, (rows, best), elements=st.integers(0, limits.VOCABULARY - 1))),
        draw(hnp.arrays(np.float32, (rows, best), elements=logit)),
        draw(hnp.arrays(np.float32, (rows,), elements=finite)),
        draw(hnp.arrays(np.float32, (rows, asked), elements=logit)),
        states,
    )


wants = st.builds(
    Want,
    kind=st.sampled_from(["nothing", "hidden", "candidates"]),
    every=st.booleans(),
    top=uints(limits.VOCABULARY),
    ids=st.lists(uints(limits.VOCABULARY - 1), max_size=20).map(tuple),
    temperature=reals(1e-3, 1e3),
    states=st.booleans(),
)

FIELDS: dict[type[Message], dict[str, st.SearchStrategy[Any]]] = {
    Open: {
        "session": session_ids,
        "model": digests,
        "span": spans,
        "max_tokens": positions,
        "next": hops,
        "bridged": st.booleans(),
        "fork": st.none() | st.builds(Fork, session=session_ids, position=positions, after=numbers),
        "reuse": st.booleans(),
    },
    Opened: {"dtype": dtypes, "numerics": numerics, "goes_back": st.booleans()},
    Refused: {
        "code": st.sampled_from(["busy", "model", "span", "capacity", "draining", "fork"]),
        "reason": remarks(),
        "retry_after_s": reals(0.0, 3600.0),
    },
    Attach: {"session": session_ids, "stage": st.integers(0, limits.STAGES)},
    Step: {
        "number": numbers,
        "position": positions,
        "inputs": tensors(),
        "want": wants,
        "fill_until": st.none() | stages,
        "lanes": st.lists(lanes, max_size=4).map(tuple),
        "ended": st.lists(numbers, max_size=4).map(tuple),
    },
    Known: {
        "number": numbers,
        "position": positions,
        "rows": uints(limits.STEP_TOKENS),
        "mark": digests,
        "inputs": st.none() | tensors(),
        "want": wants,
    },
    Unknown: {"number": numbers},
    Instead: {"number": numbers},
    Output: {
        "number": numbers,
        "position": positions,
        "hidden": st.none() | tensors(),
        "candidates": st.none() | candidates(),
    },
    Ack: {"number": numbers, "queue_ms": milliseconds, "compute_ms": milliseconds},
    Relink: {"next": hops, "bridged": st.booleans(), "live_from": numbers, "fill_until": stages},
    LinkDown: {"next": session_ids, "reason": remarks()},
    Ping: {"nonce": numbers},
    Pong: {"nonce": numbers, "received": numbers, "computed": numbers},
    Close: {},
    Error: {
        "code": remarks(64, 64),
        "message": remarks(),
        "elsewhere": st.booleans(),
        "retry_after_s": reals(0.0, 3600.0),
    },
    MapRequest: {"records": st.lists(blobs, max_size=20).map(tuple)},
    MapReply: {"records": st.lists(blobs, max_size=20).map(tuple)},
    DialRequest: {"peer": texts(limits.PEER_ID_BYTES), "port": st.integers(0, 65_535)},
    DialReply: {"host": remarks(), "reached": st.booleans(), "why": remarks()},
    ManifestRequest: {"model": digests},
    ManifestReply: {"manifest": blobs},
    FileRequest: {"name": texts(limits.FILE_NAME_BYTES)},
    FileChunk: {"data": blobs | st.builds(bytes, st.just(limits.FILE_CHUNK_BYTES)), "last": st.booleans()},
    HoldingsRequest: {"model": digests},
    HoldingsReply: {"stages": st.lists(st.none() | stage_digests, max_size=20).map(tuple)},
    InventoryRequest: {"stage": stage_digests},
    InventoryReply: {"inventory": blobs},
    ParcelRequest: {"parcel": digests},
    ParcelReply: {"data": blobs | st.builds(bytes, st.just(limits.PARCEL_BYTES))},
}
messages: st.SearchStrategy[Message] = st.one_of(*(st.builds(cls, **kw) for cls, kw in FIELDS.items()))


@st.composite
def announcements(draw: st.DrawFn, identity: Identity, now: float) -> Announcement:
    """What `identity` may say at `now`."""
    blocks = draw(st.integers(0, 40))
    start = draw(st.integers(0, blocks + 1))
    span = Span(start, draw(st.integers(start + 1, blocks + 2)))
    per_step = reals(0.0, 1e6)
    issued = now + draw(reals(-limits.RECORD_LIFE_S / 2, limits.CLOCK_SKEW_S - 1))
    return Announcement(
        peer=identity.peer,
        addrs=draw(addresses),
        model=draw(remarks(limits.NAME_CELLS, 256)),
        digest=draw(digests),
        blocks=blocks,
        hidden_size=draw(uints(limits.HIDDEN_SIZE)),
        span=span,
        dtype=draw(dtypes),
        numerics=draw(numerics),
        weights=tuple(
            draw(st.lists(st.binary(min_size=8, max_size=8), min_size=len(span), max_size=len(span)))
        ),
        state=draw(st.sampled_from(["joining", "serving", "gone"])),
        decode_ms=draw(per_step),
        prefill_ms=draw(per_step),
        head_ms=draw(per_step),
        queue_ms=draw(per_step),
        kv_tokens=draw(uints(1 << 40)),
        kv_tokens_total=draw(uints(1 << 40)),
        links=tuple(
            draw(
                st.lists(
                    st.builds(RoundTrip, peer=texts(limits.PEER_ID_BYTES), rtt_ms=reals(0.0, 60_000.0)),
                    max_size=limits.LINKS,
                )
            )
        ),
        sequence=draw(uints(1 << 53)),
        issued=issued,
        expires=max(now, issued) + draw(reals(1.0, limits.RECORD_LIFE_S / 2 - 1)),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Manifests that a node may have."""
    names = st.text(st.sampled_from("abcXYZ019_-é. "), min_size=1, max_size=30).filter(lambda n: n[0] != ".")
    files = draw(st.lists(names, max_size=limits.MODEL_FILES, unique=True))
    most = limits.MODEL_FILES_BYTES // limits.MODEL_FILES
    return Manifest(
        draw(uints(limits.STAGES - 2)),
        draw(uints(limits.HIDDEN_SIZE)),
        draw(uints(limits.VOCABULARY)),
        draw(positions),
        draw(digests),
        tuple(ManifestFile(name, draw(uints(most)), draw(digests)) for name in sorted(files)),
    )
