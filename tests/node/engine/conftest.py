"""Tiny checkpoints and the unsplit models they hold, each written once."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from tests.node.engine.whole import Whole
from tests.support.models import make_model

Tiny = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models compute faster on one core than on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """`tiny(family)` is the folder of a sharded checkpoint. Not to be changed: other tests use it too."""

    @cache
    def folder(family: str, sharded: bool = True) -> Path:
        return make_model(family, tmp_path_factory.mktemp(family) / family, seed=7, sharded=sharded)

    return folder


@pytest.fixture(scope="session")
def whole(tiny: Tiny) -> Callable[[str], Whole]:
    """`whole(family)` is the same model as transformers loads it, unsplit."""

    @cache
    def load(family: str) -> Whole:
        return Whole(AutoModelForCausalLM.from_pretrained(tiny(family)).eval())

    return load
