"""The door: who is let in, decided by the head of a request; and bytes that are no request."""

from __future__ import annotations

import contextlib
import random
import re
import socket
from collections.abc import Iterator

import pytest

from protocol.errors import ConfigError
from swarm.http import limits
from swarm.http.guard import Head, asker_named, refusal
from swarm.http.settings import Settings, parse_keys
from tests.http.swarm import Api, api
from tests.support.waiting import block_until

KEY = "0123456789abcdef0123"
OTHER = "fedcba98765432100123"
JSON = {"content-type": "application/json"}
LOCAL = {"host": "127.0.0.1:8080", **JSON}


def status(settings: Settings, method: str = "POST", path: str = "/v1/models", **fields: str) -> int:
    """What a request gets: 200 is that it is let in."""
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    refused = refusal(Head(method, path, {**LOCAL, **named}), settings)
    return 200 if refused is None else int(refused.status)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("a.localhost", 200),
        ("192.168.1.7:8080", 200),
        ("box.example:8080", 200),
        ("", 403),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil.example@127.0.0.1", 403),
        ("127.0.0.1 evil", 403),
        ("[::1", 403),
        ("127.0.0.1:port", 403),
    ],
)
def test_a_name_that_was_made_to_lead_here_is_refused(host: str, expected: int) -> None:
    """Addresses, localhost and allowed names are served; any other name may be a page's own (DNS rebinding)."""
    assert status(Settings(names=frozenset({"box.example"})), host=host) == expected


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://127.0.0.1:8080", 200),
        ("https://chat.example", 200),
        ("http://127.0.0.1:8081", 403),
        ("http://127.0.0.1", 403),
        ("https://evil.example", 403),
        ("https://chat.example.evil.example", 403),
        ("null", 403),
        ("", 403),
        ("file://", 403),
        ("http://127.0.0.1:8080/path", 403),
    ],
)
def test_pages_of_other_sites_may_not_ask(origin: str, expected: int) -> None:
    """Our own pages and allowed ones may."""
    settings = Settings(origins=frozenset({"https://chat.example"}))
    assert status(settings, origin=origin) == expected


def test_what_a_browser_says_of_itself_counts() -> None:
    """A request from elsewhere without Origin is refused too, but for opening the page by a link."""
    settings, cross = Settings(), "cross-site"
    assert status(settings, "GET", sec_fetch_site=cross) == 403
    assert status(settings, "GET", "/", sec_fetch_site=cross, sec_fetch_mode="no-cors") == 403
    assert status(settings, "GET", "/", sec_fetch_site=cross, sec_fetch_mode="navigate") == 200
    assert status(settings, "GET", sec_fetch_site="same-origin") == 200


def test_keys() -> None:
    """Any of them, in OpenAI's way or Anthropic's; without one only that the server lives is told."""
    settings = Settings(host="0.0.0.0", keys=(KEY, OTHER))
    assert status(settings) == 401
    assert status(settings, authorization=f"Bearer {KEY}") == 200
    assert status(settings, authorization=f"bearer {OTHER}") == 200
    assert status(settings, x_api_key=OTHER) == 200
    assert status(settings, authorization=f"Bearer {KEY}x") == 401
    assert status(settings, authorization=KEY) == 401
    assert status(settings, authorization="Bearer \u00e9") == 401
    assert status(settings, "GET", "/health") == 200
    assert status(settings, "GET", "/metrics") == 401


def test_askers_are_told_apart_by_key_or_by_line() -> None:
    """Of IPv6 one line has a whole block; keys are not kept in words."""
    assert asker_named(None, ("192.0.2.7", 1)) == asker_named(None, ("192.0.2.7", 2))
    assert asker_named(None, ("192.0.2.7", 1)) != asker_named(None, ("192.0.2.8", 1))
    assert asker_named(None, ("2001:db8::1", 1)) == asker_named(None, ("2001:db8::2:3", 1))
    assert asker_named(None, ("2001:db8::1", 1)) != asker_named(None, ("2001:db8:0:1::1", 1))
    assert asker_named("secret", None) == asker_named("secret", ("192.0.2.7", 1))
    assert "secret" not in asker_named("secret", None)
    assert Settings(places=8).share == 8
    assert Settings(places=8, keys=(KEY, OTHER)).share == 6


def test_only_json_is_taken() -> None:
    """What a page may send anywhere without asking is a form or text."""
    assert status(Settings(), content_type="text/plain") == 415
    assert status(Settings(), content_type="application/json; charset=utf-8") == 200
    assert status(Settings(), content_encoding="gzip") == 415
    assert status(Settings(), content_length=str(limits.BODY_BYTES + 1)) == 413


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"host": "0.0.0.0"}, "SWARM_API_KEY"),
        ({"host": "192.168.1.7"}, "--no-key"),
        ({"keys": ("short",)}, "at least 16"),
        ({"keys": ("with a blank in the middle",)}, "no blanks"),
        ({"names": frozenset({"http://x"})}, "--allow-host"),
        ({"origins": frozenset({"chat.example"})}, "--allow-origin"),
    ],
)
def test_what_cannot_be_is_said_at_once(settings: dict[str, object], says: str) -> None:
    """Before anything is opened, with what to do."""
    with pytest.raises(ConfigError, match=says):
        Settings(**settings)  # type: ignore[arg-type]


def test_addresses_that_others_reach_can_be_opened() -> None:
    """By a key, or by saying so."""
    assert Settings(host="0.0.0.0", keys=(KEY,)).opens(KEY)
    assert Settings(host="0.0.0.0", open=True).opens(None)
    assert Settings(host="::1").opens(None)


