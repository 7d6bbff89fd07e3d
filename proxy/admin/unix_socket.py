"""A unix socket that belongs to one user: nobody but he and root may open it, and it is gone when the process is."""

from __future__ import annotations

import os
import secrets
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from proxy.transport.listen import BindFailed

_BACKLOG = 64
_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid


@contextmanager
def private_listener(path: Path) -> Iterator[socket.socket]:
    """A listening, non-blocking unix socket of mode 0600, removed at the end of the block.

    What a process that died has left there is replaced; a socket that somebody listens on, and anything that is no
    socket, is not.

    Raises:
        BindFailed: It cannot be listened on.
    """
    with socket.socket(socket.AF_UNIX, _STREAM) as listening:
        try:
            made = _bind(listening, path)
        except OSError as exc:
            raise BindFailed(f"cannot listen on {path}: {exc.strerror}") from exc
        try:
            yield listening
        finally:
            # While it still listens nobody else takes the path to be free.
            _remove(path, made)


def peer_uid(sock: socket.socket | trio.socket.SocketType) -> int:
    """The user whose process has connected. Source: unix(7), SO_PEERCRED."""
    octets = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(octets)
    return int(uid)


def _bind(listening: socket.socket, path: Path) -> os.stat_result:
    """Listen under a name of our own, then take the path: who starts at the same time never sees a socket there that
    nobody listens on yet, and would be taken for dead.
    """
    own = path.with_name(f".{secrets.token_hex(4)}")
    # A chmod afterwards would leave a moment in which anybody could connect, and stay.
    before = os.umask(0o177)
    try:
        listening.bind(str(own))
    finally:
        os.umask(before)
    try:
        listening.listen(_BACKLOG)
        _take(path, own)
        return os.lstat(path)
    finally:
        own.unlink(missing_ok=True)


def _take(path: Path, own: Path) -> None:
    """Let the path name our socket, unless it names what has to stay."""
    try:
        os.link(own, path)
        return
    except FileExistsError:
        dead = _dead(path)
    if not os.path.samestat(os.lstat(path), dead):
        raise BindFailed(f"cannot listen on {path}: another process does")
    own.rename(path)


def _dead(path: Path) -> os.stat_result:
    """Which socket is there that nobody listens on."""
    found = os.lstat(path)
    if not stat.S_ISSOCK(found.st_mode):
        raise BindFailed(f"cannot listen on {path}: there is something else, which is no socket")
    with socket.socket(socket.AF_UNIX, _STREAM) as caller:
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:
            return found
        except BlockingIOError:
            pass  # whoever listens has a full queue
    raise BindFailed(f"cannot listen on {path}: another process does")


def _remove(path: Path, made: os.stat_result) -> None:
    try:
        if os.path.samestat(os.lstat(path), made):
            path.unlink()
    except OSError:
        return  # removed, or out of reach by now; the next start removes what is dead
