"""Clients of SCRAM-SHA-256 and -PLUS for IMAP: those of two libraries, and one that says whatever it is told to."""

from __future__ import annotations

import base64
import ctypes
import ctypes.util
import hashlib
import hmac
import secrets
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, Self

import pytest
from OpenSSL import SSL
from scramp import ScramClient as ScrampClient

from tests.servers.porter import Door
from tests.servers.ports import LOOPBACK
from tests.servers.wire import Wire

SCRAM, PLUS = "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"
TLS_EXPORTER = "p=tls-exporter"
TAG = b"x"
_SECONDS = 20


class ScramClient(Protocol):
    """One exchange (RFC 5802 §3)."""

    @property
    def mechanism(self) -> str: ...

    def first(self) -> bytes: ...

    def final(self, server_first: bytes) -> bytes: ...

    def verify(self, server_final: bytes) -> bytes:
        """Fail if the server doesn't know the keys; what is answered otherwise is empty."""
        ...


class Scramp:
    """scramp's client. It knows no `tls-exporter` and no authorization identity."""

    mechanism = SCRAM

    def __init__(self, name: str, password: str) -> None:
        self._client = ScrampClient([SCRAM], name, password)

    def first(self) -> bytes:
        return self._encoded(self._client.get_client_first())

    def final(self, server_first: bytes) -> bytes:
        self._client.set_server_first(server_first.decode())
        return self._encoded(self._client.get_client_final())

    def verify(self, server_final: bytes) -> bytes:
        self._client.set_server_final(server_final.decode())
        return b""

    def step(self, challenge: bytes) -> bytes:
        """The next message: what libraries ask a mechanism for."""
        if not challenge:
            return self.first()
        return self.final(challenge) if challenge.startswith(b"r=") else self.verify(challenge)

    @staticmethod
    def _encoded(message: str) -> bytes:
        return message.encode()


class Gsasl:
    """GNU SASL's client, which mutt uses; of these two libraries the one that knows PLUS."""

    # Gsasl_property of gsasl.h
    _NAME, _PASSWORD, _TLS_EXPORTER = 1, 3, 25

    def __init__(self, name: str, password: str, binding: bytes = b"") -> None:
        """Args:
        binding: The connection's `tls-exporter` value; with one the mechanism is PLUS.
        """
        path = ctypes.util.find_library("gsasl")
        if path is None:
            pytest.skip("libgsasl is not installed")
        self.mechanism = PLUS if binding else SCRAM
        self._library = ctypes.CDLL(path)
        self._library.gsasl_free.argtypes = [ctypes.c_void_p]
        context, self._session = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("gsasl_init", ctypes.byref(context))
        self._call("gsasl_client_start", context, self.mechanism.encode(), ctypes.byref(self._session))
        values = {self._NAME: name.encode(), self._PASSWORD: password.encode()}
        if binding:
            values[self._TLS_EXPORTER] = base64.b64encode(binding)
        for number, value in values.items():
            self._call("gsasl_property_set", self._session, number, value)

    def first(self) -> bytes:
        return self._step(b"")

    def final(self, server_first: bytes) -> bytes:
        return self._step(server_first)

    def verify(self, server_final: bytes) -> bytes:
        return self._step(server_final)

    def _step(self, challenge: bytes) -> bytes:
        output, size = ctypes.c_void_p(), ctypes.c_size_t()
        length = ctypes.c_size_t(len(challenge))
        self._call("gsasl_step", self._session, challenge, length, ctypes.byref(output), ctypes.byref(size))
        response = ctypes.string_at(output, size.value) if size.value else b""
        self._library.gsasl_free(output)
        return response

    def _call(self, function: str, *arguments: object) -> None:
        code = getattr(self._library, function)(*arguments)
        assert code in (0, 1), f"{function}: {code}"  # GSASL_OK, GSASL_NEEDS_MORE


