"""The same bits from every object, with any number of threads, however a prompt is cut, alone or beside others."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from node.native.kernel import Kernel
from node.native.known_answer import wrong_answers
from tests.node.native.cases import CASES, WAYS, Model, digest, packed_digest, whole

# name -> [packed weights, states that leave]. Whoever changes the arithmetic changes its version, and these.
GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text("utf-8"))
THREADS = (1, 2)

KernelFor = Callable[[str, int], Kernel]


def test_every_case_has_its_answer() -> None:
    """The file and the cases name the same."""
    assert GOLDEN.keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_every_object_meets_the_golden_hashes(name: str, isas: list[str], kernel_for: KernelFor) -> None:
    """Packed by each, and run by each with one thread and two."""
    found = {}
    for isa in isas:
        for threads in THREADS:
            model = Model.on(kernel_for(isa, threads), CASES[name])
            found[isa, threads] = [packed_digest(model.weights), digest(whole(model))]
    assert found == dict.fromkeys(found, GOLDEN[name])


@pytest.mark.parametrize("name", CASES)
def test_it_does_not_matter_how_it_is_run(name: str, kernel_for: KernelFor, isas: list[str]) -> None:
    """Chunks, single tokens, single blocks and ragged batches give the states of the whole prompt."""
    case = CASES[name]
    for isa in isas[:1] if case.tokens > 100 else isas:
        for threads in THREADS:
            model = Model.on(kernel_for(isa, threads), case)
            found = {way: digest(run(model)) for way, run in WAYS.items()}
            assert found == dict.fromkeys(found, GOLDEN[name][1]), (isa, threads)


def test_every_object_knows_the_answers(isas: list[str], kernel_for: KernelFor) -> None:
    """What is asked at load."""
    assert [list(wrong_answers(kernel_for(isa, 2))) for isa in isas] == [[] for _ in isas]
