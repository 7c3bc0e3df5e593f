"""A matrix in few bits and the product of rows with it on a graphics card, by torch's own kernel for four bits.

That kernel takes codes of four bits in groups along a row, each group with a scale and a zero in bf16: a weight is
(code - 8) * scale + zero. Eight bits are two times four, one beside the other: a code is 16 * high + low, so the row
[high | low] is multiplied by the states twice over, with the scales 16 s and s. For many rows, which it was not made
for, the weights are widened piece by piece and multiplied as they always are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import torch

from node.engine.products import Pack, Product
from node.native.packed import GROUP, Kind
from protocol.errors import BadCheckpoint, ConfigError

# The kernel's tile: rows of the weight, and columns for each of its inner steps.
_ROWS: Final = 8
_COLUMNS: Final = 16
_ROW_BITS: Final = 3
# Columns that have a scale in common, in eight bits: where no group of 128 fits, of 64.
_WIDE: Final = (128, 64, GROUP)
# What is tried at each end of a group's range in four bits: as it is, and narrower by up to 8 %.
_NARROWED: Final = (0.0, 0.02, 0.04, 0.06, 0.08)
# From about so many rows on widening costs less than the kernel's passes over the codes (on an H200).
_MANY: Final = 192
# Weights that are packed or widened at once.
_PIECE: Final = 1 << 24
# Compute capability: earlier cards have no bf16, in which the kernel takes the states.
_CAPABILITY: Final = (8, 0)


def on_card(device: str) -> Pack:
    """How weights are packed for `device`. Raises: ConfigError, if it cannot compute with them."""
    if torch.device(device).type != "cuda" or torch.version.hip is not None:
        raise ConfigError(
            f"weights in few bits are for the CPU and NVIDIA's cards: leave quant out for {device}"
        )
    if (found := torch.cuda.get_device_capability(device)) < _CAPABILITY:
        raise ConfigError(
            f"{torch.cuda.get_device_name(device)} computes no bf16 (compute capability {found[0]}.{found[1]}, 8.0 "
            "is needed): leave quant out"
        )
    return _pack


def _pack(kind: Kind, weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
    return CardProduct(group(kind, weight), bias)


@dataclass(frozen=True, slots=True)
class Groups:
    """Codes uint8 [outs, ins] of so many bits, scales and zeros bf16 [outs, groups]; see `floats`."""

    bits: int
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    def floats(self) -> torch.Tensor:
        """The weights that these stand for, bf16 [outs, ins]."""
        return _widened(self.codes, self.scales, self.zeros, 1 << (self.bits - 1))

    def fours(self) -> Groups:
        """The same weights as codes of four bits, [outs, ins] or [outs, 2 ins]."""
        if self.bits == 4:
            return self
        return Groups(
            4,
            torch.cat((self.codes >> 4, self.codes & 15), 1),
            torch.cat((self.scales * 16, self.scales), 1),
            torch.cat((self.zeros, self.scales * 8), 1),
        )

    def eights(self) -> Groups:
        """Undoes `fours`, of codes of eight bits."""
        (high, low), (_, scales) = self.codes.chunk(2, 1), self.scales.chunk(2, 1)
        return Groups(8, high << 4 | low, scales, torch.zeros_like(scales))


def group(kind: Kind, weight: torch.Tensor) -> Groups:
    """A weight [outs, ins] in groups. Raises: BadCheckpoint, if it is not finite."""
    if not bool(weight.isfinite().all()):
        raise BadCheckpoint(f"a weight is not finite, or too large for {kind.name.lower()}")
    ins = weight.shape[1]
    step = max(1, _PIECE // ins)
    each = _eights if kind is Kind.INT8 else _fours
    size = next(size for size in _WIDE if ins % size == 0) if kind is Kind.INT8 else GROUP
    parts = [each(rows.float().unflatten(1, (-1, size))) for rows in weight.split(step)]
    codes, scales, zeros = (torch.cat(part) for part in zip(*parts, strict=True))
    return Groups(8 if kind is Kind.INT8 else 4, codes.flatten(1), scales, zeros)


def _eights(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales and zeros of rows in groups [n, groups, size]: from -127 to 127 about zero."""
    scales = (rows.abs().amax(2) / 127).bfloat16()
    return _coded(rows, scales, torch.zeros_like(scales), 128), scales, torch.zeros_like(scales)


