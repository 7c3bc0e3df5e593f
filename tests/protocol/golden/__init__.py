"""The bytes on the wire of every fixed value in `samples`, annotated per field."""

from __future__ import annotations

from pathlib import Path


def read_golden(name: str) -> dict[str, bytes]:
    """The values of one file: heading -> bytes."""
    values: dict[str, bytearray] = {}
    current = bytearray()
    for line in (Path(__file__).parent / name).read_text().splitlines():
        if line.startswith("== "):
            current = values.setdefault(line[3:], bytearray())
        elif "|" in line and values:
            current += bytes.fromhex(line.partition("|")[0])
    return {heading: bytes(value) for heading, value in values.items()}
