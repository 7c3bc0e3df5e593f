"""The text process: where a stranger's tokenizer and chat template run, and nothing else of the client does.

It is started with an empty environment, gives up all that it does not need before it sees a byte of theirs (memory,
new processes, every file, socket or pipe beyond the two it has), and ends with its standard input. It knows nothing
of the client but the frames of `wire`. `mask_worker` lives in the same way.
"""

from __future__ import annotations

import codecs
import contextlib
import html  # noqa: F401 - Jinja's filters import this, and what is marked below, when they run; no file opens then
import json
import os
import pprint  # noqa: F401
import resource
import sys
import textwrap  # noqa: F401
import time
from collections.abc import Callable
from typing import Any, BinaryIO, Final

import jinja2.debug  # noqa: F401
import msgpack

from protocol.errors import SwarmError, TooLarge
from swarm.text.model import TextModel
from swarm.text.wire import (
    LENGTH_BYTES,
    OUT_OF_MEMORY,
    REASON_CHARS,
    REPLY_BYTES,
    frame,
    pack_ids,
)

_STANDARD_FILES: Final = 3


def main(memory_bytes: int) -> None:
    """Answer requests until standard input ends."""
    serve(memory_bytes, lambda files: _Worker(files).answer)


def serve(memory_bytes: int, made: Callable[[BinaryIO], Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """Answer by what is `made`, which is given where the bytes of files come, until standard input ends."""
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what prints by accident is no reply
    try:
        _give_up_everything(memory_bytes)
        answer = made(requests)
        while header := requests.read(LENGTH_BYTES):
            request = msgpack.unpackb(requests.read(int.from_bytes(header, "big")))
            _allow_seconds(request["seconds"])
            replies.write(_reply(answer, request))
            replies.flush()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # at once: tidying up takes memory too
    except BrokenPipeError:
        os._exit(0)  # nobody is left to tell


def _reply(answer: Callable[[dict[str, Any]], dict[str, Any]], request: dict[str, Any]) -> bytes:
    """The frame that answers a request; what is wrong with the files is told in it."""
    try:
        reply = frame(answer(request))
        if len(reply) > REPLY_BYTES:
            raise TooLarge("the model's tokenizer gives too much at once")
    except SwarmError as error:
        return frame({"error": type(error).__name__, "reason": str(error)[:REASON_CHARS]})
    return reply


class _Worker:
    """One model's text side, once it is loaded."""

    def __init__(self, files: BinaryIO) -> None:
        self._files = files
        self._model: TextModel | None = None
        self._answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "load": self._load,
            "encode": lambda request: {"ids": pack_ids(self._loaded.encode(request["text"]))},
            "chat": lambda request: {
                "ids": pack_ids(self._loaded.encode_chat(**json.loads(request["said"])))
            },
            "tools": lambda _: dict(zip(("format", "marks"), self._loaded.tools(), strict=True)),
            "decode": lambda request: {"texts": [self._loaded.decode(ids) for ids in request["windows"]]},
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to one. Raises: SwarmError, which is told in its place."""
        return self._answers[request["do"]](request)

    @property
    def _loaded(self) -> TextModel:
        assert self._model is not None
        return self._model

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        model = self._model = TextModel({name: self._files.read(size) for name, size in request["files"]})
        return {
            "eos": pack_ids(sorted(model.eos)),
            "bos": model.bos,
            "vocab_size": model.vocab_size,
            "context": model.context,
            "chats": model.chats,
            "silent": pack_ids(sorted(model.silent)),
            "suggested": model.suggested,
        }


def _give_up_everything(memory_bytes: int) -> None:
    """Bound what this process may take, for good: the hard limits sink with the soft ones."""
    # Read from files when they are first used.
    time.localtime()
    codecs.lookup("unicode-escape")
    bounds = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        # No file, socket or pipe opens any more.
        resource.RLIMIT_NOFILE: _STANDARD_FILES,
        # macOS takes no such bound: there the seconds alone bound what is allocated.
        resource.RLIMIT_AS: memory_bytes,
    }
    for what, most in bounds.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (most, most))


def _allow_seconds(seconds: int) -> None:
    """Let the kernel end this process when it has computed for so many seconds from now on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    until = int(used.ru_utime + used.ru_stime) + 1 + seconds
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (until, hard))
