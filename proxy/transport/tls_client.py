"""TLS towards backends: whose certificate is expected, which one the proxy shows, sessions that are taken up again.

Theory of operation. A full handshake proves two things: the chain leads to an authority that we trust (OpenSSL), and
the certificate is for the name that we expect (here). A session that is taken up again (RFC 8446 §2.2, RFC 5077) was
proven so when it began; it saves the signature, the chain, and a good part of the time on both sides. So a session is
kept only by the connection whose login was complete, for this server and name alone, and for an hour at most or until
its certificate ends: then the chain is looked at anew. The name is compared every time. Nothing is sent early (0-RTT).

OpenSSL asks our callback about each certificate of a chain, and it does so in full handshakes alone: that is how the
two kinds are told apart.
"""

from __future__ import annotations

import ipaddress
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

import service_identity
import trio
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from OpenSSL import SSL
from OpenSSL.crypto import FILETYPE_ASN1, X509, dump_certificate
from service_identity.cryptography import (
    extract_patterns,
    verify_certificate_hostname,
    verify_certificate_ip_address,
)

from proxy.settings.backend_models import BackendTls
from proxy.transport.tls import Context, TlsFailed, TlsStream, new_context, no_other_work, note_problem, shake_hands

_LONGEST_SESSION_SECONDS = 3600.0
_NO_SESSION_SECONDS = 600.0  # after a handshake that a session has spoiled
_MOST_NAMES, _LONGEST_NAME = 8, 255  # of a certificate, in a message
# What reading a certificate raises where it breaks the rules, or has what nobody reads (an X.400 address, say).
_UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    service_identity.CertificateError,
)


class SessionFailed(TlsFailed):
    """A handshake failed that offered an earlier session; without one the next may succeed.

    OpenSSL's servers that ask for clients' certificates end such handshakes where nobody has given their sessions a
    context (SSL_CTX_set_session_id_context(3)), and Dovecot 2.3 gives none.
    """


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """What a server has shown."""

    names: tuple[str, ...]
    not_after: datetime | None  # None: the certificate cannot be read
    name_problem: str = ""  # "": it is for the name that was expected


@dataclass(frozen=True, slots=True)
class _Proof:
    """What stands behind a connection."""

    resumed: bool
    until: float  # how long its session may be taken up, on trio's clock


@dataclass(frozen=True, slots=True)
class _Kept:
    """A session that the next connection may take up."""

    session: SSL.Session
    until: float


def client_context(tls: BackendTls) -> Context:
    """A context for connections to backends; one for all that are to be spoken to alike.

    Raises:
        SSL.Error: A file cannot be used. The settings room has checked them before.
    """
    context = new_context(SSL.TLS_CLIENT_METHOD, "1.2")
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)  # each TlsClient keeps its own
    context.set_verify(SSL.VERIFY_PEER if tls.verify else SSL.VERIFY_NONE, _look_at)
    if tls.verify and tls.ca is None:
        context.set_default_verify_paths()
    elif tls.verify:
        context.load_verify_locations(str(tls.ca))
    if tls.certificate is not None:
        context.use_certificate_chain_file(str(tls.certificate))
        context.use_privatekey_file(str(tls.private_key))
        context.check_privatekey()
    return context