def test_keys_in_a_file() -> None:
    """One a line; remarks and blank lines are none."""
    assert parse_keys(f"# ours\n{KEY}\n\n {OTHER} # of the house\n") == (KEY, OTHER)


@pytest.fixture(scope="module")
def shared() -> Iterator[Api]:
    """One server for all that it survives."""
    with api() as found:
        yield found


def answer_to(shared: Api, sent: bytes) -> bytes:
    """All that comes back until the server closes; it is alive afterwards."""
    with socket.create_connection(shared.address, timeout=10) as asking:
        asking.sendall(sent)
        said = b""
        while data := asking.recv(65536):
            said += data
    with shared.client() as client:
        assert client.get("/nothing").status_code == 404
    return said


LARGE = b"x" * (64 * 1024)
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: " + LARGE + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + LARGE[:20_000], b"431"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", b"400"),
        (b"GET / HTTP/1.0\r\n\r\n", b"403"),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", b"403"),
        (
            b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: \xff\r\nSec-WebSocket-Version: 13\r\n\r\n",
            b"404",
        ),
        (b"GET /%ff%fe/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"404"),
        (POST + b"Content-Type: text/plain\r\n\r\n", b"415"),
        (POST + b"Content-Type: application/json\r\nContent-Length: 99999999\r\n\r\n", b"413"),
        (POST + b"Content-Type: application/json\r\nContent-Length: 0\r\n\r\n", b"400"),
        (POST + b"Content-Type: application/json\r\nContent-Length: -1\r\n\r\n", b"400"),
        (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", b"4"),
    ],
)
def test_bytes_that_are_no_sound_request(shared: Api, sent: bytes, expected: bytes) -> None:
    """Refused in one line, and the server goes on."""
    said = answer_to(shared, sent)
    assert said.startswith(b"HTTP/1.1 " + expected), said[:200]
    assert said.count(b"HTTP/1.1") == 1


SOUND = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b'Content-Length: 46\r\n\r\n{"prompt": "1", "max_tokens": 1, "stream": true}'
)


def test_mutated_requests(shared: Api) -> None:
    """Whatever becomes of a sound request by a few bytes: an answer or a refusal, and it goes on."""
    rng = random.Random(5)
    for _ in range(300):
        sent = mutated(SOUND, rng)
        with socket.create_connection(shared.address, timeout=10) as asking:
            asking.sendall(sent)
            asking.shutdown(socket.SHUT_WR)
            said = b""
            with contextlib.suppress(ConnectionError):
                while data := asking.recv(65536):
                    said += data
        assert said == b"" or re.match(rb"HTTP/1.[01] (200|[34]\d\d) ", said), (sent, said[:200])
    with shared.client() as client:
        assert client.get("/nothing").status_code == 404


def mutated(data: bytes, rng: random.Random) -> bytes:
    """With some bytes changed, cut out, put in or doubled."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(made)), rng.randint(1, 8)
        match rng.randrange(4):
            case 0:
                made[at] = rng.randrange(256)
            case 1:
                del made[at : at + size]
            case 2:
                made[at:at] = rng.choice([b"\r\n", b"\0", b":", rng.randbytes(size)])
            case 3:
                made[at:at] = made[at : at + size]
    return bytes(made)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"[" * 100_000,
        b'{"messages": []}',
        b'{"messages": "x"}',
        b'{"messages": [1]}',
        b'{"messages": [{"role": "user"}]}',
        b'{"messages": [{"role": "root", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1e30}',
        b'{"messages": [{"role": "user", "content": "x"}], "n": 1000}',
        b'{"messages": [{"role": "user", "content": "x"}], "stop": [""]}',
        b'{"messages": [{"role": "user", "content": "x"}], "tools": [{}]}',
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
    ],
)
def test_bodies_that_ask_for_nothing_sound(shared: Api, body: bytes) -> None:
    """400 in OpenAI's form, one line."""
    with shared.client() as client:
        said = client.post("/v1/chat/completions", content=body, headers=JSON)
    assert said.status_code == 400, said.text
    assert "\n" not in said.json()["error"]["message"]


def test_who_sends_no_head_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that never ends has a deadline; so has a connection on which nothing comes."""
    monkeypatch.setattr(limits, "HEAD_S", 0.2)
    with api() as found:
        for begun in (b"", b"GET / HTTP/1.1\r\nHost: localh"):
            with socket.create_connection(found.address, timeout=10) as asking:
                asking.sendall(begun)
                assert asking.recv(100) == b""


def test_a_reader_that_takes_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server does not hold what it cannot send."""
    monkeypatch.setattr(limits, "STALLED_S", 0.2)
    with api() as found, socket.socket() as asking:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        asking.settimeout(10)
        asking.connect(found.address)
        with pytest.raises(ConnectionError):
            _send_for_ever(asking, b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)


def _send_for_ever(asking: socket.socket, data: bytes) -> None:
    while True:
        asking.sendall(data)


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all taken, the one that has been idle longest gives way."""
    monkeypatch.setattr(limits, "CONNECTIONS", 4)
    with api() as found:
        held = [socket.create_connection(found.address, timeout=10) for _ in range(8)]
        block_until(lambda: _closed(held[0]) and _closed(held[3]))
        with found.client() as client:
            assert client.get("/nothing").status_code == 404
        for each in held:
            each.close()


def _closed(asking: socket.socket) -> bool:
    asking.setblocking(False)
    try:
        return asking.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
