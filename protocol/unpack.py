"""msgpack from strangers, within bounds: few bytes must not become many objects."""

from __future__ import annotations

from typing import Any

import msgpack

from protocol import limits
from protocol.errors import Malformed


def unpack(
    data: bytes | memoryview,
    most_entries: int,
    most_text_bytes: int = limits.TEXT_BYTES,
    most_containers: int = limits.CONTAINERS,
) -> Any:
    """The plain value in `data`; no list in it is longer than `most_entries`, no key stands twice in a map.

    Raises: Malformed.
    """
    left = most_containers

    def too_many() -> Malformed:
        return Malformed(f"more than {most_containers} lists and maps in one value")

    def make_list(value: list[Any]) -> list[Any]:
        nonlocal left
        left -= 1
        if left < 0:
            raise too_many()
        return value

    def make_map(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        nonlocal left
        left -= 1
        if left < 0:
            raise too_many()
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
