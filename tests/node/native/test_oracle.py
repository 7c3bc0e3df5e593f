"""What docs/numerics.md says and what the kernels compute are the same bits."""

from dataclasses import replace

import numpy as np
import pytest

from node.native.kernel import Kernel
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


def test_blocks_of_positions_are_merged_as_the_page_says(kernel: Kernel) -> None:
    """270 positions, of which the last see two blocks, through a window that begins in the first."""
    changed = {**CASES["f32, a window over blocks of positions"].changed, "windows": (40,)}
    case = replace(CASES["f32, a window over blocks of positions"], tokens=270, changed=changed)
    model = Model.on(kernel, case)
    expected = oracle.block(case.shape, 0, model.weights[0], case.kv_bytes, case.states())
    assert np.array_equal(whole(model).view(np.uint32), expected.view(np.uint32))
