"""What a node is to serve, of what it may: in which precision, and which span. Blocking: called in worker threads."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace

from node.backend import Backend, OpenBackend
from node.config import AUTO, QUANTS, NodeConfig
from node.events import describe_size
from node.memory import for_weights
from node.native.load import NoKernels
from node.presence.placement import choose_precision, coverage
from node.store.files import FetchedFiles
from protocol.errors import ConfigError
from protocol.model import Span, describe_stages


def open_each(
    open_backend: OpenBackend, config: NodeConfig, fetched: FetchedFiles | None = None
) -> list[Backend]:
    """What may serve: one in the precision that is asked for, or one in each, the most precise first.

    Raises: BadCheckpoint, UnsupportedModel, ConfigError.
    """
    if config.quant != AUTO:
        return [open_backend(config, fetched)]
    backends = [open_backend(replace(config, quant=None), fetched)]
    for quant in QUANTS:
        with contextlib.suppress(NoKernels):
            backends.append(open_backend(replace(config, quant=quant), fetched))
    return backends


def select(
    backends: Sequence[Backend],
    config: NodeConfig,
    served: Iterable[Span],
    given: Container[int] | None,
    rng: random.Random,
) -> tuple[int, Span]:
    """Which of these serves, by its place, and which span.

    served: the spans of others. given: the stages whose weights can be had; None: all can.
    Raises: ConfigError, if that takes more memory than there is.
    """
    manifest = backends[0].model.manifest
    wanted = config.span(manifest.blocks)
    if wanted is None or len(backends) > 1:
        choice = _choose(backends, config, coverage(served, manifest.stages), given, rng)
    else:
        choice = 0, wanted
    need, stages = needed_bytes(backends[choice[0]], choice[1]), describe_stages(choice[1], manifest.blocks)
    if config.max_memory is not None and need > config.max_memory:
        raise ConfigError(
            f"{stages} take {describe_size(need)}, the memory limit is {describe_size(config.max_memory)}"
        )
    return choice


def needed_bytes(backend: Backend, span: Span) -> int:
    """What the weights of a span take."""
    dtype = backend.dtype()
    return sum(backend.model.stage_bytes(stage, dtype) for stage in span)


def free_bytes(backend: Backend, config: NodeConfig) -> int:
    """What is free for weights and sessions, as far as the owner allows."""
    free = backend.free_bytes()
    return min(free, config.max_memory or free)


def _choose(
    backends: Sequence[Backend],
    config: NodeConfig,
    counts: Sequence[int],
    given: Container[int] | None,
    rng: random.Random,
) -> tuple[int, Span]:
    blocks = backends[0].model.manifest.blocks
    wanted = config.span(blocks)
    memory_bytes = for_weights(free_bytes(backends[0], config))
    sizes = [_stage_bytes(backend) for backend in backends]
    if given is not None:  # what nobody gives fits nowhere
        sizes = [
            [s if stage in given else memory_bytes + 1 for stage, s in enumerate(each)] for each in sizes
        ]
    chosen = choose_precision(counts, sizes, memory_bytes, rng, wanted)
    if chosen is not None:
        return chosen
    if wanted is None:
        what, least = "the smallest stage takes", min(map(min, sizes))
    else:
        what = f"{describe_stages(wanted, blocks)} take at least"
        least = min(sum(each[stage] for stage in wanted) for each in sizes)
    may = f"{describe_size(memory_bytes)} may be used for weights"
    raise ConfigError(f"{what} {describe_size(least)}, {may}")


def _stage_bytes(backend: Backend) -> list[int]:
    """What each stage of its model takes."""
    model, dtype = backend.model, backend.dtype()
    return [model.stage_bytes(stage, dtype) for stage in range(model.manifest.stages)]
