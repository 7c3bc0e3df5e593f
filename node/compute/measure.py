"""How fast an engine is on this machine, from a few steps on made-up inputs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from node.compute.call import run_alone
from node.compute.casting import cast_hidden
from node.compute.interfaces import Engine
from protocol.candidates import NOTHING, Want
from protocol.model import Span
from protocol.tensors import Tensor, from_numpy

# The longest that one of three timings goes on once it has a sample, and the samples after which it is enough.
_BUDGET_S: Final = 0.8
_SAMPLES: Final = 7
_PREFILL_TOKENS: Final = 32


@dataclass(frozen=True, slots=True)
class Speed:
    """What an engine takes, in milliseconds. 0 for what it does not hold."""

    decode_ms_per_block: float  # one token
    prefill_ms_per_token_block: float  # one of many tokens
    head_ms: float  # one token


def measure(engine: Engine) -> Speed:
    """Time decoding, prefill and the head with the engine's own threads.

    Takes well below a second for small models, and no more than some 3 s plus five single steps for large ones.
    Medians, so that a neighbour's burst does not count.
    """
    last = engine.manifest.stages - 1
    first, stop = max(engine.span.start, 1), min(engine.span.stop, last)
    decode_ms = prefill_ms = head_ms = 0.0
    if first < stop:
        blocks = stop - first
        cache = engine.new_cache(Span(first, stop))
        prompt, token = _states(engine, _PREFILL_TOKENS), _states(engine, 1)
        prefill_ms = _median_ms(lambda: run_alone(engine, cache, 0, prompt, NOTHING))
        prefill_ms /= blocks * _PREFILL_TOKENS
        decode_ms = _median_ms(lambda: run_alone(engine, cache, cache.length, token, NOTHING)) / blocks
        cache.close()
    if last in engine.span:
        head = engine.new_cache(Span(last, last + 1))
        state = _states(engine, 1)
        head_ms = _median_ms(lambda: run_alone(engine, head, 0, state, Want(top=1)))
    return Speed(decode_ms, prefill_ms, head_ms)


def _median_ms(step: Callable[[], object]) -> float:
    step()  # the first one reads weights from disk and makes room
    samples: list[float] = []
    begun = time.perf_counter()
    while len(samples) < _SAMPLES:
        started = time.perf_counter()
        step()
        ended = time.perf_counter()
        samples.append(ended - started)
        if ended - begun > _BUDGET_S:
            break
    return 1000 * float(np.median(samples))


def _states(engine: Engine, tokens: int) -> Tensor:
    """Random hidden states in the engine's dtype."""
    shape = (tokens, engine.hidden_size)
    states = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return cast_hidden(from_numpy(states), engine.dtype)
