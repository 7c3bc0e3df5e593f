"""A JSON object of which every field has to be known: what nobody asked for is an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from protocol.errors import UnsupportedModel

_MISSING: Final = object()


class Fields:
    """Fields by name, with their types. A field that is null counts as absent. Raises: UnsupportedModel."""

    def __init__(
        self, fields: Mapping[str, Any], where: str, unknown: str = "which the native kernels do not know"
    ) -> None:
        self._fields = fields
        self._where = where
        self._unknown = unknown
        self._known: set[str] = set()

    def ignore(self, *names: str) -> None:
        """Know fields that say nothing about what is computed."""
        self._known.update(names)

    def expect(self, name: str, *allowed: object) -> None:
        """Know a field that may be absent, null, or have one of these values."""
        value = self.any(name, None)
        if value is not None and value not in allowed:
            raise UnsupportedModel(f"{self._where} has {name} {value!r}")

    def has(self, name: str) -> bool:
        """Whether it is there, null or not."""
        return name in self._fields

    def any(self, name: str, default: Any = _MISSING) -> Any:
        """Its value, of whatever type."""
        self._known.add(name)
        value = self._fields.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            raise UnsupportedModel(f"{self._where} has no {name}")
        return default

    def number(self, name: str, default: Any = _MISSING) -> float:
        """A finite number."""
        value = self.any(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UnsupportedModel(f"{self._where} has {name} {value!r}")
        return float(value)

    def count(self, name: str, default: Any = _MISSING, *, most: int = 1 << 20) -> int:
        """A whole number from 1 to `most`."""
        value = self.any(name, default)
        if type(value) is not int or not 1 <= value <= most:
            raise UnsupportedModel(f"{self._where} has {name} {value!r}")
        return value

    def flag(self, name: str, default: Any = _MISSING) -> bool:
        """True or false."""
        value = self.any(name, default)
        if not isinstance(value, bool):
            raise UnsupportedModel(f"{self._where} has {name} {value!r}")
        return value

    def text(self, name: str, default: Any = _MISSING) -> str:
        """A string."""
        value = self.any(name, default)
        if not isinstance(value, str):
            raise UnsupportedModel(f"{self._where} has {name} {value!r}")
        return value

    def close(self) -> None:
        """Every field has been asked for."""
        unknown = sorted(self._fields.keys() - self._known)
        if unknown:
            raise UnsupportedModel(f"{self._where} has {unknown[0]}, {self._unknown}")
