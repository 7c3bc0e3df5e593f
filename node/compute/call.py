"""Calls of the engine, one or many, and a look at what they give."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from node.compute.interfaces import Call, Engine, KvCache, StepResult
from protocol.candidates import Candidates, Want
from protocol.errors import Malformed, SwarmError
from protocol.tensors import Tensor, check_finite

logger = logging.getLogger(__name__)


class BadOutput(SwarmError):
    """The engine returned numbers that nobody can go on with."""


def run_apart(engine: Engine, calls: Sequence[Call]) -> list[StepResult | Exception]:
    """As `Engine.run`, but never raises, and has a BadOutput in place of numbers that are not finite.

    Where the engine fails in all of them, each is run by itself: only whose fault it is has the error.
    """
    try:
        return [_checked(given) for given in engine.run(calls)]
    except Exception as error:
        if len(calls) == 1:
            return [error]
        logger.warning("a batch of %d failed, each is run by itself", len(calls), exc_info=error)
    return [given for call in calls for given in run_apart(engine, [call])]


def run_alone(engine: Engine, cache: KvCache, position: int, inputs: Tensor, want: Want) -> StepResult:
    """What one call gives by itself. Raises: its error, and whatever the engine raises."""
    [given] = engine.run([Call(cache, position, inputs, want)])
    if isinstance(given, Exception):
        raise given
    return given


def _checked(given: StepResult | Exception) -> StepResult | Exception:
    if isinstance(given, Candidates):
        if np.isnan(given.logits).any() or not np.isfinite(given.lse).all():
            return BadOutput("the logits hold NaN or infinite values")
    elif isinstance(given, Tensor):
        try:
            check_finite(given)
        except Malformed as error:
            return BadOutput(str(error))
    return given
