"""Weights in groups of few bits as a graphics card has them: what they stand for, which needs no card to be told."""

import pytest
import torch

from node.engine import card
from node.engine.products import on_kernels
from node.native.load import load_kernel
from node.native.packed import Kind
from protocol.errors import BadCheckpoint, ConfigError


def weights(ins: int, outs: int = 24) -> torch.Tensor:
    """Numbers about zero, a few far out, and a group of one number only."""
    generator = torch.Generator().manual_seed(3)
    found = torch.randn(outs, ins, generator=generator) * 0.05
    found[::5, ::37] *= 20
    found[3, :32] = 0.25
    found[4, :32] = 0
    return found


def loss(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """By norms."""
    return float((found.float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("ins", [32, 96, 192, 256])
@pytest.mark.parametrize("kind", [Kind.INT8, Kind.INT4])
def test_groups_lose_what_the_kernels_lose(kind: Kind, ins: int) -> None:
    """About as much as on the CPU: eight bits have larger groups and scales of fewer digits here."""
    given = weights(ins)
    wide = card.group(kind, given).floats()
    assert wide.shape == given.shape
    product = on_kernels(load_kernel(1))(kind, given, None)
    on_cpu = product(torch.eye(ins)).T
    assert loss(wide, given) < 2 * loss(on_cpu, given)
    assert loss(wide, given) < (0.02 if kind is Kind.INT8 else 0.1)
    assert torch.equal(wide[4, :32], torch.zeros(32).bfloat16())
    assert torch.allclose(wide[3, :32].float(), torch.tensor(0.25), rtol=1e-2)


def test_eight_bits_are_two_times_four() -> None:
    """The two halves of a row are together the very same weights."""
    groups = card.group(Kind.INT8, weights(256))
    fours = groups.fours()
    assert int(fours.codes.max()) < 16
    high, low = (
        card.Groups(4, *(part.chunk(2, 1)[half] for part in (fours.codes, fours.scales, fours.zeros)))
        for half in (0, 1)
    )
    assert loss(high.floats().float() + low.floats().float(), groups.floats().float()) < 5e-3
    back = fours.eights()
    assert torch.equal(back.codes, groups.codes)
    assert torch.equal(back.floats(), groups.floats())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(number: float) -> None:
    """In both."""
    given = weights(64)
    given[7, 9] = number
    for kind in (Kind.INT8, Kind.INT4):
        with pytest.raises(BadCheckpoint, match="not finite"):
            card.group(kind, given)


def test_other_devices_are_refused_in_one_line() -> None:
    """They have no such product."""
    with pytest.raises(ConfigError, match="leave quant out for meta"):
        card.on_card("meta")
