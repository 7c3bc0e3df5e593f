"""One call of the engine: a session prepares it and takes what it gives, and who makes it owns the engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from node.compute.interfaces import Engine, KvCache
from protocol.candidates import Candidates, Want
from protocol.errors import Malformed, SwarmError
from protocol.tensors import Tensor, check_finite

StepResult = Tensor | Candidates | None


class BadOutput(SwarmError):
    """The engine returned numbers that nobody can go on with."""


@dataclass(frozen=True, slots=True)
class Call:
    """What `Engine.step` is called with."""

    cache: KvCache
    position: int
    inputs: Tensor
    want: Want


def make(engine: Engine, call: Call) -> StepResult:
    """What the engine gives. Raises: BadOutput, and whatever the engine raises."""
    result = engine.step(call.cache, call.position, call.inputs, call.want)
    try:
        if isinstance(result, Tensor):
            check_finite(result)
        elif result is not None and (np.isnan(result.logits).any() or not np.isfinite(result.lse).all()):
            raise Malformed("the logits hold NaN or infinite values")
    except Malformed as error:
        raise BadOutput(str(error)) from error
    return result
