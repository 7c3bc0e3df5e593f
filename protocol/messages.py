"""Every message there is, one class each.

A class attribute `tag` names the message on the wire; each field says by its rule what it may hold. What may
be said when is in `protocol.session`; what a frame looks like in `protocol.codec`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from protocol import limits
from protocol.candidates import CANDIDATES, Candidates, Want
from protocol.fields import (
    DIGEST,
    FLAG,
    PEER,
    blob,
    exactly,
    flat,
    optional,
    real,
    said,
    sequence,
    struct,
    text,
    uint,
    wire,
    word,
)
from protocol.inventory import DIGEST_BYTES
from protocol.model import SPAN, Span
from protocol.numerics import NUMERICS, Numerics
from protocol.tensors import FLOATS, TENSOR, Tensor

SESSION_PROTOCOL = "/swarm/session/1"
MAP_PROTOCOL = "/swarm/map/1"
MODEL_PROTOCOL = "/swarm/model/1"
WEIGHTS_PROTOCOL = "/swarm/weights/1"
DIAL_PROTOCOL = "/swarm/dial/1"

_SESSION_ID = exactly(16)
_NUMBER = uint(limits.STEP_NUMBER)
_POSITION = uint(limits.SESSION_TOKENS)
_STAGE = uint(limits.STAGES)
_MILLISECONDS = real(0.0, 1e9)
_SECONDS = real(0.0, 3600.0)
_STAGE_DIGEST = exactly(DIGEST_BYTES)
_RECORDS = sequence(blob(limits.RECORD_BYTES), limits.MAP_RECORDS)


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all messages."""

    tag: ClassVar[str]


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where a hop sends its hidden states: the peer, and its id of the session. Hops know where peers are."""

    peer: str = wire(PEER)
    session: bytes = wire(_SESSION_ID, repr=False)


_NEXT_HOP = optional(struct(NextHop))


@dataclass(frozen=True, slots=True)
class Fork:
    """What a session begins with: what another one of the same client, span and hop had at `position`.

    Taken when all its steps below `after` are computed and sent on; no later one may have gone back over `position`.
    """

    session: bytes = wire(_SESSION_ID, repr=False)
    position: int = wire(_POSITION)
    after: int = wire(_NUMBER)


@dataclass(frozen=True, slots=True)
class Open(Message):
    """Client to hop: keep a KV cache for these stages. The session id is a secret of client, hop and feeder.

    If `bridged`, with no next hop, all hidden states come back, whatever a step wants. With `fork` cache and journal
    begin with those of another session; the numbers of steps then go on from `fork.after`. Without `reuse` the hop
    takes nothing that it computed for others, and leaves nothing to them.
    """

    tag = "open"
    session: bytes = wire(_SESSION_ID, repr=False)
    model: bytes = wire(DIGEST)  # the model digest
    span: Span = wire(SPAN)
    max_tokens: int = wire(uint(limits.SESSION_TOKENS))
    next: NextHop | None = wire(_NEXT_HOP)  # None: outputs come back to the client
    bridged: bool = wire(FLAG, default=False)
    fork: Fork | None = wire(optional(struct(Fork)), default=None)
    reuse: bool = wire(FLAG, default=True)


@dataclass(frozen=True, slots=True)
class Opened(Message):
    """Hop to client: granted. `dtype` is that of the hidden states this hop takes and gives.

    Where it does not go back, its layers keep a state: a step may stand at position 0 or after all others only.
    """

    tag = "opened"
    dtype: str = wire(FLOATS)
    numerics: Numerics = wire(NUMERICS)  # what this session is computed in
    goes_back: bool = wire(FLAG)


@dataclass(frozen=True, slots=True)
class Refused(Message):
    """Hop to client: not granted. `code` is "busy", "model", "span", "capacity", "draining" or "fork"."""

    tag = "refused"
    code: str = wire(word("busy", "model", "span", "capacity", "draining", "fork"))
    reason: str = wire(said())
    retry_after_s: float = wire(_SECONDS)


@dataclass(frozen=True, slots=True)
class Attach(Message):
    """Previous hop to hop: this stream carries the steps of that session, whose span begins at `stage`.

    It is the end of the previous hop's span: along a chain stages only rise, so every chain ends.
    """

    tag = "attach"
    session: bytes = wire(_SESSION_ID, repr=False)
    stage: int = wire(_STAGE)


@dataclass(frozen=True, slots=True)
class Lane:
    """So many rows of a step, for one of the sequences that its session holds side by side.

    With a `parent` the lane begins anew, with what that one held of its first `position` positions before the step.
    """

    name: int = wire(_NUMBER)
    parent: int | None = wire(optional(_NUMBER))
    position: int = wire(_POSITION)
    rows: int = wire(uint(limits.STEP_TOKENS))


def fork_cost(lane: Lane) -> int:
    """What a lane that begins counts, of the forks that a peer may have: what an engine may have to copy."""
    return 0 if lane.parent is None else lane.position // limits.FORK_TOKENS


@dataclass(frozen=True, slots=True)
class Step(Message):
    """Client or previous hop to hop: run these rows at this position.

    `inputs` is int32 [tokens] for a span that begins at stage 0, else hidden states [tokens, hidden_size].
    A cache longer than `position` is cut to it first. A step with `fill_until` only rebuilds caches: the hop
    passes it on only while its own span ends before that stage, and nobody returns an output for it.

    With `lanes` the rows are theirs, in this order, and `position` is the first one's; without, they are lane 0's.
    The lanes in `ended`, before anything else, are no more.
    """

    tag = "step"
    number: int = wire(_NUMBER)
    position: int = wire(_POSITION)
    inputs: Tensor = wire(TENSOR)
    want: Want = wire(struct(Want))
    fill_until: int | None = wire(optional(_STAGE), default=None)
    lanes: tuple[Lane, ...] = wire(flat(Lane, limits.LANES), default=())
    ended: tuple[int, ...] = wire(sequence(_NUMBER, limits.LANES), default=())

    @property
    def parts(self) -> tuple[Lane, ...]:
        """Whose its rows are, in order."""
        return self.lanes or (Lane(0, None, self.position, self.inputs.rows),)


@dataclass(frozen=True, slots=True)
class Known(Message):
    """Previous hop to hop: a step whose first `rows` rows are named, not sent, because you should know them.

    `mark` names them and all before them (`protocol.trail`). `inputs` are the rows after them; None: there are none.
    """

    tag = "known"
    number: int = wire(_NUMBER)
    position: int = wire(_POSITION)
    rows: int = wire(uint(limits.STEP_TOKENS))
    mark: bytes = wire(DIGEST)
    inputs: Tensor | None = wire(optional(TENSOR))
    want: Want = wire(struct(Want))


@dataclass(frozen=True, slots=True)
class Unknown(Message):
    """Hop to previous hop: I do not know those rows; that step and all after it are passed over until Instead."""

    tag = "unknown"
    number: int = wire(_NUMBER)


@dataclass(frozen=True, slots=True)
class Instead(Message):
    """Previous hop to hop: what follows comes in the place of that step and all after it, with all rows."""

    tag = "instead"
    number: int = wire(_NUMBER)


@dataclass(frozen=True, slots=True)
class Output(Message):
    """Hop to client: what the step wanted: `hidden` or `candidates`. `position` is the first row's."""

    tag = "output"
    number: int = wire(_NUMBER)
    position: int = wire(_POSITION)
    hidden: Tensor | None = wire(optional(TENSOR), default=None)
    candidates: Candidates | None = wire(optional(CANDIDATES), default=None)


