"""msgpack from strangers, within bounds: few bytes must not become many objects."""

from __future__ import annotations

from typing import Any, Final

import msgpack

from protocol import limits
from protocol.errors import Malformed

_TOO_MANY: Final = f"more than {limits.CONTAINERS} lists and maps in one value"


def unpack(data: bytes | memoryview, most_entries: int, most_text_bytes: int = limits.TEXT_BYTES) -> Any:
    """The plain value in `data`; no list in it is longer than `most_entries`, no key stands twice in a map.

    Raises: Malformed.
    """
    left = limits.CONTAINERS

    def make_list(value: list[Any]) -> list[Any]:
        nonlocal left
        left -= 1
        if left < 0:
            raise Malformed(_TOO_MANY)
        return value

    def make_map(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        nonlocal left
        left -= 1
        if left < 0:
            raise Malformed(_TOO_MANY)
        value = dict(pairs)
        if len(value) != len(pairs):
            raise Malformed("a key stands twice in a map")
        return value

    try:
        return msgpack.unpackb(
            data,
            max_map_len=limits.MAP_KEYS,
            max_array_len=most_entries,
            max_str_len=most_text_bytes,
            max_ext_len=0,
            strict_map_key=True,
            list_hook=make_list,
            object_pairs_hook=make_map,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise Malformed(f"not msgpack: {error}") from error
