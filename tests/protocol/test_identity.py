"""Keys: kept private, named in one way only."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadSignature, ConfigError, Malformed
from protocol.identity import KEY_BYTES, generate, hold, load_or_create, peer_id, public_key, verify
from tests.protocol.samples import IDENTITY, OTHER, SMALL_ORDER


def test_a_new_key_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    """0600, whatever the umask; the folder that is made for it is 0700; nothing else is left there."""
    path = tmp_path / "new" / "key"
    before = os.umask(0)
    try:
        identity = load_or_create(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.read_bytes() == identity.key.private_bytes_raw()
    assert list(path.parent.iterdir()) == [path]


def test_the_same_key_again(tmp_path: Path) -> None:
    """A peer keeps its name over restarts."""
    assert load_or_create(tmp_path / "key").peer == load_or_create(tmp_path / "key").peer


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o777])
def test_a_key_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    """With the command that mends it."""
    path = tmp_path / "key"
    load_or_create(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_or_create(path)


@pytest.mark.parametrize("size", [0, 1, KEY_BYTES - 1, KEY_BYTES + 1, 64])
def test_a_file_of_another_size_is_no_key(tmp_path: Path, size: int) -> None:
    """It is not overwritten: it may be somebody's only copy of something."""
    path = tmp_path / "key"
    path.write_bytes(bytes(size))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="not a key file"):
        load_or_create(path)
    assert path.stat().st_size == size


def test_places_that_hold_no_file(tmp_path: Path) -> None:
    """A folder in its place, a file in its folder's place, a link to nowhere: ConfigError, one line."""
    (tmp_path / "folder").mkdir(mode=0o700)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "folder", tmp_path / "file" / "key", tmp_path / "link"):
        with pytest.raises(ConfigError) as caught:
            load_or_create(path)
        assert "\n" not in str(caught.value)


@pytest.fixture
def nobody() -> Iterator[None]:
    """Without the rights of root, who may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("mode", [0o000, 0o500])
def test_a_folder_without_permission(mode: int) -> None:
    """An unreadable or unwritable folder is the user's to mend."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "closed"
        folder.mkdir(mode=mode)
        with pytest.raises(ConfigError, match="Permission denied"):
            load_or_create(folder / "key")
        folder.chmod(0o700)


def test_a_full_or_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the system is a ConfigError, and leaves no half-written file behind."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(ConfigError, match="No space left"):
        load_or_create(tmp_path / "key")
    assert list(tmp_path.iterdir()) == []


def _load(path: Path, found: multiprocessing.Queue[str]) -> None:
    found.put(load_or_create(path).peer)