@dataclass(frozen=True, slots=True)
class Ack(Message):
    """Hop to client: the step was computed here and sent on."""

    tag = "ack"
    number: int = wire(_NUMBER)
    queue_ms: float = wire(_MILLISECONDS)
    compute_ms: float = wire(_MILLISECONDS)


@dataclass(frozen=True, slots=True)
class Relink(Message):
    """Client to hop: from now on your outputs go to `next`; replay your journal into it first.

    Journal entries of steps before `live_from` are sent as fills up to stage `fill_until`, the others as
    they were. With `next` None, outputs come back to the client. If `bridged`, it has asked to carry them on
    itself: all hidden states come back, those of the whole journal first.
    """

    tag = "relink"
    next: NextHop | None = wire(_NEXT_HOP)
    bridged: bool = wire(FLAG)
    live_from: int = wire(_NUMBER)
    fill_until: int = wire(_STAGE)


@dataclass(frozen=True, slots=True)
class LinkDown(Message):
    """Hop to client: the stream to the next hop cannot be opened or broke; the journal is kept."""

    tag = "link_down"
    next: bytes = wire(_SESSION_ID, repr=False)
    reason: str = wire(said())


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Client to hop: are you there?"""

    tag = "ping"
    nonce: int = wire(_NUMBER)


@dataclass(frozen=True, slots=True)
class Pong(Message):
    """Hop to client, at once: the steps received and computed are counted by the highest number plus one."""

    tag = "pong"
    nonce: int = wire(_NUMBER)
    received: int = wire(_NUMBER)
    computed: int = wire(_NUMBER)


@dataclass(frozen=True, slots=True)
class Close(Message):
    """Client to hop: the session is over; free its cache."""

    tag = "close"


@dataclass(frozen=True, slots=True)
class Error(Message):
    """Either: this stream is over. `elsewhere`: another peer may succeed; `retry_after_s`: so may this one, then."""

    tag = "error"
    code: str = wire(said(64, 64))
    message: str = wire(said())
    elsewhere: bool = wire(FLAG)
    retry_after_s: float = wire(_SECONDS, default=0.0)


@dataclass(frozen=True, slots=True)
class MapRequest(Message):
    """Give me the announcements you hold; here are some of mine."""

    tag = "map?"
    records: tuple[bytes, ...] = wire(_RECORDS, default=())


@dataclass(frozen=True, slots=True)
class MapReply(Message):
    """The announcements that the peer holds, its own first."""

    tag = "map"
    records: tuple[bytes, ...] = wire(_RECORDS)


@dataclass(frozen=True, slots=True)
class DialRequest(Message):
    """Can you reach `peer` at this UDP port of where you see me?"""

    tag = "dial?"
    peer: str = wire(PEER)
    port: int = wire(uint(65_535))


@dataclass(frozen=True, slots=True)
class DialReply(Message):
    """Whether it was reached, or why not; `host` is the IP address that the asker is seen at."""

    tag = "dialled"
    host: str = wire(said())
    reached: bool = wire(FLAG)
    why: str = wire(said())


@dataclass(frozen=True, slots=True)
class ManifestRequest(Message):
    """Give me the manifest of this model."""

    tag = "manifest?"
    model: bytes = wire(DIGEST)


@dataclass(frozen=True, slots=True)
class ManifestReply(Message):
    """The manifest's canonical bytes (`protocol.model.parse_manifest` reads them)."""

    tag = "manifest"
    manifest: bytes = wire(blob(limits.CONTROL_FRAME_BYTES))


