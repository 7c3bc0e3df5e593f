"""Calls of the engine, one or many, and a look at what they give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from node.compute.interfaces import Call, Engine, KvCache, StepResult
from protocol.candidates import Candidates, Want
from protocol.errors import Malformed, SwarmError
from protocol.tensors import Tensor, check_finite


class BadOutput(SwarmError):
    """The engine returned numbers that nobody can go on with."""


def run_checked(engine: Engine, calls: Sequence[Call]) -> list[StepResult | SwarmError]:
    """As `Engine.run`, with a BadOutput in place of numbers that are not finite."""
    return [_checked(given) for given in engine.run(calls)]


def run_alone(engine: Engine, cache: KvCache, position: int, inputs: Tensor, want: Want) -> StepResult:
    """What one call gives by itself. Raises: its error, and whatever the engine raises."""
    [given] = engine.run([Call(cache, position, inputs, want)])
    if isinstance(given, SwarmError):
        raise given
    return given


def _checked(given: StepResult | SwarmError) -> StepResult | SwarmError:
    if isinstance(given, Candidates):
        if np.isnan(given.logits).any() or not np.isfinite(given.lse).all():
            return BadOutput("the logits hold NaN or infinite values")
    elif isinstance(given, Tensor):
        try:
            check_finite(given)
        except Malformed as error:
            return BadOutput(str(error))
    return given