def test_two_processes_at_once_have_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loser of the race uses the winner's key, also where both have the same process id (containers)."""
    path = tmp_path / "key"
    monkeypatch.setattr(os, "getpid", lambda: 1)
    link, winner = os.link, []

    def lose(source: str, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        winner.append(load_or_create(path))
        link(source, target)

    monkeypatch.setattr(os, "link", lose)
    assert load_or_create(path).peer == winner[0].peer
    assert path.read_bytes() == winner[0].key.private_bytes_raw()
    assert list(tmp_path.iterdir()) == [path]


def test_many_processes_at_once_have_one_key(tmp_path: Path) -> None:
    """The same with real processes."""
    context = multiprocessing.get_context("fork")
    found: multiprocessing.Queue[str] = context.Queue()
    processes = [context.Process(target=_load, args=(tmp_path / "key", found)) for _ in range(4)]
    for process in processes:
        process.start()
    peers = {found.get(timeout=30) for _ in processes}
    for process in processes:
        process.join()
    assert len(peers) == 1


def _hold(path: Path, said: multiprocessing.Queue[str]) -> None:
    try:
        hold(path)
        said.put("")
    except ConfigError as error:
        said.put(str(error))


def test_a_key_has_one_holder(tmp_path: Path) -> None:
    """A second process is told who it is, until the first has let go, also by dying. Reading is not holding."""
    path, context = tmp_path / "key", multiprocessing.get_context("fork")
    said: multiprocessing.Queue[str] = context.Queue()
    with hold(path) as held:
        assert held.sure
        assert load_or_create(path).peer == held.identity.peer
        other = context.Process(target=_hold, args=(path, said))
        other.start()
        complaint = said.get(timeout=30)
        other.join(30)
    assert f"the key {path} is in use by another node" in complaint
    assert complaint.endswith("give each node its own --home")
    for _ in range(2):  # the first of these ends without letting go
        other = context.Process(target=_hold, args=(path, said))
        other.start()
        assert said.get(timeout=30) == ""
        other.join(30)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_locks(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is used all the same, by somebody who knows that nobody can be sure."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold(tmp_path / "key") as held:
        assert not held.sure


def test_printing_shows_no_secret() -> None:
    """repr and str are the peer id."""
    identity = generate()
    secret = identity.key.private_bytes_raw()
    for shown in (repr(identity), str(identity), f"{identity}", repr(vars(identity))):
        assert identity.peer in shown
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
    assert repr(identity) == f"Identity({identity.peer})"


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_holds_its_key(public: bytes) -> None:
    """public_key undoes peer_id for any 32 bytes."""
    assert public_key(peer_id(public)) == public


@given(st.text(max_size=60))
def test_other_text_is_malformed(text: str) -> None:
    """Nothing but Malformed, whatever the text."""
    with pytest.raises(Malformed):
        public_key(text)


@pytest.mark.parametrize(
    "peer",
    ["", "1", IDENTITY.peer[:-1], IDENTITY.peer + "1", "1" + IDENTITY.peer,
     "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnR8sD",
     "é" * 40, "0OIl"],
)  # fmt: skip
def test_no_ed25519_peer_id(peer: str) -> None:
    """Cut, longer, RSA and non-base58 ids."""
    with pytest.raises(Malformed):
        public_key(peer)


@pytest.mark.parametrize("tail", [" ", "\n", "\t ", "\x0b"])
def test_regression_a_key_has_one_name(tail: str) -> None:
    """White space after a peer id, which base58 decoders overlook, makes no second name for a key."""
    with pytest.raises(Malformed):
        public_key(IDENTITY.peer + tail)
    signature = IDENTITY.sign("d", b"b")
    with pytest.raises(Malformed):
        verify(IDENTITY.peer + tail, "d", b"b", signature)


def test_regression_a_long_peer_id_is_refused_at_once() -> None:
    """base58 takes quadratic time: an id of a megabyte would take minutes."""
    with pytest.raises(Malformed):
        public_key("z" * 1_000_000)


def test_signatures() -> None:
    """Of this key, for this domain, over this body."""
    signature = IDENTITY.sign("d", b"body")
    assert len(signature) == 64
    verify(IDENTITY.peer, "d", b"body", signature)
    for peer, domain, body in (
        (OTHER.peer, "d", b"body"),
        (IDENTITY.peer, "e", b"body"),
        (IDENTITY.peer, "d", b"bodY"),
    ):
        with pytest.raises(BadSignature):
            verify(peer, domain, body, signature)


@given(st.binary(max_size=100))
def test_other_signatures_are_refused(signature: bytes) -> None:
    """Of any length and content; nothing but BadSignature."""
    with pytest.raises(BadSignature):
        verify(IDENTITY.peer, "d", b"body", signature)


@pytest.mark.parametrize("point", SMALL_ORDER, ids=bytes.hex)
def test_nobody_signs_for_a_key_that_anybody_can_sign_for(point: bytes) -> None:
    """A signature made of nothing, which holds for such a point and any or many a message, does not hold here."""
    for number in range(64):
        with pytest.raises(BadSignature):
            verify(peer_id(point), "test", bytes((number,)), bytes((1, *bytes(63))))
