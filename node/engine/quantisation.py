"""Whether the weights of a checkpoint are quantised in its files, as config.json says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def quantisation_of(raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What is said of that, with a `quant_method`; None: nothing, they are not quantised."""
    parts = [raw, *(part for part in raw.values() if isinstance(part, dict))]  # of models with several parts
    given = next((part["quantization_config"] for part in parts if part.get("quantization_config")), None)
    return given if given is None or isinstance(given, dict) else {"quant_method": str(given)}
