"""The key's file: private, made once, held by one."""

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

from protocol.errors import ConfigError
from protocol.keyfile import hold, load_or_create
from protocol.transport.peer_id import KEY_BYTES


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


@pytest.mark.process
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


@pytest.mark.process
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
