"""The text process: whatever files a stranger hands out, the client lives, and its next model works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import (
    ConfigError,
    LocalProtocolError,
    Malformed,
    RemoteProtocolError,
    SwarmError,
    TooLarge,
)
from protocol.fields import parse_fields
from swarm.portal import Portal
from swarm.text import process as text_process
from swarm.text.model import TextModel
from swarm.text.process import Bounds, TextProcess
from swarm.text.text import About, Text, load_text
from swarm.text.wire import MIB, REQUEST_BYTES, SILENT_IDS, pack_ids, parse_ids
from tests.support.waiting import block_until, eventually
from tests.swarm.tokenizers import metaspace, model_files

ROOT = Path(__file__).parents[2]
TALK = [{"role": "user", "content": "hello"}]
# As the bounds are, but sooner reached.
TIGHT = Bounds(memory_bytes=512 * MIB, load_s=2, ask_s=1, decode_s=1, patience=20.0)
# Whoever waits for these waits longer than a test may take.
PATIENT = Bounds(ask_s=600)
# What this process may grow by, whatever a model's files do.
GROWTH_BYTES = 48 * MIB


@asynccontextmanager
async def running(bounds: Bounds = TIGHT) -> AsyncIterator[TextProcess]:
    process = TextProcess(bounds)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.run)
        yield process
        nursery.cancel_scope.cancel()


@contextmanager
def bounded_growth() -> Iterator[None]:
    """Within, the peak of this process's memory stays near what it was."""
    clear = Path("/proc/self/clear_refs")
    before = psutil.Process().memory_info().rss
    if clear.exists():
        clear.write_text("5")  # the peak counts from here on
    yield
    peak = psutil.Process().memory_info().rss
    if clear.exists():
        [line] = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")]
        peak = int(line.split()[1]) * 1024
    assert peak - before < GROWTH_BYTES


async def still_works(process: TextProcess) -> None:
    """The next model is as good as if nothing had been."""
    text = await load_text(process, model_files(metaspace()))
    assert await text.decode(await text.encode("hello")) == "hello"


def edited(**parts: Any) -> dict[str, bytes]:
    """A sound model but for these parts of its tokenizer.json."""
    files = model_files()
    tokenizer = {**json.loads(files["tokenizer.json"]), **parts}
    return {**files, "tokenizer.json": json.dumps(tokenizer).encode()}


def templated(source: str) -> dict[str, bytes]:
    return {**model_files(), "chat_template.jinja": source.encode()}


def replacing(count: int) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": "o"}, "content": "o" * count}


def added(count: int) -> list[dict[str, Any]]:
    how = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": i, "content": f"<{i}>", **how} for i in range(count)]


DOUBLING = "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x DO %}{% endfor %}"

TEMPLATES = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loop.cycle": "{% for a in range(99999) %}{% for b in range(99999) %}{{ loop.cycle(1, 2) }}{% endfor %}"
    "{% endfor %}",
    "repeated text": "{{ 'a' * 10 ** 11 }}",
    "repeated list": "{{ [0] * 10 ** 10 }}",
    "power": "{{ 10 ** 9999999 }}",
    "doubling by +": DOUBLING.replace("DO", "+ ns.x"),
    "doubling by replace": DOUBLING.replace("DO", ".replace('a', 'aa')"),
    "translate": "{{ ('a' * 99999).translate({97: 'b' * 99999}) }}",
    "tojson": "{% set ns = namespace(x=[1]) %}{% for i in range(200) %}{% set ns.x = [ns.x] * 99 %}{% endfor %}"
    "{{ ns.x | tojson(indent=100000) }}",
    "bytes": "{{ ('a' * 99999999).encode('utf-8') * 99 }}",
    "sort": "{% for i in range(99999) %}{{ range(99999) | list | sort | length }}{% endfor %}",
    "shared lists": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% endfor %}{{ ns.x }}",
    "wide format": "{{ '%999999999d' % 1 }}",
    "nested format": "{{ '{:>{w}}'.format(1, w=999999999) }}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "captures": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}"
    "{% endset %}{% set ns.x = y %}{% endfor %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