@dataclass(frozen=True, slots=True)
class FileRequest(Message):
    """Give me one file that the manifest names."""

    tag = "file?"
    name: str = wire(text(limits.FILE_NAME_BYTES))


@dataclass(frozen=True, slots=True)
class FileChunk(Message):
    """The next bytes of the file asked for; the file is complete when `last` is set."""

    tag = "file"
    data: bytes = wire(blob(limits.FILE_CHUNK_BYTES))
    last: bool = wire(FLAG)


@dataclass(frozen=True, slots=True)
class HoldingsRequest(Message):
    """Which weights of this model do you have to give?"""

    tag = "holdings?"
    model: bytes = wire(DIGEST)


@dataclass(frozen=True, slots=True)
class HoldingsReply(Message):
    """The digest of each stage of the model, in order; None: the peer has none to give."""

    tag = "holdings"
    stages: tuple[bytes | None, ...] = wire(sequence(optional(_STAGE_DIGEST), limits.STAGES))


@dataclass(frozen=True, slots=True)
class InventoryRequest(Message):
    """What do the weights of this stage consist of?"""

    tag = "inventory?"
    stage: bytes = wire(_STAGE_DIGEST)


@dataclass(frozen=True, slots=True)
class InventoryReply(Message):
    """The inventory's canonical bytes (`protocol.inventory.parse_inventory` reads them)."""

    tag = "inventory"
    inventory: bytes = wire(blob(limits.INVENTORY_BYTES))


@dataclass(frozen=True, slots=True)
class ParcelRequest(Message):
    """Give me this parcel."""

    tag = "parcel?"
    parcel: bytes = wire(DIGEST)


@dataclass(frozen=True, slots=True)
class ParcelReply(Message):
    """The bytes of the parcel asked for; requests are answered in their order."""

    tag = "parcel"
    data: bytes = wire(blob(limits.PARCEL_BYTES))


ALL: tuple[type[Message], ...] = (
    Open, Opened, Refused, Attach, Step, Known, Unknown, Instead, Output, Ack, Relink, LinkDown, Ping, Pong, Close,
    Error, MapRequest, MapReply, DialRequest, DialReply, ManifestRequest, ManifestReply, FileRequest, FileChunk,
    HoldingsRequest, HoldingsReply, InventoryRequest, InventoryReply, ParcelRequest, ParcelReply,
)  # fmt: skip
BY_TAG: dict[str, type[Message]] = {cls.tag: cls for cls in ALL}
