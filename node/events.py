"""What happens to a node, as its owner is told: each event is a line for people, and fields for programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from protocol.model import Span, describe_stages
from protocol.plain import one_line


@dataclass(frozen=True, slots=True)
class Event:
    """One of those below. Its `str` is one line, whoever is quoted in it."""

    def __str__(self) -> str:
        return one_line(self._line())

    @property
    def name(self) -> str:
        """One word: what programs tell events by."""
        return type(self).__name__.lower()

    def as_json(self) -> dict[str, Any]:
        """The name, the fields, and the line for people as `text`."""
        said = {field.name: _as_json(getattr(self, field.name)) for field in fields(self)}
        return {"event": self.name, **said, "text": str(self)}

    def _line(self) -> str:
        raise NotImplementedError


Notify = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Opening(Event):
    """The checkpoint is looked at."""

    model: str

    def _line(self) -> str:
        return f"opening {self.model}"


@dataclass(frozen=True, slots=True)
class Joining(Event):
    """The doors are knocked at."""

    addrs: tuple[str, ...]

    def _line(self) -> str:
        return f"joining the swarm through {', '.join(self.addrs)}"


@dataclass(frozen=True, slots=True)
class Fetching(Event):
    """Weights come from peers. Told again and again, until `Fetched`."""

    model: str
    what: str
    size_bytes: int
    left_bytes: int
    peers: int  # that are asked now

    def _line(self) -> str:
        size, left = describe_size(self.size_bytes), describe_size(self.left_bytes)
        from_peers = f"{self.peers} peer{'s' * (self.peers != 1)}"
        return f"fetching {self.what} of {self.model} ({size}, {left} to come) from {from_peers}"


@dataclass(frozen=True, slots=True)
class Fetched(Event):
    """All weights of the span are here. `fetched_bytes` have come, what was here before not counted."""

    model: str
    what: str
    fetched_bytes: int
    seconds: float
    peers: int  # that gave any

    def _line(self) -> str:
        size = describe_size(self.fetched_bytes)
        from_peers = f"{self.peers} peer{'s' * (self.peers != 1)}"
        return f"fetched {self.what} of {self.model}: {size} from {from_peers} in {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Loading(Event):
    """The span is chosen, its weights are read."""

    model: str
    blocks: int
    stages: Span
    size_bytes: int
    numerics: str  # what it computes in, as it is announced
    kernels: str  # whose code computes, and why where that is not the native one

    def _line(self) -> str:
        what = f"{describe_stages(self.stages, self.blocks)} of {self.model}"
        return f"loading {what} ({describe_size(self.size_bytes)}, {self.numerics}, {self.kernels})"


@dataclass(frozen=True, slots=True)
class Serving(Event):
    """The weights are loaded, the speed is measured, sessions are taken."""

    model: str
    digest: bytes
    blocks: int
    stages: Span
    numerics: str
    kernels: str
    weight_bytes: int
    kv_tokens: int
    kv_bytes: int
    decode_ms: float  # per block and token

    def _line(self) -> str:
        what = f"{describe_stages(self.stages, self.blocks)} of {self.model} ({self.digest.hex()[:12]})"
        return (
            f"serving {what}; weights {describe_size(self.weight_bytes)} ({self.numerics}, {self.kernels}), "
            f"room for {self.kv_tokens} tokens ({describe_size(self.kv_bytes)}), "
            f"{self.decode_ms:.2f} ms per block and token"
        )


@dataclass(frozen=True, slots=True)
class Weights(Event):
    """The digest of the whole model's weights is known, as many digits of it as a pin needs."""

    digest: str

    def _line(self) -> str:
        return f"weights {self.digest}"


@dataclass(frozen=True, slots=True)
class Address(Event):
    """Others reach the node here."""

    addr: str

    def _line(self) -> str:
        return f"address {self.addr}"


@dataclass(frozen=True, slots=True)
class Invitation(Event):
    """A command for others, to be copied: how they `join` or `chat`."""

    to: str
    command: str

    def _line(self) -> str:
        return f"others {self.to} with:  {self.command}"


@dataclass(frozen=True, slots=True)
class Ready(Event):
    """The node serves and others have heard of it. Comes once."""

    peer: str
    addrs: tuple[str, ...]

    def _line(self) -> str:
        return f"ready {self.peer}"


@dataclass(frozen=True, slots=True)
class Metrics(Event):
    """Its numbers can be asked for here, in Prometheus' form."""

    url: str

    def _line(self) -> str:
        return f"metrics at {self.url}"


@dataclass(frozen=True, slots=True)
class Noted(Event):
    """Something is worth knowing."""

    about: str

    def _line(self) -> str:
        return f"note: {self.about}"


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """Something may be wrong."""

    about: str

    def _line(self) -> str:
        return f"warning: {self.about}"


@dataclass(frozen=True, slots=True)
class Leaving(Event):
    """It was told to end, and says goodbye."""

    def _line(self) -> str:
        return "leaving"


def describe_size(size_bytes: int) -> str:
    """Bytes, in words."""
    size, units = float(size_bytes), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.3g} {units[0]}" if size < 1000 else f"{size:.0f} {units[0]}"


def _as_json(value: object) -> object:
    match value:
        case Span():
            return [value.start, value.stop]
        case bytes():
            return value.hex()
    return value