async def test_a_hostile_template_ends_with_its_process(name: str) -> None:
    """In the time and memory that it has, and as the peer's fault."""
    async with running() as process:
        with bounded_growth(), pytest.raises(RemoteProtocolError):
            await (await load_text(process, templated(TEMPLATES[name]))).encode_chat(TALK)
        await still_works(process)


TOKENIZERS: dict[str, Callable[[], dict[str, bytes]]] = {
    "a normaliser that doubles": lambda: edited(
        normalizer={"type": "Sequence", "normalizers": [replacing(2)] * 40}
    ),
    "a normaliser that multiplies": lambda: edited(
        normalizer={"type": "Sequence", "normalizers": [replacing(1000)] * 9}
    ),
    "a long prefix": lambda: edited(normalizer={"type": "Prepend", "prepend": "o" * 60_000_000}),
    "a decoder that doubles": lambda: edited(
        decoder={"type": "Sequence", "decoders": [{"type": "Fuse"}, *[replacing(2)] * 40]}
    ),
    "a decoder of long texts": lambda: edited(
        decoder={"type": "Sequence", "decoders": [{"type": "Fuse"}, replacing(2_000_000)]}
    ),
    "more special tokens than anybody has": lambda: edited(added_tokens=added(SILENT_IDS + 1)),
    "a pattern that tracks back": lambda: edited(
        pre_tokenizer={
            "type": "Split",
            "pattern": {"Regex": "((h|e|l|o)*)*" * 12 + "(?=z)"},
            "behavior": "Isolated",
            "invert": False,
        }
    ),
    "many empty lists": lambda: {**model_files(), "config.json": b"[" + b"[]," * 20_000_000 + b"[]]"},
    "many empty maps": lambda: {
        **model_files(),
        "tokenizer_config.json": b'{"a":[' + b"{}," * 20_000_000 + b"{}]}",
    },
    "deep lists": lambda: {**model_files(), "generation_config.json": b"[" * 10_000_000},
    "a long number": lambda: {**model_files(), "config.json": b'{"vocab_size":' + b"9" * 10_000_000 + b"}"},
    "a deep tokenizer": lambda: {**model_files(), "tokenizer.json": b'{"model":' * 1_000_000},
}


@pytest.mark.parametrize("name", TOKENIZERS)
async def test_a_hostile_tokenizer_ends_with_its_process(name: str) -> None:
    """Whether it strikes when it is loaded, when it encodes or when it decodes; some patterns are only useless."""
    files = TOKENIZERS[name]()
    async with running() as process:
        with bounded_growth():
            try:
                text = await load_text(process, files)
                ids = await text.encode("hello o" * 100)
                await text.decode(ids[:10])
            except RemoteProtocolError:
                pass
            else:
                assert name == "a pattern that tracks back"
        await still_works(process)


async def test_a_reply_is_not_longer_than_its_tokens_allow() -> None:
    """What a decoder makes of a token is shown at once, so it is bounded by the token."""
    decoder = {"type": "Sequence", "decoders": [{"type": "Fuse"}, replacing(5000)]}
    async with running() as process:
        text = await load_text(process, edited(decoder=decoder))
        with pytest.raises(TooLarge, match="characters of 1 tokens"):
            await text.stream().push((await text.encode("o"))[0])


async def test_the_client_says_what_the_model_does_in_its_own_process() -> None:
    """Numbers, ids and texts are those of the files; a refusal of the template is the user's."""
    files = model_files()
    async with running() as process:
        text, model = await load_text(process, files), TextModel(files)
        about = text.about
        assert (about.eos, about.bos, about.vocab_size) == (model.eos, model.bos, model.vocab_size)
        assert (about.context, about.chats, about.silent) == (model.context, model.chats, model.silent)
        assert await text.encode_chat(TALK) == model.encode_chat(TALK)
        ids = await text.encode("a\udce9 é😀")
        assert await text.decode(ids) == "a? é😀"
        stream = text.stream()
        assert "".join([*[await stream.push(i) for i in ids], await stream.flush()]) == "a? é😀"
        refusing = await load_text(process, templated("{{ raise_exception('not\\n\\nyou') }}"))
        with pytest.raises(ConfigError, match="not you"):
            await refusing.encode_chat(TALK)
        with pytest.raises(ConfigError, match="bytes"):
            await text.encode("x" * (REQUEST_BYTES + 1))