@dataclass
class Handmade:
    """A client that says of channel binding, and of whom it acts as, whatever it is told to."""

    name: str
    password: str
    mechanism: str = SCRAM
    flag: str = "n"  # gs2-cbind-flag: n, y, or p= and a type
    binding: bytes = b""
    authorization_identity: str = ""
    nonce: str = field(default_factory=secrets.token_urlsafe)
    _signature: bytes = b""

    def first(self) -> bytes:
        return self._header() + self._bare()

    def final(self, server_first: bytes) -> bytes:
        nonce, salt, iterations = (part[2:] for part in server_first.split(b",", 2))
        assert nonce.startswith(self.nonce.encode())
        salted = hashlib.pbkdf2_hmac("sha256", self.password.encode(), base64.b64decode(salt), int(iterations))
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        without_proof = b"c=%b,r=%b" % (base64.b64encode(self._header() + self.binding), nonce)
        signed = b",".join((self._bare(), server_first, without_proof))
        client_signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
        self._signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256")
        proof = bytes(mine ^ other for mine, other in zip(client_key, client_signature, strict=True))
        return without_proof + b",p=" + base64.b64encode(proof)

    def verify(self, server_final: bytes) -> bytes:
        assert server_final == b"v=" + base64.b64encode(self._signature), "no server that knows the keys"
        return b""

    def _header(self) -> bytes:
        acting = f"a={self.authorization_identity}" if self.authorization_identity else ""
        return f"{self.flag},{acting},".encode()

    def _bare(self) -> bytes:
        return f"n={self.name},r={self.nonce}".encode()


def bound(name: str, password: str, binding: bytes) -> Handmade:
    """A client of PLUS that does as it should."""
    return Handmade(name, password, PLUS, TLS_EXPORTER, binding)


@dataclass(frozen=True)
class Told:
    """What a server said in an exchange: its challenges, base64 undone, and the tagged line without its tag."""

    challenges: tuple[bytes, ...]
    answer: bytes

    @property
    def accepted(self) -> bool:
        return self.answer.startswith(b"OK ")

    @property
    def server_first(self) -> dict[str, str]:
        """The attributes of the server's first message."""
        message = next(challenge for challenge in self.challenges if challenge.startswith(b"r="))
        parts = (part.partition("=") for part in message.decode().split(","))
        return {key: value for key, _, value in parts}


def authenticate(wire: Wire, client: ScramClient, *, initial_response: bool = True) -> Told:
    """AUTHENTICATE, up to the tagged line."""
    steps: list[Callable[[bytes], bytes]] = [lambda _: client.first(), client.final, client.verify]
    command = b"%b AUTHENTICATE %b" % (TAG, client.mechanism.encode())
    if initial_response:
        command += b" " + base64.b64encode(steps.pop(0)(b""))
    wire.send(command + b"\r\n")
    challenges: list[bytes] = []
    while not (line := wire.line()).startswith(TAG + b" "):
        if line.startswith(b"+ "):
            challenges.append(base64.b64decode(line[2:], validate=True))
            wire.send(base64.b64encode(steps.pop(0)(challenges[-1])) + b"\r\n")
    return Told(tuple(challenges), line.removeprefix(TAG + b" "))


class BoundWire(Wire):
    """A Wire inside TLS by pyOpenSSL, which tells what this connection and no other has."""

    _tls: SSL.Connection | None = None

    @classmethod
    def enter(cls, door: Door, version: int = SSL.TLS1_3_VERSION) -> Self:
        """Connect by a door and come to where a login is allowed."""
        connection = socket.create_connection((LOOPBACK, door.port))
        # The kernel keeps the limit: pyOpenSSL knows nothing of the one of Python's sockets.
        limit = struct.pack("@ll", _SECONDS, 0)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connection.setsockopt(socket.SOL_SOCKET, option, limit)
        try:
            wire = cls(connection, read_greeting=door.starttls)
            if door.starttls:
                assert wire.command(b"STARTTLS")[-1].split()[1] == b"OK"
            wire._shake_hands(door, version)
            if not door.starttls:
                wire.greeting = wire.line()
        except BaseException:
            connection.close()
            raise
        return wire

    @property
    def channel_binding(self) -> bytes:
        """Its `tls-exporter` value (RFC 9266)."""
        assert self._tls is not None
        return self._tls.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")

    def send(self, data: bytes) -> None:
        if self._tls is None:
            super().send(data)
        else:
            self._tls.sendall(data)

    def _shake_hands(self, door: Door, version: int) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
        context.load_verify_locations(str(door.pki.ca))
        context.set_verify(SSL.VERIFY_PEER)
        self._tls = SSL.Connection(context, self.socket)
        self._tls.set_tlsext_host_name(b"localhost")
        self._tls.set_connect_state()
        self._tls.do_handshake()

    def _receive(self) -> bool:
        if self._tls is None:
            return super()._receive()
        try:
            self._buffer += self._tls.recv(65536)
        except SSL.WantReadError:
            raise TimeoutError(f"nothing came for {_SECONDS} s") from None
        except (SSL.ZeroReturnError, SSL.SysCallError):
            return False
        return True
