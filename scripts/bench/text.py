"""What a model's text costs: the text process with the tokenizer that ships, and with one as large as any in use.

    python scripts/bench/text.py [--quick] [--json FILE]

The large one is made here, in the shape of Gemma's: 262,144 tokens, 515,000 merges, no words split off before the
merges, 6,242 special tokens. The prompt is a megabyte. `load_s` (the start of Python included), `encode_s` and
`decode_us` for a token are what the process computed; `token_ms` is what its client waited for a token's text. The
peaks are the process's (Linux), and `peak_address_mib` is the one that is bounded.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Iterator, Mapping
from itertools import combinations, islice
from pathlib import Path
from typing import Any, Final

import psutil
import trio
from common import arguments, report

from swarm.text.process import TextProcess
from swarm.text.text import Text, load_text

TOKENS: Final = 262_144
MERGES: Final = 515_000
SPECIAL: Final = 6_242
SPACE: Final = "\u2581"
LETTERS: Final = " etaoinshrdlucmfwypvbgkjqxzETAOINSHRDLUCMFWYPVBGKJQXZ.,;:!?0123456789"
PROMPT_CHARS: Final = 1_000_000
SHIPPED: Final = Path(__file__).resolve().parents[2] / "swarm" / "models" / "tiny"


def words() -> Iterator[str]:
    """Words of no language, always the same: letters as frequent as in many, blanks among them, ten to a word."""
    rng = random.Random(0)
    weights = [1 / (2 + rank) for rank in range(len(LETTERS))]
    while True:
        yield "".join(rng.choices(LETTERS, weights, k=10))


def learned(count: int) -> list[str]:
    """Tokens of more than one letter: all parts of some words, so that there are several ways to most."""
    found: dict[str, None] = {}
    for word in words():
        for start, stop in combinations(range(len(word) + 1), 2):
            if stop - start > 1:
                found[word[start:stop].replace(" ", SPACE)] = None
        if len(found) >= count:
            break
    return sorted(found, key=len)[:count]


def large_files() -> dict[str, bytes]:
    """The small files of a model with a tokenizer of that size; pretty-printed, as they come, it takes 32 MB."""
    special = [f"<unused{number}>" for number in range(SPECIAL)]
    single = [*(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *LETTERS[1:]]
    tokens = learned(TOKENS - SPECIAL - len(single))
    ways = [[token[:cut], token[cut:]] for cut in range(1, 10) for token in tokens if cut < len(token)]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [_added(number, token) for number, token in enumerate(special)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "vocab": {token: number for number, token in enumerate([*special, *single, *tokens])},
            "merges": sorted(ways[:MERGES], key=lambda pair: len(pair[0]) + len(pair[1])),
        },
    }
    config = {"vocab_size": TOKENS, "max_position_embeddings": 131_072}
    return {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": json.dumps(tokenizer, indent=2, ensure_ascii=False).encode(),
    }


def _added(number: int, token: str) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, "special": True, **flags}


def prompt() -> str:
    """A megabyte of such words."""
    return " ".join(islice(words(), PROMPT_CHARS // 11))


async def measure(name: str, files: Mapping[str, bytes], turns: int) -> dict[str, Any]:
    """One row: a fresh process loads the files, encodes the prompt and streams its tokens."""
    process = TextProcess()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.run)
        text = await load_text(process, files)
        loaded_s = computed_s(process)
        ids = await text.encode(prompt())
        encoded_s = computed_s(process)
        token_ms = await stream(text, ids[:turns])
        row = {
            "tokenizer": name,
            "size_mb": sum(map(len, files.values())) / 1e6,
            "load_s": loaded_s,
            "encode_s": encoded_s - loaded_s,
            "ids": len(ids),
            "token_ms": token_ms,
            "decode_us": 1e6 * (computed_s(process) - encoded_s) / turns,
            **peaks(process),
        }
        nursery.cancel_scope.cancel()
    return row


def computed_s(process: TextProcess) -> float:
    """Seconds that the process has computed for."""
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)


async def stream(text: Text, ids: list[int]) -> float:
    """Milliseconds from a token to its text, the median."""
    out = text.stream()
    taken = []
    for token in ids:
        start = time.perf_counter()
        await out.push(token)
        taken.append(time.perf_counter() - start)
    return 1e3 * statistics.median(taken)


def peaks(process: TextProcess) -> dict[str, float]:
    """The most that the process had at any time, in MiB: address space, and memory in use."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    names = {"peak_address_mib": "VmPeak", "peak_resident_mib": "VmHWM"}
    return {name: int(status[key].split()[0]) / 1024 for name, key in names.items()}


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    turns = 2000 if options.quick else 20_000
    shipped = {name: (SHIPPED / name).read_bytes() for name in ("config.json", "tokenizer.json")}
    rows = [
        trio.run(measure, "shipped", shipped, turns),
        trio.run(measure, "large", large_files(), turns),
    ]
    names = ("load_s", "encode_s", "token_ms", "decode_us", "peak_address_mib", "peak_resident_mib")
    report({name: float(rows[-1][name]) for name in names}, rows, options.json)


if __name__ == "__main__":
    main()
