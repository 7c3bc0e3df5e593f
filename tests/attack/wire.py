"""Messages as an attacker builds them: the one place to change when a message gets or loses a field."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from protocol.messages import Attach, NextHop, Open, Relink
from protocol.model import Span
from protocol.records import Announcement
from protocol.tensors import Tensor, from_numpy

T = TypeVar("T")


def next_hop(peer: str, addrs: Sequence[str] = (), session: bytes | None = None) -> NextHop:
    """Another hop; without `session`, of one that nobody has opened."""
    return _of_known(NextHop, peer=peer, addrs=tuple(addrs), session=session or secrets.token_bytes(16))


def attach(session: bytes, stage: int) -> Attach:
    """To the session `session`, whose span begins at `stage`."""
    return _of_known(Attach, session=session, stage=stage)


def opening(
    node: Announcement,
    span: Span,
    max_tokens: int,
    *,
    session: bytes,
    next: NextHop | None = None,
    bridged: bool = False,
) -> Open:
    """A session at `node`."""
    return Open(session, node.digest, span, max_tokens, next, bridged)


def relink(next: NextHop | None, *, bridged: bool = False, live_from: int = 0, fill_until: int = 0) -> Relink:
    """To another next hop."""
    return Relink(next, bridged, live_from, fill_until)


def rows(node: Announcement, span: Span, count: int) -> Tensor:
    """Inputs of `count` rows that the span takes."""
    if span.start == 0:
        return from_numpy(np.arange(5, 5 + count, dtype=np.int32) % 200)
    return from_numpy(np.full((count, node.hidden_size), 0.25, np.float32))


def _of_known(cls: type[T], **known: Any) -> T:
    return cls(**{field.name: known[field.name] for field in dataclasses.fields(cls)})  # type: ignore[arg-type]
