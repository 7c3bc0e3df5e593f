"""Pages under caches that fork, roll back and end in any order, and the memory under the pages."""

from __future__ import annotations

import ctypes
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.compute.call import run_alone
from node.compute.interfaces import PAGE_POSITIONS
from node.native.cache import PagedCache
from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.kernel import Kernel
from node.native.pages import SLAB_BYTES, SPARE_BYTES, SPARE_SHARE, PagePool
from node.native.precision import PRECISIONS
from protocol.candidates import NOTHING, Candidates, Want
from protocol.errors import LocalProtocolError
from protocol.model import Span
from protocol.tensors import from_numpy

BLOCKS, ROW_BYTES = 2, 4
WHOLE = Span(0, 10)
PROMPT = np.arange(700, dtype=np.int32) * 7 % 400


class Written:
    """A cache, and what was written into it: a number for each position."""

    def __init__(self, cache: PagedCache, values: list[int]) -> None:
        self.cache = cache
        self.values = values

    def write(self, start: int, values: list[int]) -> None:
        """Go back to `start`, and add these."""
        stop = start + len(values)
        self.cache.reserve(start, stop)
        for position, value in zip(range(start, stop), values, strict=True):
            for block in range(BLOCKS):
                ctypes.c_int32.from_address(self._place(block, position)).value = value + block
        self.cache.length = stop
        self.values[start:] = values

    def fork(self, position: int) -> Written:
        """Another one from there on."""
        return Written(self.cache.fork(position), self.values[:position])

    def check(self) -> None:
        """It reads as it was written."""
        assert self.cache.length == len(self.values)
        assert self.cache.table.flags.c_contiguous
        for block in range(BLOCKS):
            read = [
                ctypes.c_int32.from_address(self._place(block, p)).value - block
                for p in range(len(self.values))
            ]
            assert read == self.values

    def _place(self, block: int, position: int) -> int:
        page, within = divmod(position, PAGE_POSITIONS)
        return int(self.cache.table[block, page]) + within * ROW_BYTES


def empty(pool: PagePool, max_tokens: int | None = None) -> Written:
    """A cache in which nothing stands."""
    return Written(PagedCache(Span(1, 3), BLOCKS, ROW_BYTES, max_tokens, pool), [])


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 30))
def test_no_cache_sees_what_another_does(seed: int, steps: int) -> None:
    """Whatever forks, goes on, goes back or ends, each reads what it was written; in the end nothing is held."""
    rng, pool = random.Random(seed), PagePool()
    alive = [empty(pool, rng.choice([None, 300, 1000]))]
    for _ in range(steps):
        one = rng.choice(alive)
        match rng.choice(["fork", "go on", "go back", "end"]):
            case "fork":
                alive.append(one.fork(rng.randint(0, len(one.values))))
            case "go on":
                one.write(len(one.values), rng.choices(range(1000), k=rng.randint(1, 280)))
            case "go back":
                one.write(rng.randint(0, len(one.values)), rng.choices(range(1000), k=rng.randint(1, 40)))
            case "end" if len(alive) > 1:
                alive.remove(one)
                one.cache.close()
        for each in alive:
            each.check()
    for each in alive:
        each.cache.close()
    assert pool.used_bytes == 0


def test_forks_share_what_they_have_in_common() -> None:
    """Nothing is copied by a fork; of a page that three write to, two copies are made."""
    pool = PagePool()
    first = empty(pool)
    first.write(0, list(range(600)))
    used = pool.used_bytes
    forks = [first.fork(520), first.fork(520)]
    assert pool.used_bytes == used
    page = BLOCKS * ROW_BYTES * PAGE_POSITIONS
    for number, fork in enumerate(forks, 1):
        fork.write(520, [7])
        assert pool.used_bytes == used + number * page
    first.write(600, [1])
    assert pool.used_bytes == used + 2 * page