class TlsClient:
    """TLS with one server."""

    def __init__(self, context: Context, name: str) -> None:
        """Args:
        name: The host name or IP address that the server's certificate has to be for.
        """
        self.name = name
        self._context = context
        self._verifies = bool(context.get_verify_mode() & SSL.VERIFY_PEER)
        self._asked_name = None if is_address(name) else name.encode("idna")
        self._kept: _Kept | None = None
        self._none_before = -math.inf  # no session is kept or offered before this

    async def connect(
        self, sock: socket.socket, *, fresh: bool = False, before_work: Callable[[], None] = no_other_work
    ) -> TlsStream:
        """The client's side of a handshake, and the check of the certificate's name (RFC 7817, RFC 9525).

        Args:
            fresh: No earlier session is taken up: the certificate is shown and verified.
            before_work: Called before each step.
        Raises:
            SessionFailed: No handshake, and an earlier session was on offer.
            TlsFailed: No handshake, no trusted chain, or another server's certificate.
        """
        connection = SSL.Connection(self._context, sock)
        connection.set_connect_state()
        if self._asked_name is not None:
            connection.set_tlsext_host_name(self._asked_name)
        kept = None if fresh else self._usable()
        if kept is not None:
            connection.set_session(kept.session)
        try:
            await shake_hands(connection, sock, before_work)
        except TlsFailed as failure:
            if kept is None or failure.reason == "certificate":
                raise
            self._kept = None
            self._none_before = trio.current_time() + _NO_SESSION_SECONDS
            raise SessionFailed(failure.reason, str(failure)) from failure
        if self._verifies and (problem := self._certificate(connection).name_problem):
            raise TlsFailed("name", problem)
        if kept is not None and connection.get_app_data() is None:
            proof = _Proof(True, kept.until)
        else:
            proof = _Proof(False, self._until(connection))
        connection.set_app_data(proof)
        return TlsStream(sock, connection)

    def keep(self, stream: TlsStream) -> None:
        """The login on this connection is complete: the next one may take up its session.

        With TLS 1.3 it comes in tickets behind the handshake, which have been read with the server's first words.
        """
        session = stream.connection.get_session()
        if session is not None and trio.current_time() >= self._none_before:
            self._kept = _Kept(session, _proof(stream).until)

    def certificate(self, stream: TlsStream) -> ServerCertificate:
        """What the server of a connection has shown."""
        return self._certificate(stream.connection)

    def _usable(self) -> _Kept | None:
        if self._kept is not None and trio.current_time() >= self._kept.until:
            self._kept = None
        return self._kept

    def _until(self, connection: SSL.Connection) -> float:
        not_after = self._certificate(connection).not_after
        ends_in = 0.0 if not_after is None else not_after.timestamp() - time.time()
        return trio.current_time() + min(_LONGEST_SESSION_SECONDS, ends_in)

    def _certificate(self, connection: SSL.Connection) -> ServerCertificate:
        certificate = connection.get_peer_certificate()
        assert certificate is not None, "there is no cipher without"
        return _judge(dump_certificate(FILETYPE_ASN1, certificate), self.name)


def resumed(stream: TlsStream) -> bool:
    """Whether a connection to a server has taken up an earlier session."""
    return _proof(stream).resumed


def _proof(stream: TlsStream) -> _Proof:
    proof = stream.connection.get_app_data()
    assert isinstance(proof, _Proof)
    return proof


def _look_at(connection: SSL.Connection, certificate: X509, code: int, depth: int, ok: int) -> bool:
    """Leave a trace of the certificate that OpenSSL asks about, and why it says no where it does."""
    verdict = note_problem(connection, certificate, code, depth, ok)
    problem = connection.get_app_data() or ""
    if not verdict:
        problem += f" ({_described(dump_certificate(FILETYPE_ASN1, certificate), depth)})"
    connection.set_app_data(problem)
    return verdict


def _described(encoded: bytes, depth: int) -> str:
    """Which certificate it is, for people."""
    try:
        shown = _read(x509.load_der_x509_certificate(encoded))
    except _UNREADABLE:
        return "it cannot be read"
    who = f"it {_naming(shown.names)}" if depth == 0 else f"an issuing one, number {depth} behind the server's"
    return f"{who}; valid until {shown.not_after:%Y-%m-%d}"


@lru_cache(maxsize=256)
def _judge(encoded: bytes, name: str) -> ServerCertificate:
    """A certificate, and whether it is for `name`. The same octets always say the same, so they are read once."""
    try:
        certificate = x509.load_der_x509_certificate(encoded)
        shown = _read(certificate)
    except _UNREADABLE:
        return ServerCertificate((), None, f"certificate cannot be read; one for {name} was expected")
    try:
        if is_address(name):
            verify_certificate_ip_address(certificate, name)
        else:
            verify_certificate_hostname(certificate, name)
    except (service_identity.VerificationError, *_UNREADABLE):  # one without any name is a CertificateError
        return replace(shown, name_problem=f"certificate is not for {name}: it {_naming(shown.names)}")
    return shown


def _read(certificate: x509.Certificate) -> ServerCertificate:
    """Raises: one of _UNREADABLE."""
    names = tuple(map(_pattern_text, extract_patterns(certificate)))
    return ServerCertificate(names, certificate.not_valid_after_utc)


def _pattern_text(pattern: Any) -> str:
    raw = getattr(pattern, "pattern", pattern)
    text = raw.decode("ascii", "backslashreplace") if isinstance(raw, bytes) else str(raw)
    return text[:_LONGEST_NAME]


def _naming(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return "names " + (", ".join(names[:_MOST_NAMES]) + more if names else "no host")


def is_address(host: str) -> bool:
    """Whether it is an IP address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
