"""The bytes on the wire of every fixed value in `samples`, annotated per field."""

from __future__ import annotations

import re
from pathlib import Path

_LINE = re.compile(r"\s*((?:[0-9a-f]{2} ?)+)\s*\|")


def read_golden(name: str) -> dict[str, bytes]:
    """The values of one file: heading -> bytes."""
    return parse_golden((Path(__file__).parent / name).read_text())


def parse_golden(text: str) -> dict[str, bytes]:
    """Heading ("== name") -> the bytes in hex left of "|" in the lines after it."""
    values: dict[str, bytearray] = {}
    for line in text.splitlines():
        if line.startswith("== "):
            current = values.setdefault(line[3:], bytearray())
        elif values and (found := _LINE.match(line)):
            current += bytes.fromhex(found[1])
    return {heading: bytes(value) for heading, value in values.items()}