def _fours(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `_eights`: of all ranges tried the one with the least squared error."""
    low, high = rows.amin(2), rows.amax(2)
    width = high - low
    best = torch.full_like(low, torch.inf)
    scales, zeros = torch.zeros_like(low).bfloat16(), torch.zeros_like(low).bfloat16()
    for from_low in _NARROWED:
        for to_high in _NARROWED:
            scale = ((1 - from_low - to_high) * width / 15).bfloat16()
            zero = (low + from_low * width + 8 * scale).bfloat16()
            wide = _widened(_coded(rows, scale, zero, 8).flatten(1), scale, zero, 8).view_as(rows)
            error = (wide - rows).square().sum(2)
            better = error < best
            best = torch.where(better, error, best)
            scales, zeros = torch.where(better, scale, scales), torch.where(better, zero, zeros)
    return _coded(rows, scales, zeros, 8), scales, zeros


def _coded(rows: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, half: int) -> torch.Tensor:
    steps = (rows - zeros[..., None].float()) / scales[..., None].float()
    # A group without a range: whatever its codes, it is its zero.
    return (steps.nan_to_num(0, 0, 0).round() + half).clamp(0, 2 * half - 1).byte()


def _widened(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, half: int) -> torch.Tensor:
    """The weights [n, ins], bf16, of codes [n, ins] with scales and zeros [n, groups]."""
    rows = (codes.bfloat16() - half).unflatten(1, (scales.shape[1], -1))
    return torch.addcmul(zeros[..., None], rows, scales[..., None]).flatten(1)


class CardProduct:
    """See `Product`; in bf16."""

    def __init__(self, groups: Groups, bias: torch.Tensor | None) -> None:
        self._outs, self._ins = groups.codes.shape
        fours = groups.fours()
        self._size = fours.codes.shape[1] // fours.scales.shape[1]
        self._inner = next(n for n in (8, 4, 2) if fours.codes.shape[1] % (n * _COLUMNS) == 0)
        missing = -self._outs % _ROWS
        pad = torch.nn.functional.pad
        self._codes = _laid_out(pad(fours.codes, (0, 0, 0, missing)), self._inner)
        self._pairs = pad(torch.stack((fours.scales, fours.zeros), 2), (0, 0, 0, 0, 0, missing))
        self._pairs = self._pairs.transpose(0, 1).contiguous()  # [groups, outs, 2]
        self._bias = None if bias is None else bias.bfloat16()
        self._halves = fours.codes.shape[1] // self._ins

    @property
    def nbytes(self) -> int:
        """See `Product`."""
        return self._codes.nbytes + self._pairs.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """See `Product`."""
        given = states.bfloat16().contiguous()
        out = self._widely(given) if len(given) >= _MANY else self._narrowly(given)
        if self._bias is not None:
            out += self._bias
        return out.to(states.dtype)

    def _narrowly(self, states: torch.Tensor) -> torch.Tensor:
        twice = states.repeat(1, self._halves) if self._halves > 1 else states
        out: torch.Tensor = torch.ops.aten._weight_int4pack_mm(twice, self._codes, self._size, self._pairs)
        return out[:, : self._outs]

    def _widely(self, states: torch.Tensor) -> torch.Tensor:
        out = states.new_empty(len(states), self._outs)
        width = self._ins * self._halves
        step = max(1, _PIECE // width // _ROWS)
        for tile in range(0, len(self._codes), step):
            codes = _taken_out(self._codes[tile : tile + step], self._inner)
            first = tile * _ROWS
            scales, zeros = self._pairs[:, first : first + len(codes)].transpose(0, 1).unbind(2)
            fours = Groups(4, codes, scales, zeros)
            groups = fours if self._halves == 1 else fours.eights()
            weights = groups.floats()[: self._outs - first]
            torch.mm(states, weights.T, out=out[:, first : first + len(weights)])
        return out


def _laid_out(codes: torch.Tensor, inner: int) -> torch.Tensor:
    """Codes of four bits [outs, ins] as the kernel reads them, int32 [outs / 8, ins / (16 inner), 32, inner / 2]."""
    pairs = codes[:, ::2] << 4 | codes[:, 1::2]
    packed: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack(pairs, inner)
    return packed


def _taken_out(packed: torch.Tensor, inner: int) -> torch.Tensor:
    """The codes [outs, ins] that `_laid_out` was given."""
    tiles = packed.contiguous().view(torch.uint8).flatten(2)
    fours = torch.stack((tiles & 15, tiles >> 4), 3)  # [outs / 8, ins / (16 inner), bytes of a tile, 2]
    bits = _bits(inner, packed.device)
    split = fours.view(*fours.shape[:2], *(2,) * len(bits))
    row_bits, column_bits = bits[:_ROW_BITS], bits[_ROW_BITS:]
    order = (0, *(2 + bit for bit in row_bits), 1, *(2 + bit for bit in column_bits))
    return split.permute(order).reshape(len(packed) * _ROWS, -1)


@cache
def _bits(inner: int, device: torch.device) -> tuple[int, ...]:
    """Which digit of a code's place in a packed tile is which digit of its row, then of its column, highest first.

    No document says so; it is tried out. Raises: RuntimeError, if places are not digits in another order.
    """
    columns = inner * _COLUMNS
    index = torch.arange(_ROWS * columns, device=device)
    found = torch.zeros_like(index)
    for shift in (0, 4, 8):
        digit = (index >> shift & 15).byte().view(_ROWS, columns)
        tile = _laid_out(digit, inner).view(torch.uint8).flatten()
        found |= torch.stack((tile & 15, tile >> 4), 1).flatten().long() << shift
    count = len(index).bit_length() - 1
    by_place = [int(found[1 << (count - 1 - digit)]).bit_length() for digit in range(count)]
    bits = tuple(by_place.index(count - digit) for digit in range(count))
    if not torch.equal(found.view((2,) * count).permute(bits).flatten(), index):
        raise RuntimeError(f"torch {torch.__version__} lays out weights of four bits in an unknown way")
    return bits
