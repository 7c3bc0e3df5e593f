"""What docs/numerics.md says and what the kernels compute are the same bits."""

from dataclasses import replace

import numpy as np
import pytest

from node.native.blocks import Blocks
from node.native.kernel import Kernel
from node.native.packed import Kind
from tests.node.native import oracle
from tests.node.native.cases import CASES, Model, whole

# Of the long cases, positions of one block only are left, and one block of the model: it is slow.
SHORT = {name: replace(case, tokens=min(case.tokens, 13)) for name, case in CASES.items()}


@pytest.mark.parametrize("name", SHORT)
def test_the_page_and_the_kernels_agree(name: str, kernel: Kernel) -> None:
    """Every state, to the bit."""
    case = SHORT[name]
    model = Model.on(kernel, case)
    expected = case.states()
    for index, weights in enumerate(model.weights):
        expected = oracle.block(case.shape, index, weights, case.kv_bytes, expected)
    assert np.array_equal(whole(model).view(np.uint32), expected.view(np.uint32))


def test_of_equal_experts_the_first_are_taken(kernel: Kernel) -> None:
    """A router that says the same of all: whoever takes others has other bits."""
    case = SHORT["int4, experts with whole shares"]
    assert case.shape.experts is not None
    size = case.shape.experts.count, case.shape.hidden
    same = [
        replace(block, router=kernel.pack(Kind.F32, size, [np.zeros(size, np.float32)]))
        for block in case.weights(kernel)
    ]
    model = Model(case, Blocks(kernel, case.shape, 0, same, case.kv_bytes), same)
    few = [replace(block, experts=block.experts[: case.shape.experts.per_row]) for block in same]
    expected = case.states()
    for index, block in enumerate(few):
        lonely = replace(case.shape, experts=replace(case.shape.experts, count=len(block.experts)))
        expected = oracle.block(lonely, index, block, case.kv_bytes, expected)
    assert np.array_equal(whole(model).view(np.uint32), expected.view(np.uint32))


def test_blocks_of_positions_are_merged_as_the_page_says(kernel: Kernel) -> None:
    """270 positions, of which the last see two blocks, through a window that begins in the first."""
    changed = {**CASES["f32, a window over blocks of positions"].changed, "windows": (40,)}
    case = replace(CASES["f32, a window over blocks of positions"], tokens=270, changed=changed)
    model = Model.on(kernel, case)
    expected = oracle.block(case.shape, 0, model.weights[0], case.kv_bytes, case.states())
    assert np.array_equal(whole(model).view(np.uint32), expected.view(np.uint32))
