"""The administrators' unix socket, held by the master for whichever steward serves there."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
from collections.abc import Callable
from pathlib import Path

from proxy.admin.unix_socket import private_listener


class PrivateListener:
    """A unix socket that the proxy's user and root may open."""

    def __init__(self, sock: socket.socket, undo: Callable[[], None], *, given: bool = False) -> None:
        """As one of the functions below has it.

        Args:
            undo: Closes it, and takes it from where it is found.
            given: By the service manager.
        """
        self.socket = sock
        self.given = given
        self.close = undo


def make(path: Path, user: str | None) -> PrivateListener:
    """One of our own.

    Raises:
        BindFailed: It cannot be listened on.
    """
    stack = contextlib.ExitStack()
    sock = stack.enter_context(private_listener(path))
    if user is not None and os.geteuid() == 0:
        os.chown(path, pwd.getpwnam(user).pw_uid, -1)
    return PrivateListener(sock, stack.close)


def given(sock: socket.socket) -> PrivateListener:
    """One that the service manager has made and removes."""
    return PrivateListener(sock, sock.close, given=True)


def inherited(path: Path, sock: socket.socket) -> PrivateListener:
    """One that this program has made before its upgrade."""
    made = os.lstat(path) if path.is_socket() else None

    def undo() -> None:
        # While it still listens nobody else takes the path to be free.
        with contextlib.suppress(OSError):
            if made is not None and os.path.samestat(os.lstat(path), made):
                path.unlink()
        sock.close()

    return PrivateListener(sock, undo)
