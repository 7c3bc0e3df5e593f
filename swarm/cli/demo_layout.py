"""Which node of a demo serves which layers of a model, and in which precision, by the memory there is. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from protocol.errors import ConfigError
from swarm.cli.words import count, describe_size

AUTO: Final = "auto"
Layers = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Weights:
    """What a model takes, and what there is for it.

    stages       bytes of each stage, by what `swarm node --quant` takes, the most precise first
    room_bytes   memory for the weights of all nodes together
    """

    name: str
    stages: Mapping[str, Sequence[int]]
    room_bytes: int

    @property
    def blocks(self) -> int:
        """How many layers it has."""
        return len(next(iter(self.stages.values()))) - 2

    def within(self, memory_bytes: int) -> Weights:
        """The same where there is so much for weights and sessions together."""
        return replace(self, room_bytes=min(self.room_bytes, memory_bytes))

    def needs(self, quant: str, layers: Sequence[Layers]) -> int:
        """Bytes of nodes with these layers, and the ends that adjoin them."""
        stages, blocks = self.stages[quant], self.blocks
        return sum(
            sum(stages[1 + first - (first == 0) : 1 + stop + (stop == blocks)]) for first, stop in layers
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """A node for each range of layers. spared: every layer is served twice, so that any node may die."""

    quant: str
    layers: tuple[Layers, ...]
    spared: bool
    size_bytes: int


def choose_layout(weights: Weights, nodes: int, quant: str) -> Layout:
    """The most precise layout in which any node may die, or else the most precise that fits; `quant` may be AUTO.

    Raises: ConfigError, where the nodes do not suit the layers, or the model does not fit.
    """
    if quant != AUTO and quant not in weights.stages:
        raise ConfigError(f"weights cannot be kept in {quant!r}: {', '.join(weights.stages)}, or {AUTO}")
    tried = [quant] if quant != AUTO else list(weights.stages)
    ways = [spread(weights.blocks, nodes)]
    if nodes > 1:
        ways += [cut(weights.blocks, nodes)] if nodes <= weights.blocks else []
    for way, layers in enumerate(ways):
        for each in tried:
            size_bytes = weights.needs(each, layers)
            if size_bytes <= weights.room_bytes:
                return Layout(each, tuple(layers), way == 0 and nodes > 1, size_bytes)
    least = describe_size(min(weights.needs(each, ways[-1]) for each in tried))
    raise ConfigError(
        f"{weights.name} takes {least}{'' if quant == AUTO else f' in {quant}'}, and "
        f"{describe_size(weights.room_bytes)} may be used for weights here; `swarm plan` says which machines hold it"
    )


def spread(blocks: int, nodes: int) -> list[Layers]:
    """Layers of each node, so that from two nodes on every layer is served twice and no two borders are alike.

    The nodes form two chains that each cover the model; the cuts of one lie between those of the other.
    Raises: ConfigError.
    """
    if nodes < 2:
        return [(0, blocks)]
    first, second = (nodes + 1) // 2, nodes // 2
    if nodes > 2 * blocks:
        raise ConfigError(
            f"{count(nodes, 'node')} are more than {count(blocks, 'layer')} can be spread over; at most {2 * blocks}"
        )
    shift = blocks / (first + second) / 2
    return sorted([*_chain(blocks, first, -shift), *_chain(blocks, second, shift)])


def cut(blocks: int, nodes: int) -> list[Layers]:
    """Layers of each node where every one is served once."""
    return _chain(blocks, nodes, 0.0)


def _chain(blocks: int, nodes: int, shift: float) -> list[Layers]:
    cuts = [round(blocks * i / nodes + shift) for i in range(1, nodes)]
    sound = [min(max(cut, i), blocks - nodes + i) for i, cut in enumerate(cuts, 1)]
    return list(zip([0, *sound], [*sound, blocks], strict=True))
