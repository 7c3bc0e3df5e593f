"""What the client and its text process say to each other, and what either may make the other take.

A frame is a length (4 bytes) and one msgpack map. The client asks: `load`, followed by the bytes of the files as
they are, `encode`, `chat` or `decode`. Each request gets one reply. Replies are bytes from a stranger's hand.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Final

import msgpack

from protocol import limits
from protocol.errors import Malformed, TooLarge

LENGTH_BYTES: Final = 4
MIB: Final = 1024 * 1024

# A prompt or conversation; the longest context there is, a million tokens, is some 4 MiB of text.
REQUEST_BYTES: Final = 16 * MIB
# SESSION_TOKENS ids of 4 bytes each, and room for the map around them. Text of tokens is far smaller.
REPLY_BYTES: Final = 5 * MIB
# Text of one token: the longest in use, of spaces or dashes, have 128 characters.
TOKEN_TEXT_CHARS: Final = 1024
# Texts that one request may ask for: a stream needs three.
WINDOWS: Final = 3
# Ids that end an answer, and ids without text. Vocabularies in use have up to 6,242 of the latter.
END_IDS: Final = 1024
SILENT_IDS: Final = 128 * 1024
REASON_CHARS: Final = 300

# Between two parts of JSON that a grammar leaves, in one line or indented: models that know no JSON would go on with
# blanks for ever.
BLANKS: Final = r"\x20|\x0A[\x20\x09]{0,20}"

# How the process ends where memory runs out in Python; where it does in native code, it is aborted.
OUT_OF_MEMORY: Final = 3


def frame(value: dict[str, Any]) -> bytes:
    """A map as it crosses the pipe; lone surrogates of a terminal's input become question marks."""
    body: bytes = msgpack.packb(value, unicode_errors="replace")
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as they lie in memory: both ends are on one machine."""
    return array("I", ids).tobytes()


def parse_ids(data: Any, most: int) -> list[int]:
    """The ids in `data`, all within the bounds of a vocabulary. Raises: Malformed or TooLarge."""
    ids = array("I")
    if type(data) is not bytes or len(data) % ids.itemsize:
        raise Malformed("the text process gave no token ids")
    if len(data) > most * ids.itemsize:
        raise TooLarge(f"the model's tokenizer gave {len(data) // ids.itemsize} ids; {most} are allowed")
    ids.frombytes(data)
    if ids and max(ids) >= limits.VOCABULARY:
        raise TooLarge(f"the model's tokenizer gave the id {max(ids)}")
    return ids.tolist()