async def test_a_megabyte_of_text_is_no_attack() -> None:
    """Nor is a conversation of a thousand turns."""
    async with running(Bounds()) as process:
        text = await load_text(process, model_files())
        assert len(await text.encode("word " * 200_000)) == 1_000_000
        assert len(await text.encode_chat(TALK * 1000)) > 1000


async def test_templates_may_use_what_jinja_has() -> None:
    """Filters and helpers that read a module or a file when they first run do so although no file opens any more."""
    source = (
        "{{ strftime_now('%Y') | length }}{{ 'a b' | wordwrap(1) }}{{ 'é' | urlize }}{{ [1] | pprint }}"
        "{{ '<b>x</b>' | striptags }}{{ {'a': 1} | tojson(indent=2) }}{{ {'a': 'é'} | xmlattr }}"
        "{{ 'a\\u00e9' | forceescape }}{{ 5 | filesizeformat }}{{ messages | map(attribute='role') | list }}"
        "{{ cycler(1, 2).next() }}{{ 'a/b' | urlencode }}{{ 1.5 | round | int }}{{ 'x' | title }}"
    )
    async with running() as process:
        text = await load_text(process, templated(source))
        assert len(await text.encode_chat(TALK)) > 10


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
async def test_the_process_has_given_up_what_it_does_not_need() -> None:
    """Bounds of the kernel, three files, nothing of the environment, a session of its own."""
    async with running() as process:
        await still_works(process)
        assert process.pid is not None
        child = psutil.Process(process.pid)
        assert os.getsid(process.pid) == process.pid
        assert set(child.environ()) <= {"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ", "LC_CTYPE"}
        if sys.platform == "linux":
            assert child.rlimit(psutil.RLIMIT_AS) == (TIGHT.memory_bytes,) * 2
            assert child.rlimit(psutil.RLIMIT_NOFILE) == (3, 3)
            for bound in (psutil.RLIMIT_FSIZE, psutil.RLIMIT_NPROC, psutil.RLIMIT_CORE):
                assert child.rlimit(bound) == (0, 0)
            assert child.num_fds() == 3


# --- ends


async def test_a_killed_process_is_replaced_in_mid_answer() -> None:
    """kill -9 from outside, idle or at work, costs a new process and no text."""
    async with running() as process:
        text = await load_text(process, model_files())
        ids, stream = await text.encode("hello 日本 hello"), text.stream()
        pieces = []
        for number, token in enumerate(ids):
            if number % 4 == 0:
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
            pieces.append(await stream.push(token))
        assert "".join([*pieces, await stream.flush()]) == "hello 日本 hello"


async def test_a_process_killed_again_and_again_is_told() -> None:
    """Whoever ends each one that comes gets one clear error, not an endless answer."""
    async with running(Bounds(load_s=2, ask_s=5)) as process:
        text = await load_text(process, templated(TEMPLATES["nested loops"]))

        async def kill_each() -> None:
            seen: set[int] = set()
            while True:
                await eventually(lambda: process.pid is not None and process.pid not in seen, 30)
                if (pid := process.pid) is not None:
                    seen.add(pid)
                    os.kill(pid, signal.SIGKILL)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_each)
            with pytest.raises(TooLarge):
                await text.encode_chat(TALK)
            nursery.cancel_scope.cancel()
        await still_works(process)


async def test_giving_up_a_request_is_no_wait() -> None:
    """A hostile one ends with its process soon after, an honest one is finished behind the scenes; both at once."""
    async with running(PATIENT) as process:
        text = await load_text(process, templated(TEMPLATES["nested loops"]))
        for _ in range(2):
            with trio.move_on_after(0.2) as scope:
                await text.encode_chat(TALK)
            assert scope.cancelled_caught
        await still_works(process)
        before = process.pid
        text = await load_text(process, model_files())
        with trio.move_on_after(0):
            await text.encode("hello")
        assert await text.decode(await text.encode("abc")) == "abc"
        assert process.pid == before


