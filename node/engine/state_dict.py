"""The pickle in torch's files, read as data: what it would build is noted, and nothing that it names is run.

Only what torch writes for a dictionary of tensors is understood. Everything is bounded by the length of the pickle.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

_REBUILD: Final = "torch._utils _rebuild_tensor_v2"
_PARAMETER: Final = "torch._utils _rebuild_parameter"
_ORDERED: Final = "collections OrderedDict"
# Storages by their names, with the dtypes that safetensors has for them.
_DTYPES: Final = {
    f"torch {name}Storage": dtype
    for name, dtype in {
        "Float": "F32",
        "Half": "F16",
        "BFloat16": "BF16",
        "Double": "F64",
        "Bool": "BOOL",
        "Long": "I64",
        "Int": "I32",
        "Short": "I16",
        "Char": "I8",
        "Byte": "U8",
    }.items()
}
_GLOBALS: Final = frozenset({_REBUILD, _PARAMETER, _ORDERED, *_DTYPES})
_MOST: Final = 1 << 60
_MOST_DIMENSIONS: Final = 8
_VALUES: Final = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
)
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True, slots=True)
class Storage:
    """So many numbers of one dtype, in the archive's file of that key."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """Part of a storage, from a number on, in a shape."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


class _Mark:
    """Where the arguments of a later instruction begin."""


def read_state_dict(data: bytes) -> Mapping[str, Tensor]:
    """The tensors by name. Raises: ValueError, in words for people, for anything else."""
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                break
            machine.run(opcode.name, argument)
        found = machine.pop()
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError("its pickle makes no sense") from error
    if not isinstance(found, dict):
        raise ValueError("it holds no dictionary of tensors")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"it holds {str(name)[:80]!r}, which is no tensor")
    return found


class _Machine:
    """A stack and a memo, as pickles work on them. Its methods raise ValueError, IndexError, KeyError, TypeError."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._actions: Mapping[str, Callable[[Any], None]] = {
            "MARK": lambda _: self._stack.append(_Mark()),
            "EMPTY_DICT": lambda _: self._stack.append({}),
            "EMPTY_LIST": lambda _: self._stack.append([]),
            "TUPLE": lambda _: self._stack.append(tuple(self._to_mark())),
            "PROTO": lambda _: None,
            "FRAME": lambda _: None,
            "BINPUT": self._put,
            "LONG_BINPUT": self._put,
            "MEMOIZE": lambda _: self._put(len(self._memo)),
            "BINGET": lambda index: self._stack.append(self._memo[index]),
            "LONG_BINGET": lambda index: self._stack.append(self._memo[index]),
            "GLOBAL": lambda name: self._stack.append(_known(name)),
            "STACK_GLOBAL": lambda _: self._stack.append(_known(" ".join(self._last(2)))),
            "BINPERSID": lambda _: self._stack.append(_storage(*self.pop())),
            "REDUCE": lambda _: self._stack.append(_built(*self._last(2))),
            "BUILD": lambda _: self._leave_attributes(),
            "SETITEM": lambda _: self._set(self._last(2)),
            "SETITEMS": lambda _: self._set(self._to_mark()),
            "APPEND": lambda _: self._extend(self._last(1)),
            "APPENDS": lambda _: self._extend(self._to_mark()),
        }

    def run(self, name: str, argument: Any) -> None:
        """One instruction."""
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            self._stack.append(tuple(self._last(_TUPLES[name])))
        elif name in self._actions:
            self._actions[name](argument)
        else:
            raise ValueError(
                f"its pickle has the instruction {name}, which dictionaries of tensors do not need"
            )

    def pop(self) -> Any:
        """What is on top."""
        return self._last(1)[0]

    def _last(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError
        taken = self._stack[-count:]
        del self._stack[-count:]
        return taken

    def _to_mark(self) -> list[Any]:
        at = len(self._stack)
        while not isinstance(self._stack[at - 1], _Mark):
            at -= 1
            if not at:
                raise IndexError
        taken = self._stack[at:]
        del self._stack[at - 1 :]
        return taken

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        keys = items[::2]
        # Nothing else may be hashed: a tuple in a tuple in a tuple has no bottom.
        if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(k, str | int) for k in keys):
            raise TypeError
        target.update(zip(keys, items[1::2], strict=True))

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise TypeError
        target.extend(items)

    def _leave_attributes(self) -> None:
        """What a dictionary is given beside its items says how old its modules are, and is of no use."""
        self.pop()
        if not isinstance(self._stack[-1], dict):
            raise TypeError


def _known(name: str) -> _Global:
    if name not in _GLOBALS:
        raise ValueError(f"its pickle calls {name[:80]!r}, which is not run")
    return _Global(name)


def _storage(kind: Any, type_: Any, key: Any, place: Any, count: Any) -> Storage:
    if (
        kind != "storage"
        or not isinstance(type_, _Global)
        or not isinstance(key, str)
        or type(count) is not int
    ):
        raise TypeError
    return Storage(key, _DTYPES[type_.name], count)


def _built(called: Any, given: Any) -> Any:
    if not isinstance(called, _Global) or not isinstance(given, tuple):
        raise TypeError
    if called.name == _ORDERED:
        if given:
            raise ValueError("its pickle has an OrderedDict in an old form")
        return {}
    if called.name == _PARAMETER:
        return given[0]
    if called.name != _REBUILD:
        raise TypeError
    storage, offset, shape, strides, *_ = given
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not all(type(n) is int and 0 <= n < _MOST for n in numbers):
        raise TypeError
    if len(shape) != len(strides) or len(shape) > _MOST_DIMENSIONS:
        raise TypeError
    return Tensor(storage, offset, tuple(shape), tuple(strides))
