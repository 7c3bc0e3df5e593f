"""Which scheme a config.json names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from node.formats.bitsandbytes import read_bitsandbytes
from node.formats.compressed import read_compressed
from node.formats.fp8 import read_fp8
from node.formats.gptq import read_awq, read_gptq
from node.formats.mxfp4 import read_mxfp4
from node.formats.scheme import UNKNOWN, Scheme
from node.native.fields import Fields
from protocol.errors import UnsupportedModel

_FIELDS: Final = ("quantization_config", "compression_config")
METHODS: Final[Mapping[str, Callable[[Fields], Scheme]]] = {
    "fp8": read_fp8,
    "fbgemm_fp8": read_fp8,
    "gptq": read_gptq,
    "awq": read_awq,
    "compressed-tensors": read_compressed,
    "bitsandbytes": read_bitsandbytes,
    "mxfp4": read_mxfp4,
}


def read_scheme(config: Mapping[str, Any]) -> Scheme | None:
    """None: weights are kept plainly. Raises: UnsupportedModel, saying what is not read."""
    given = _given(config)
    if given is None:
        return None
    if not isinstance(given, dict):
        raise UnsupportedModel(f"config.json has quantization_config {str(given)[:80]!r}")
    loaded = "load_in_4bit" in given or "load_in_8bit" in given  # before there were other methods
    method = str(given.get("quant_method") or ("bitsandbytes" if loaded else ""))
    if method not in METHODS:
        known = ", ".join(METHODS)
        raise UnsupportedModel(f"it is quantised by {method[:80]!r}; what is read is {known}")
    fields = Fields(given, "quantization_config", UNKNOWN)
    fields.ignore("quant_method")
    scheme = METHODS[method](fields)
    fields.close()
    return scheme


def is_read(config: Mapping[str, Any]) -> bool:
    """Whether `read_scheme` does not raise."""
    with contextlib.suppress(UnsupportedModel):
        read_scheme(config)
        return True
    return False


def method_of(config: Mapping[str, Any]) -> str:
    """Its quant_method, whether it is one of these or not; "" if there is none. For people."""
    given = _given(config)
    return "" if given is None else str(given.get("quant_method") if isinstance(given, dict) else given)[:80]


def plainly(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without a word of that: what the plain checkpoint would have."""
    return {
        name: plainly(value) if isinstance(value, dict) and name.endswith("config") else value
        for name, value in config.items()
        if name not in _FIELDS
    }


def _given(config: Mapping[str, Any]) -> Any:
    """Of models with several parts one may say it."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    return next((part[name] for part in parts for name in _FIELDS if part.get(name)), None)
