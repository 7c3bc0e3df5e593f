"""The error tree. A class exists because its caller reacts differently to it.

SwarmError
├ LocalProtocolError     our own bug: never retried, fails loudly
├ RemoteProtocolError    a peer broke a rule: close, penalise
│ ├ Malformed              bytes that are no message, or a message that makes no sense here
│ ├ TooLarge               a size or a count above its limit
│ └ BadSignature           a record or a certificate that its key did not sign
├ PeerUnavailable        an honest failure: try another peer
│ ├ Unreachable            could not connect, or the peer does not speak the protocol asked for
│ ├ TimedOut               no answer within the deadline
│ ├ Busy                   refused for now; `retry_after_s` says when to ask again
│ └ Lost                   the stream or the connection ended before its time
├ NoRoute                stages that nobody reachable serves; `missing` names them
├ EngineError            the node's side of computing
│ ├ CacheFull              no KV cache left for what was asked
│ ├ UnsupportedModel       a model that cannot be split
│ └ BadCheckpoint          missing shards or tensors, unreadable files
└ ConfigError            what the user asked for cannot be; one line, exit code 2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from protocol.plain import one_line


class SwarmError(Exception):
    """Every error this project raises on purpose.

    Its text is one line that can be shown and logged, though it may quote what peers said.
    """

    def __str__(self) -> str:
        return one_line(super().__str__() or type(self).__name__)


class LocalProtocolError(SwarmError):
    """We tried to do what the protocol forbids; a bug on our side."""


class RemoteProtocolError(SwarmError):
    """The peer broke the protocol; the connection to it is worth closing."""


class Malformed(RemoteProtocolError):
    """Bytes that are no message, or a message that its state does not allow."""


class TooLarge(RemoteProtocolError):
    """A size or a count above its limit in `protocol.limits`."""


class BadSignature(RemoteProtocolError):
    """A signature that does not verify, or a key that does not match its peer id."""


class PeerUnavailable(SwarmError):
    """An honest failure of one peer; another may serve."""


class Unreachable(PeerUnavailable):
    """No connection, or no common protocol."""


class TimedOut(PeerUnavailable):
    """No answer before the deadline."""


class Busy(PeerUnavailable):
    """Refused for now; ask again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Lost(PeerUnavailable):
    """The stream or connection ended before its time."""


class NoRoute(SwarmError):
    """No reachable peers cover every stage; `missing` are half-open stage ranges that nobody serves."""

    def __init__(self, message: str, missing: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


class EngineError(SwarmError):
    """The node could not compute what was asked."""


class CacheFull(EngineError):
    """The KV budget cannot hold what was asked."""


class UnsupportedModel(EngineError):
    """A model that this engine cannot split."""


class BadCheckpoint(EngineError):
    """Files of a checkpoint are missing or unreadable."""


class ConfigError(SwarmError):
    """What the user asked for cannot be done as asked; shown as one line, exit code 2."""


def leaves(raised: BaseException) -> Iterator[BaseException]:
    """An error, or those that nurseries have put in groups."""
    if isinstance(raised, BaseExceptionGroup):
        for inner in raised.exceptions:
            yield from leaves(inner)
    else:
        yield raised


def unwrapped(raised: BaseException) -> BaseException:
    """The one error that nurseries have wrapped; of several of ours the first, of others the group they are in."""
    first, *more = leaves(raised)
    alike = not more or all(isinstance(leaf, SwarmError) for leaf in (first, *more))
    return first if alike else raised