async def test_requests_of_several_tasks_are_served_in_order() -> None:
    """Each gets its own reply."""
    async with running() as process:
        text = await load_text(process, model_files())
        got: dict[str, str] = {}

        async def there_and_back(words: str) -> None:
            for _ in range(20):
                got[words] = await text.decode(await text.encode(words))

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(there_and_back, f"words {number}")
        assert all(words == back for words, back in got.items())
        assert len(got) == 10


async def test_nothing_is_left_of_it() -> None:
    """No process and no zombie after a normal end, an error, and a cancellation in mid-request."""
    for how in ("end", "error", "cancel"):
        pids: list[int] = []
        with trio.move_on_after(30) as scope:
            try:
                async with running() as process:
                    text = await load_text(process, templated(TEMPLATES["nested loops"]))
                    assert process.pid is not None
                    pids.append(process.pid)
                    if how == "error":
                        raise KeyError
                    if how == "cancel":
                        scope.deadline = trio.current_time() + 0.1
                        await text.encode_chat(TALK)
            except* KeyError:
                pass
        assert pids
        assert not psutil.pid_exists(pids[0])


async def test_a_closed_client_says_so() -> None:
    """Who asks afterwards is told, at once."""
    async with running() as process:
        text = await load_text(process, model_files())
    with pytest.raises(LocalProtocolError):
        await text.encode("x")


def test_ctrl_c_ends_a_hostile_request_at_once() -> None:
    """From an ordinary thread, as the command line asks; the client goes on."""
    with Portal() as portal:
        process = TextProcess(PATIENT)

        @asynccontextmanager
        async def texts() -> AsyncIterator[Text]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.run)
                yield await load_text(process, templated(TEMPLATES["nested loops"]))
                nursery.cancel_scope.cancel()

        with portal.holding(texts()) as text:
            threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
            with pytest.raises(KeyboardInterrupt):
                portal.call(text.encode_chat, TALK)
            assert portal.call(text.decode, portal.call(text.encode, "hello")) == "hello"


# --- surroundings

_SCRIPT = """
import json, os, sys, trio
from swarm.text.text import load_text
from swarm.text.process import Bounds, TextProcess
from tests.swarm.test_text_process import TALK, TEMPLATES, templated
from tests.swarm.tokenizers import model_files
BEFORE
async def main():
    process = TextProcess(Bounds(load_s=5, ask_s=3))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.run)
        text = await load_text(process, model_files())
        assert await text.decode(await text.encode("hello")) == "hello"
        out.write(f"{process.pid}\\n")
        out.flush()
        AFTER
        nursery.cancel_scope.cancel()
out = open(os.dup(1), "w")
trio.run(main)
"""
_HOSTILE_MODULE = "import os; os._exit(77)\n"


def script(before: str = "", after: str = "pass") -> list[str]:
    return [sys.executable, "-c", _SCRIPT.replace("BEFORE", before).replace("AFTER", after)]


