"""What an estimate means for machines: how many a model needs, what this one could serve. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from node.estimate import Estimate
from node.footprint import Footprint
from node.memory import for_weights

_KV_TOKENS: Final = 1000


def advise(estimate: Estimate, model: str, memories: Sequence[int], free_bytes: int) -> dict[str, Any]:
    """Everything that `swarm plan` shows. Sizes in bytes; `None` for what is not known or cannot be.

    model: as `swarm node` is given it. memories: of other machines, what is free there; none: only this one's.
    """
    footprints = estimate.footprints
    totals = {name: sum(of.stages) for name, of in footprints.items()}
    stored = None if estimate.stored is None else sum(estimate.stored) - estimate.shared
    return {
        "model": estimate.name,
        "type": estimate.model_type,
        "layers": estimate.blocks,
        "engine": estimate.engine,
        "stored_in": estimate.stored_in,
        "refused": estimate.refused or None,
        "stages": _stages(estimate),
        "total": {"stored": stored, **totals},
        "kv_1000_tokens": {name: _KV_TOKENS * sum(of.kv) for name, of in footprints.items()},
        "machines": [_machines(footprints, memory) for memory in memories or [free_bytes]],
        "here": {
            "free": free_bytes,
            "for_weights": for_weights(free_bytes),
            "serves": _serves(estimate, model, free_bytes),
        },
    }


def _stages(estimate: Estimate) -> list[dict[str, Any]]:
    """Of the embedding, of each run of layers that are alike, and of the head, what each one takes."""
    last = estimate.blocks + 1

    def sizes(stage: int) -> dict[str, int | None]:
        stored = None if estimate.stored is None else estimate.stored[stage]
        return {"stored": stored, **{name: of.stages[stage] for name, of in estimate.footprints.items()}}

    found: list[dict[str, Any]] = [{"stage": "embedding", "layers": None, "bytes": sizes(0)}]
    for _, run in groupby(range(1, last), lambda stage: tuple(sizes(stage).values())):
        stages = list(run)
        layers = [stages[0] - 1, stages[-1]]
        found.append({"stage": "layer", "layers": layers, "bytes": sizes(stages[0])})
    return [*found, {"stage": "head", "layers": None, "bytes": sizes(last)}]


def _machines(footprints: Mapping[str, Footprint], memory_bytes: int) -> dict[str, Any]:
    weights = for_weights(memory_bytes)
    counts = {name: of.machines(weights) for name, of in footprints.items()}
    return {"memory": memory_bytes, "for_weights": weights, "count": counts}


def _serves(estimate: Estimate, model: str, free_bytes: int) -> dict[str, Any]:
    """By precision the most layers that fit here, and the command that serves them; None where none fits."""
    if estimate.refused:
        return {}
    found: dict[str, Any] = {}
    for name, of in estimate.served().items():
        layers = of.most_layers(for_weights(free_bytes))
        if layers is None:
            found[name] = None
            continue
        quant = "" if name == estimate.own else f" --quant {name}"
        found[name] = {
            "layers": list(layers),
            "bytes": of.weights(layers),
            "tokens": of.tokens(layers, free_bytes),
            "command": f"swarm node --model {shlex.quote(model)}{quant} --layers {layers[0]}:{layers[1]}",
        }
    return found
