"""What framing a step costs: encode and decode, against copying the same bytes once.

    python scripts/bench/codec.py [--quick] [--json FILE]

Prints a table of the best of many runs, which says more than a mean on a machine that does other work too.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from protocol.candidates import HIDDEN
from protocol.codec import FrameReader, encode
from protocol.messages import Message, Step
from protocol.tensors import Tensor

KIB, MIB = 1024, 1024 * 1024
HIDDEN_SIZE = 4096  # values of bf16: a row is 8 KiB
SIZES = {"8 KiB": 8 * KIB, "64 KiB": 64 * KIB, "16 MiB": 16 * MIB}
RECEIVED_BYTES = 64 * KIB  # what a stream gives at a time


def best_us(action: Callable[[], object], seconds: float) -> float:
    """The shortest run among those that fit in `seconds`, in microseconds."""
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        action()
        best = min(best, time.perf_counter() - start)
    return best * 1e6


def read(pieces: list[bytes]) -> Message:
    """One message from a stream."""
    reader = FrameReader()
    for piece in pieces:
        reader.feed(piece)
    message = reader.next()
    assert message is not None
    return message


def measure(name: str, size: int, seconds: float) -> dict[str, float | str]:
    """One row of the table."""
    data = os.urandom(size)
    step = Step(1, 0, Tensor("bf16", (size // (2 * HIDDEN_SIZE), HIDDEN_SIZE), data), HIDDEN)
    frame = encode(step)
    pieces = [frame[i : i + RECEIVED_BYTES] for i in range(0, len(frame), RECEIVED_BYTES)]
    memcpy_us = best_us(lambda: bytearray(data), seconds)
    encode_us = best_us(lambda: encode(step), seconds)
    decode_us = best_us(lambda: read(pieces), seconds)
    return {
        "step": name,
        "memcpy_us": round(memcpy_us, 2),
        "encode_us": round(encode_us, 2),
        "encode_copies": round(encode_us / memcpy_us, 2),
        "decode_us": round(decode_us, 2),
        "decode_copies": round(decode_us / memcpy_us, 2),
    }


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a second in all; rough numbers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    args = parser.parse_args()
    rows = [measure(name, size, 0.1 if args.quick else 1.5) for name, size in SIZES.items()]
    print(
        f"{'step of':>8}  {'memcpy':>10}  {'encode':>10}  {'of memcpy':>10}  {'decode':>10}  {'of memcpy':>10}"
    )
    for row in rows:
        print(
            f"{row['step']:>8}  {row['memcpy_us']:>7} µs  {row['encode_us']:>7} µs  {row['encode_copies']:>8} x"
            f"  {row['decode_us']:>7} µs  {row['decode_copies']:>8} x"
        )
    if args.json:
        summary = {
            "encode_8kib_us": rows[0]["encode_us"],
            "decode_8kib_us": rows[0]["decode_us"],
            "encode_16mib_copies": rows[-1]["encode_copies"],
            "decode_16mib_copies": rows[-1]["decode_copies"],
        }
        args.json.write_text(json.dumps({"summary": summary, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
