"""The unix socket: whose it is, when it is there, and what it leaves alone."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from proxy.admin.unix_socket import peer_uid, private_listener
from proxy.transport.listen import BindFailed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "admin.sock"


def caller(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock


def test_nobody_else_may_open_it_and_it_is_gone_afterwards(path: Path) -> None:
    before = os.umask(0)
    try:
        with private_listener(path) as listening:
            made = path.lstat().st_mode
            with caller(path), listening.accept()[0] as accepted:
                assert peer_uid(accepted) == os.getuid()
    finally:
        assert os.umask(before) == 0, "the process's own is as it was"
    assert (stat.S_ISSOCK(made), stat.S_IMODE(made)) == (True, 0o600)
    assert not path.exists()


def test_it_never_has_another_mode(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Watched(socket.socket):
        def bind(self, address: object) -> None:
            super().bind(address)  # type: ignore[arg-type]
            seen.append(stat.S_IMODE(os.lstat(str(address)).st_mode))

    monkeypatch.setattr(socket, "socket", Watched)
    with private_listener(path):
        assert seen == [0o600]


def test_what_a_dead_process_left_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    with private_listener(path) as listening, caller(path) as sock, listening.accept()[0] as accepted:
        sock.send(b"x")
        assert accepted.recv(1) == b"x"
        assert list(path.parent.iterdir()) == [path]


class Other:
    """A second start, at a certain moment of the first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.began = False
        self.lives = ExitStack()

    def begin(self) -> None:
        if not self.began:
            self.began = True
            self.lives.enter_context(private_listener(self.path))


@pytest.fixture
def other(path: Path) -> Iterator[Other]:
    second = Other(path)
    with second.lives:
        yield second


# Where nothing is left nobody is asked whether he lives.
@pytest.mark.parametrize(("left", "moment"), [(False, "listen"), (True, "listen"), (True, "connect")])
def test_of_two_starts_one_wins(
    path: Path, other: Other, left: bool, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(socket.socket):
        def listen(self, *args: int) -> None:
            if moment == "listen":
                other.begin()
            super().listen(*args)

        def connect(self, address: object) -> None:
            try:
                super().connect(address)  # type: ignore[arg-type]
            finally:
                if moment == "connect":
                    other.begin()

    if left:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    monkeypatch.setattr(socket, "socket", Interrupted)
    with pytest.raises(BindFailed, match="another process does"), private_listener(path):
        pass
    monkeypatch.undo()
    assert other.began
    caller(path).close()
    assert list(path.parent.iterdir()) == [path]


def leave_listener(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(0)
    return sock


def test_a_socket_that_lives_stays(path: Path) -> None:
    with leave_listener(path):
        with pytest.raises(BindFailed, match="another process does"), private_listener(path):
            pass
        # Now its queue, which holds one, is full.
        with pytest.raises(BindFailed, match="another process does"), private_listener(path):
            pass
        assert path.exists()


def test_what_is_no_socket_stays(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(BindFailed, match="no socket"), private_listener(path):
        pass
    assert path.read_text() == "precious"


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    with leave_listener(tmp_path / "other"):
        path.symlink_to(tmp_path / "other")
        with pytest.raises(BindFailed, match="no socket"), private_listener(path):
            pass


def test_no_such_folder(tmp_path: Path) -> None:
    path = tmp_path / "none" / "admin.sock"
    with pytest.raises(BindFailed, match=f"cannot listen on {path}: No such file or directory"), private_listener(path):
        pass


def test_somebody_elses_socket_is_not_removed(path: Path) -> None:
    with private_listener(path):
        path.unlink()
        other = leave_listener(path)
    assert path.exists()
    other.close()