def test_a_short_session_takes_little() -> None:
    """The first page grows with what is on it."""
    pool = PagePool()
    short = empty(pool)
    sizes = []
    for length in range(300):
        short.write(length, [length])
        sizes.append(pool.used_bytes // (BLOCKS * ROW_BYTES))
    assert [sizes[n] for n in (0, 31, 32, 63, 64, 128, 255, 256)] == [32, 32, 64, 64, 128, 256, 256, 512]
    short.check()


@pytest.mark.parametrize("stop", [512, 600])
def test_pages_go_from_one_cache_to_another(stop: int) -> None:
    """Also when the first one is gone, and not all positions of the last page are wanted."""
    pool = PagePool()
    first, second = empty(pool), empty(pool)
    first.write(0, list(range(600)))
    kept = first.cache.pages(0, stop)
    first.cache.close()
    second.cache.adopt(kept, stop - 7)
    second.values = list(range(stop - 7))
    for page in kept:
        page.release()
    second.check()
    second.write(400, [1, 2, 3])
    second.check()
    second.cache.close()
    assert pool.used_bytes == 0


def test_what_cannot_be_shared_is_refused() -> None:
    """What begins inside a page, what is not there, too few pages, and pages for others."""
    pool = PagePool()
    cache = empty(pool)
    cache.write(0, list(range(300)))
    for start, stop in ((10, 256), (0, 512), (256, 0), (-256, 0)):
        with pytest.raises(LocalProtocolError):
            cache.cache.pages(start, stop)
    for position in (-1, 301):
        with pytest.raises(LocalProtocolError):
            cache.cache.fork(position)
    (page,) = cache.cache.pages(0, 256)
    with pytest.raises(LocalProtocolError):
        cache.cache.adopt([page], 256)
    with pytest.raises(LocalProtocolError):
        PagedCache(Span(1, 3), BLOCKS, ROW_BYTES, pool=pool).adopt([page], 257)
    with pytest.raises(LocalProtocolError):
        PagedCache(Span(1, 2), 1, ROW_BYTES, pool=pool).adopt([page], 256)


@pytest.mark.parametrize("size", [1 << 10, 1 << 18, 3 << 20])
def test_what_nobody_uses_goes_back(size: int) -> None:
    """But for what is worth keeping; and what was kept is used again."""
    pool = PagePool()
    pages = [pool.take(1, 1, size) for _ in range(200 * SLAB_BYTES // size)]
    assert len({page.memory.ctypes.data for page in pages}) == len(pages)
    random.Random(1).shuffle(pages)
    half = len(pages) // 2
    for page in pages[half:]:
        page.release()
    for page in pages[:half]:
        assert pool.used_bytes >= size
        page.release()
        if size >= SLAB_BYTES:
            assert pool.free_bytes <= max(SPARE_BYTES, pool.used_bytes // SPARE_SHARE)
    assert pool.used_bytes == 0
    assert pool.free_bytes <= SPARE_BYTES
    before = pool.free_bytes
    again = [pool.take(1, 1, size) for _ in range(before // size)]
    assert pool.free_bytes == 0
    for page in again:
        page.release()
    assert pool.free_bytes == before


def test_a_fork_goes_on_to_the_bit_as_a_session_of_its_own(kernel: Kernel) -> None:
    """Two forks of one session beside it, over the border of a page, on memory that others have written to."""
    engine = NativeEngine.load(NativeCheckpoint.open("swarm/models/tiny", PRECISIONS["int8"]), WHOLE, kernel)
    used = engine.new_cache(WHOLE)
    for at in (0, 200):
        run_alone(engine, used, at, from_numpy(PROMPT[at : at + 300][::-1].copy()), NOTHING)
    used.close()
    first = engine.new_cache(WHOLE)
    run_alone(engine, first, 0, from_numpy(PROMPT[:250]), NOTHING)
    forks = [first.fork(250), first.fork(240), first]
    for tail, fork in enumerate(forks):
        rows = np.concatenate((PROMPT[fork.length : 255], PROMPT[tail : tail + 20]))
        found = run_alone(engine, fork, fork.length, from_numpy(rows), Want(top=0))
        alone = engine.new_cache(WHOLE)
        whole = np.concatenate((PROMPT[:255], PROMPT[tail : tail + 20]))
        expected = run_alone(engine, alone, 0, from_numpy(whole), Want(top=0))
        assert isinstance(found, Candidates)
        assert isinstance(expected, Candidates)
        assert found.logits.tobytes() == expected.logits.tobytes()
