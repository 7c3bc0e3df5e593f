"""The C kernels over numpy arrays."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node.native.coded import Coded, lay_out
from node.native.packed import Arena, Kind, LinearStruct, Matrix, NormStruct, address, padded
from protocol.errors import BadCheckpoint


class ExpertStruct(ctypes.Structure):
    """`Expert` of `model.h`."""

    _fields_ = (("gate_up", LinearStruct), ("down", LinearStruct))


class LayerStruct(ctypes.Structure):
    """`Layer` of `model.h`."""

    _fields_ = (
        ("qkv", LinearStruct),
        ("out", LinearStruct),
        ("gate_up", LinearStruct),
        ("down", LinearStruct),
        ("router", LinearStruct),
        ("shared_gate", LinearStruct),
        ("query_up", LinearStruct),
        ("key_up", LinearStruct),
        ("value_up", LinearStruct),
        ("experts", ctypes.c_void_p),
        ("choice_bias", ctypes.c_void_p),
        ("sinks", ctypes.c_void_p),
        ("attention_norm", NormStruct),
        ("attention_post_norm", NormStruct),
        ("mlp_norm", NormStruct),
        ("mlp_post_norm", NormStruct),
        ("query_norm", NormStruct),
        ("key_norm", NormStruct),
        ("rotary", ctypes.c_int32),
        ("expert_count", ctypes.c_int32),
        ("window", ctypes.c_int32),
    )


class ModelStruct(ctypes.Structure):
    """`Model` of `model.h`."""

    _fields_ = (
        ("hidden", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("intermediate", ctypes.c_int32),
        ("rotary_dims", ctypes.c_int32),
        ("expert_intermediate", ctypes.c_int32),
        ("most_experts", ctypes.c_int32),
        ("experts_per_row", ctypes.c_int32),
        ("groups", ctypes.c_int32),
        ("groups_per_row", ctypes.c_int32),
        ("whole_shares", ctypes.c_int32),
        ("lone_shares", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("gated", ctypes.c_int32),
        ("centred", ctypes.c_int32),
        ("wide_norms", ctypes.c_int32),
        ("late_norms", ctypes.c_int32),
        ("side_by_side", ctypes.c_int32),
        ("kv_bytes", ctypes.c_int32),
        ("latent", ctypes.c_int32),
        ("query_rank", ctypes.c_int32),
        ("own", ctypes.c_int32),
        ("value", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("query_scale", ctypes.c_float),
        ("residual_scale", ctypes.c_float),
        ("score_cap", ctypes.c_float),
        ("share_scale", ctypes.c_float),
        ("clip", ctypes.c_float),
        ("inner_epsilon", ctypes.c_float),
        ("rotary_gain", ctypes.c_float * 2),
        ("frequencies", ctypes.c_void_p * 2),
        ("layers", ctypes.c_void_p),
    )


class BatchStruct(ctypes.Structure):
    """`Batch` of `model.h`."""

    _fields_ = (
        ("rows", ctypes.c_int32),
        ("layers", ctypes.c_int32),
        ("positions", ctypes.c_void_p),
        ("sessions", ctypes.c_void_p),
        ("pages", ctypes.c_void_p),
        ("page_counts", ctypes.c_void_p),
        ("states", ctypes.c_void_p),
    )


class HeadStruct(ctypes.Structure):
    """`Head` of `head.c`."""

    _fields_ = (
        ("weights", LinearStruct),
        ("norm", NormStruct),
        ("centred", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("cap", ctypes.c_float),
    )


class Kernel:
    """One object with a team of threads of its own. For one thread at a time."""

    def __init__(self, path: Path, isa: str, threads: int) -> None:
        """Use `node.native.load`, which makes sure that this processor runs the object."""
        self.isa = isa
        self._arena = Arena()
        self._library = _declared(ctypes.CDLL(str(path)))
        self._team = self._library.native_team(threads)
        if not self._team:
            raise MemoryError("no memory for the threads of the kernels")
        # At the end of the process the system takes the threads; they may be computing.
        weakref.finalize(self, self._library.native_team_free, self._team).atexit = False

    def pack(
        self,
        kind: Kind,
        shape: tuple[int, int],
        pieces: Iterable[NDArray[np.float32]],
        bias: NDArray[np.float32] | None = None,
    ) -> Matrix:
        """A matrix of this shape from pieces of its rows, each of whole tiles but for the last.

        Raises: BadCheckpoint, if a weight is not finite, or too large for its kind.
        """
        outs, ins = shape
        codes = self._arena.take(kind.code_bytes(padded(outs), ins))
        scales = self._arena.take(kind.scale_bytes(padded(outs), ins))
        row = 0
        for piece in pieces:
            rows = padded(len(piece))
            whole = np.ascontiguousarray(piece, np.float32)
            if rows != len(piece):
                whole = np.zeros((rows, ins), np.float32)
                whole[: len(piece)] = piece
            into = address(codes) + kind.code_bytes(row, ins), address(scales) + kind.scale_bytes(row, ins)
            if self._library.native_pack(self._team, kind, rows, ins, address(whole), *into):
                raise BadCheckpoint(f"a weight is not finite, or too large for {kind.name.lower()}")
            row += len(piece)
        assert row == outs
        if bias is not None:
            bias = np.concatenate((bias, np.zeros(padded(outs) - outs, np.float32)))
        return Matrix(kind, outs, ins, codes, scales, bias)

    def pack_coded(
        self,
        kind: Kind,
        shape: tuple[int, int],
        pieces: Iterable[Coded],
        bias: NDArray[np.float32] | None = None,
    ) -> Matrix:
        """A matrix in INT8 or INT4 from rows that are in such groups already.

        See `pack`; nothing is rounded but steps and minima, to 16 bits. Raises: BadCheckpoint.
        """
        outs, ins = shape
        codes = self._arena.take(kind.code_bytes(padded(outs), ins))
        scales = self._arena.take(kind.scale_bytes(padded(outs), ins))
        row = 0
        for piece in pieces:
            rows = padded(len(piece[0]))
            for into, laid, size in zip(
                (codes, scales), lay_out(kind, piece), (kind.code_bytes, kind.scale_bytes), strict=True
            ):
                into[size(row, ins) : size(row + rows, ins)] = laid
            row += len(piece[0])
        assert row == outs
        if bias is not None:
            bias = np.concatenate((bias, np.zeros(padded(outs) - outs, np.float32)))
        return Matrix(kind, outs, ins, codes, scales, bias)

    def blocks(
        self,
        model: ModelStruct,
        layers: int,
        states: NDArray[np.float32],
        positions: NDArray[np.int32],
        sessions: NDArray[np.int32],
        pages: Sequence[NDArray[np.uint64]],
    ) -> None:
        """Run rows through `layers` blocks, in place, and put their keys and values into the sessions' pages.

        states [rows, hidden]. `sessions` says whose each row is, by the index in `pages`; those of one session are
        neighbours, and their positions rise. pages: of each session the addresses [layers, pages].
        """
        tables = (ctypes.c_void_p * len(pages))(*(address(table) for table in pages))
        counts = np.array([table.shape[1] for table in pages], np.int32)
        batch = BatchStruct(
            len(states),
            layers,
            address(positions),
            address(sessions),
            ctypes.cast(tables, ctypes.c_void_p),
            address(counts),
            address(states),
        )
        if self._library.native_blocks(self._team, ctypes.byref(model), ctypes.byref(batch)):
            raise MemoryError(f"no memory for a step of {len(states)} rows")

    def head(self, head: HeadStruct, outs: int, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [rows, outs] of states [rows, ins]."""
        logits = np.empty((len(states), head.weights.outs), np.float32)
        if self._library.native_head(
            self._team, ctypes.byref(head), address(states), len(states), address(logits)
        ):
            raise MemoryError(f"no memory for the logits of {len(states)} rows")
        return logits[:, :outs]

    def last_norm(self, head: HeadStruct, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """States [rows, ins], contiguous, after the last norm: of what the logits are made."""
        normed = np.empty_like(states)
        self._library.native_last_norm(ctypes.byref(head), address(states), len(states), address(normed))
        return normed

    def product(self, matrix: Matrix, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """The matrix times each row of states [rows, ins], contiguous, with its bias: [rows, padded outs]."""
        out = np.empty((len(states), matrix.padded), np.float32)
        weights = ctypes.byref(matrix.struct())
        if self._library.native_linear(self._team, weights, address(states), len(states), address(out)):
            raise MemoryError(f"no memory for a product of {len(states)} rows")
        return out

    def log_sum_exp(self, logits: NDArray[np.float32], temperature: float) -> float:
        """The logarithm of the sum of e^(logit / temperature) over one row."""
        greatest = ctypes.c_float()
        total = self._library.native_normaliser(
            address(logits), len(logits), temperature, ctypes.byref(greatest)
        )
        return greatest.value + math.log(total) if total > 0 else math.nan

    def read(self, data: NDArray[np.uint8]) -> None:
        """Read these bytes with all threads, and do nothing else: how fast memory is."""
        self._library.native_read(self._team, address(data), data.nbytes)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, int32 = ctypes.c_void_p, ctypes.c_int32
    library.native_team.restype = pointer
    library.native_team.argtypes = [ctypes.c_int]
    library.native_team_free.restype = None
    library.native_team_free.argtypes = [pointer]
    library.native_pack.argtypes = [pointer, ctypes.c_int, int32, int32, pointer, pointer, pointer]
    library.native_blocks.argtypes = [pointer] * 3
    library.native_head.argtypes = [pointer] * 3 + [int32, pointer]
    library.native_last_norm.argtypes = [pointer, pointer, int32, pointer]
    library.native_last_norm.restype = None
    library.native_linear.argtypes = [pointer] * 3 + [int32, pointer]
    library.native_read.argtypes = [pointer, pointer, ctypes.c_int64]
    library.native_normaliser.argtypes = [pointer, ctypes.c_int64, ctypes.c_float, pointer]
    library.native_normaliser.restype = ctypes.c_double
    return library
