"""The two doors of a running proxy: its unix socket on this machine, or its address, for whoever has a token."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

TOKEN_VARIABLE = "IMAP_PORTER_TOKEN"  # noqa: S105 - where it is, not what it is
_MAX_TOKEN_CHARACTERS = 512
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PORTS = {"https": 443, "http": 80}


class NotAnswered(Exception):
    """There was no answer that could be used. The text says why."""


class NotAsked(NotAnswered):
    """Nobody was asked: there is no socket, or nobody listens there, or this user may not ask."""


class NoDoor(Exception):
    """The settings or options name no door that could be used. The text says what to do."""


class Door(Protocol):
    """Where a proxy can be asked."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Of every request: `Host`, and the token."""
        ...

    @property
    def tls(self) -> ssl.SSLContext | None:
        """None: without."""
        ...

    @property
    def host(self) -> str:
        """Whose certificate it has to be."""
        ...

    def dial(self, seconds: float) -> socket.socket:
        """Connect; TLS is still to come. Raises OSError."""
        ...

    def explain(self, exc: OSError) -> NotAnswered:
        """What went wrong before anything was asked."""
        ...


@dataclass(frozen=True)
class SocketDoor:
    """`admin.socket`."""

    path: Path
    host: str = "localhost"
    tls: ssl.SSLContext | None = None

    @property
    def name(self) -> str:
        """As Door."""
        return str(self.path)

    @property
    def headers(self) -> Mapping[str, str]:
        """As Door."""
        return {"Host": self.host}

    def dial(self, seconds: float) -> socket.socket:
        """As Door."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(seconds)
            sock.connect(str(self.path))
        except BaseException:
            sock.close()
            raise
        return sock

    def explain(self, exc: OSError) -> NotAnswered:
        """As Door."""
        match exc:
            case FileNotFoundError() | ConnectionRefusedError():
                return NotAsked(f"the proxy is not running: nobody listens on {self.path}")
            case PermissionError():
                return NotAsked(f"{self.path}: only root and the user whom the proxy runs as may open it")
        return NotAnswered(f"{self.path}: {exc}")


@dataclass(frozen=True)
class AddressDoor:
    """`admin.address`, from anywhere."""

    name: str
    host: str
    port: int
    authority: str  # host and port, as the URL spells them
    tls: ssl.SSLContext | None
    token: str = field(repr=False)

    @property
    def headers(self) -> Mapping[str, str]:
        """As Door."""
        return {"Host": self.authority, "Authorization": f"Bearer {self.token}"}

    def dial(self, seconds: float) -> socket.socket:
        """As Door."""
        return socket.create_connection((self.host, self.port), timeout=seconds)

    def explain(self, exc: OSError) -> NotAnswered:
        """As Door."""
        match exc:
            case ConnectionRefusedError():
                return NotAsked(f"{self.name}: nobody listens there")
            case ssl.SSLCertVerificationError():
                return NotAsked(f"{self.name}: the certificate: {exc.verify_message}; --ca FILE names whom to trust")
            case TimeoutError():
                return NotAsked(f"{self.name}: no connection in time")
        return NotAsked(f"{self.name}: {exc.strerror or exc}")


def address_door(url: str, token_file: Path | None, ca: Path | None) -> AddressDoor:
    """The door that a URL names.

    Raises:
        NoDoor: Something is missing, or would let others see the token.
    """
    parts, port = _split(url)
    host = parts.hostname or ""
    tls = None
    if parts.scheme == "https":
        try:
            tls = ssl.create_default_context(cafile=None if ca is None else str(ca))
        except OSError as exc:
            raise NoDoor(f"--ca {ca}: {exc.strerror or exc}") from None
    elif host not in _LOOPBACK:
        raise NoDoor(f"--url {url}: everybody on the way could read the token; use https")
    return AddressDoor(f"{parts.scheme}://{parts.netloc}", host, port, parts.netloc, tls, _token(token_file))


def _split(url: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
        parts.netloc.encode("ascii")
    except (ValueError, KeyError):
        parts, port = urlsplit(""), 0
    further = (parts.username, parts.password, parts.path.strip("/"), parts.query, parts.fragment)
    if not parts.hostname or any(further) or not url.isprintable():
        # Not what was given: it may hold a password.
        raise NoDoor("--url: expected https://HOST:PORT and nothing more, as admin.address has it")
    return parts, port


def _token(file: Path | None) -> str:
    if file is None:
        token, where = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
        if not token:
            raise NoDoor(f"--url takes a token: --token-file FILE, or {TOKEN_VARIABLE} in the environment")
    else:
        where = f"--token-file {file}"
        try:
            with file.open(encoding="ascii") as lines:
                token = lines.readline(_MAX_TOKEN_CHARACTERS + 2).strip()
        except OSError as exc:
            raise NoDoor(f"{where}: {exc.strerror}") from None
        except UnicodeDecodeError:
            token = ""
    if (
        not token
        or len(token) > _MAX_TOKEN_CHARACTERS
        or not token.isascii()
        or not token.isprintable()
        or " " in token
    ):
        raise NoDoor(f"{where}: no token is there, as `hash-password --token` prints them")
    return token