@pytest.mark.parametrize(
    "before",
    [
        "os.close(0)",
        "os.close(0); os.close(2)",
        "import tempfile; os.chdir(tempfile.mkdtemp()); os.rmdir(os.getcwd())",
        "os.environ['PYTHONPATH'] = HOSTILE; os.chdir(HOSTILE)",
        "sys.path.insert(0, HOSTILE); sys.path.insert(0, ''); os.chdir(HOSTILE)",
        "os.environ.clear()",
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))",
    ],
)
def test_it_works_wherever_the_client_runs(before: str, tmp_path: Path) -> None:
    """Without standard input, without a working folder, and beside modules that only look like Python's own."""
    for name in ("json", "codecs", "html", "resource", "types"):
        (tmp_path / f"{name}.py").write_text(_HOSTILE_MODULE)
    done = subprocess.run(
        script(before.replace("HOSTILE", repr(str(tmp_path)))),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().isdigit()


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_it_does_not_outlive_a_client_that_is_killed(busy: bool, deadline: Callable[[float], float]) -> None:
    """kill -9 of the client: an idle process ends with its pipe, a busy one when its seconds are over."""
    hostile = (
        "text = await load_text(process, templated(TEMPLATES['nested loops'])); await text.encode_chat(TALK)"
    )
    client = subprocess.Popen(
        script(after=hostile if busy else "await trio.sleep_forever()"), cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert client.stdout is not None
        child = psutil.Process(int(client.stdout.readline()))
        if busy:
            used = child.cpu_times().user
            block_until(lambda: child.cpu_times().user > used + 0.3, deadline(30))
        client.kill()
        client.wait()
        block_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, deadline(30))
    finally:
        client.kill()
        client.wait()
        assert client.stdout is not None
        client.stdout.close()


# --- what it says is a stranger's

_SAYS = "import os, sys, time; out = sys.stdout.buffer; size = lambda n: n.to_bytes(4, 'big');"


@pytest.mark.parametrize(
    "program",
    [
        "while True: out.write(b'x' * 65536)",
        "out.write(size(1 << 31) + b'x' * 99); out.flush(); time.sleep(600)",
        "out.write(size(1)); out.flush(); time.sleep(600)",
        "out.write(size(5) + b'hello'); out.flush(); time.sleep(600)",
        "out.write(size(2) + b'\\x91\\x90'); out.flush(); time.sleep(600)",
        "out.write(size(1) + b'\\x80'); out.flush(); time.sleep(600)",
        "out.write(size(99) + b'\\x91' * 99); out.flush(); time.sleep(600)",
        "n = 5 << 20; out.write(size(n) + b'\\xdd\\0\\x4f\\xff\\xfb' + b'\\x90' * (n - 5)); time.sleep(600)",
        "os.close(0); os.close(1); time.sleep(600)",
        "time.sleep(600)",
        "os.abort()",
        "os._exit(0)",
        "os.kill(os.getpid(), 9)",
    ],
)
async def test_a_process_that_says_anything_costs_an_error(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a tokenizer could, that had taken it over: one error in bounded time and memory, and the next one works."""
    async with running(Bounds(load_s=1, patience=1.0)) as process:
        with bounded_growth(), monkeypatch.context() as patch:
            patch.setattr(text_process, "_PROGRAM", _SAYS + "\n" + program)
            await eventually(lambda: process.pid is not None, 30)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)  # the sound one that was started first
            with pytest.raises(SwarmError):
                await load_text(process, model_files())
    async with running() as process:
        await still_works(process)


async def test_messages_that_cannot_be_sent_are_the_callers_fault() -> None:
    """They raise where they are given, and the process goes on."""
    async with running() as process:
        text = await load_text(process, model_files(tokenizer_config={}))
        with pytest.raises(TypeError):
            await text.encode_chat([{"role": "user", "content": object()}])
        assert await text.decode(await text.encode_chat([{"content": "hi"}])) == "User: hi\nAssistant:"


@given(st.binary(max_size=64) | st.none() | st.integers() | st.lists(st.integers(), max_size=3))
def test_ids_are_parsed_or_refused(data: Any) -> None:
    """Any value gives ids within the bounds, or the peer is to blame."""
    try:
        ids = parse_ids(data, 8)
    except RemoteProtocolError:
        return
    assert len(ids) <= 8
    assert pack_ids(ids) == data
    assert all(0 <= token < limits.VOCABULARY for token in ids)


@pytest.mark.parametrize(
    "change",
    [
        {"eos": pack_ids(range(2000))},
        {"eos": [1, 2]},
        {"bos": -1},
        {"bos": limits.VOCABULARY},
        {"context": True},
        {"chats": 1},
        {"silent": b"123"},
        {"suggested": None},
        {"suggested": {"temperature": 0.0}},
        {"suggested": {"stop": 1}},
        {"more": 1},
    ],
    ids=str,
)
def test_what_a_model_says_of_itself_is_parsed_strictly(change: dict[str, Any]) -> None:
    """One field off, and none is believed."""
    good = {
        "eos": pack_ids([1]),
        "bos": None,
        "vocab_size": 5,
        "context": 9,
        "chats": True,
        "silent": pack_ids([1]),
        "suggested": {"top_k": 20},
    }
    assert parse_fields(About, good) == About(frozenset([1]), None, 5, 9, True, frozenset([1]), {"top_k": 20})
    with pytest.raises((Malformed, TooLarge)):
        parse_fields(About, {**good, **change})
