"""A node whose tokenizer or chat template is hostile, and a client that uses it: no torch, no sockets."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import trio

from node.compute.interfaces import Engine
from node.config import NodeConfig
from protocol.errors import RemoteProtocolError, TooLarge
from protocol.model import ManifestFile, Span
from swarm.client import Client
from swarm.entry import Options, enter
from tests.node.fakes import MANIFEST, FakeEngine
from tests.node.test_daemon import FakeBackend, FakeModel, House
from tests.swarm.test_text_process import TEMPLATES, TOKENIZERS, templated
from tests.swarm.tokenizers import model_files


class HandedOut(FakeModel):
    """The fake model with these small files."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__()
        self._files = files
        named = (ManifestFile(name, len(data), hashlib.sha256(data).digest()) for name, data in files.items())
        self.manifest = replace(MANIFEST, files=tuple(named))

    def file(self, name: str) -> bytes:
        """As given."""
        return self._files[name]


class Backend(FakeBackend):
    """Its engine serves the model's own digest."""

    def __init__(self, model: HandedOut) -> None:
        super().__init__(model)
        self._manifest = model.manifest

    def load(self, span: Span) -> Engine:
        """See `node.backend.Backend`."""
        engine = FakeEngine(span)
        engine.manifest = self._manifest
        return engine


@asynccontextmanager
async def client_of(files: dict[str, bytes], cache: Path) -> AsyncIterator[Client]:
    """A client of one node that hands out these files."""
    async with trio.open_nursery() as nursery:
        house = House(nursery)
        node = await house.node(NodeConfig("fake"), Backend(HandedOut(files)))
        transport = await house.client()
        async with enter(transport, node.transport.addrs, Options(cache=cache)) as client:
            yield client
        nursery.cancel_scope.cancel()


def text_processes() -> list[psutil.Process]:
    """Those of this process that are there."""
    return [child for child in psutil.Process().children() if "swarm.text." in str(child.cmdline())]


async def continued(client: Client, prompt: str | list[int], chat: bool = False) -> str:
    return "".join([piece.text async for piece in client.generate(prompt, max_new_tokens=4, chat=chat)])


async def test_an_answer_is_made_of_the_nodes_own_files(tmp_path: Path) -> None:
    """Text in, text out; a text process that is killed meanwhile is not missed."""
    async with client_of(model_files(tokenizer_config={}), tmp_path) as client:
        expected = await continued(client, "123")
        assert expected
        [child] = text_processes()
        child.kill()
        assert await continued(client, "123") == expected
    assert text_processes() == []


@pytest.mark.parametrize(
    "files",
    [TOKENIZERS["a long prefix"], lambda: templated(TEMPLATES["translate"])],
    ids=["prefix", "template"],
)
async def test_the_client_outlives_what_nodes_hand_out(
    files: Callable[[], dict[str, bytes]], tmp_path: Path
) -> None:
    """The prompt's ids cannot be had, for one line; those that are given can still be continued."""
    async with client_of(files(), tmp_path) as client:
        with pytest.raises(TooLarge, match="too much time or memory"):
            await continued(client, "123", chat=True)
        async with client.conversation() as talk:
            with pytest.raises(TooLarge):
                async for _ in talk.say("123"):
                    pass
            assert talk.messages == []
        assert await continued(client, [20, 21])
    assert text_processes() == []


async def test_a_model_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    """On the way in, and nothing is left of the attempt."""
    with pytest.raises(ExceptionGroup) as caught:
        async with client_of(TOKENIZERS["many empty lists"](), tmp_path):
            pass
    assert caught.group_contains(RemoteProtocolError)
    assert text_processes() == []
