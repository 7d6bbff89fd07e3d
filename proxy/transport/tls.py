"""TLS by pyOpenSSL on the non-blocking socket itself: contexts towards clients, the handshake, TLS streams.

Theory of operation. A listener has one base context that is made before the first connection and never
changed: session tickets are sealed with its keys, so a client resumes whatever certificate it was shown. The base
context's servername callback, which OpenSSL calls with and without SNI, moves each connection to the context of
the certificate that fits. Swapping certificates replaces those inner contexts and nothing else.

A listener may ask clients for certificates too. OpenSSL takes whether and how deep to verify from the context that
the connection began with, but whom to trust from the one it was moved to, so the base context and the inner ones are
made with the same ClientAuthorities. Another listener's tickets are sealed with other keys: nobody gets around the
check with them.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from OpenSSL import SSL
from OpenSSL.crypto import FILETYPE_ASN1, X509, X509StoreFlags, dump_certificate
from trio.lowlevel import wait_readable, wait_writable

from proxy.model import TlsFacts
from proxy.settings.certificates import read_certificates
from proxy.transport.client_certificate import ClientCertificate, read_client_certificate
from proxy.transport.key_pair import KeyPair, read_key_pair
from proxy.transport.proxy_header import host_name
from proxy.transport.records import records_of
from proxy.transport.stream import RECORD_BYTES, ConnectionLost, Transport

Pair = tuple[Path, Path]  # a certificate's file, and its key's
Context = SSL.Context  # for other rooms, which do not know pyOpenSSL
OPENSSL_VERSION = SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode("ascii", "replace")
VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
# TLS 1.2: forward secrecy and authenticated encryption only (RFC 9325 §4.2). TLS 1.3 has nothing else.
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"
_TLS13_CIPHERS = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
# What is spoken inside TLS, by IANA's ALPN registry: RFC 8314 §7, RFC 7301 §6.
IMAP, HTTP = b"imap", b"http/1.1"
# Between a client's certificate and a trusted one: more than anybody has, and a bound on what a stranger can ask for.
_MOST_INTERMEDIATES = 8
_VERIFY_ERRORS = {code: name for name, code in vars(SSL.X509VerificationCodes).items() if name.startswith("ERR_")}

WouldRead: tuple[type[Exception], ...] = (SSL.WantReadError, BlockingIOError)
WouldWrite: tuple[type[Exception], ...] = (SSL.WantWriteError, BlockingIOError)
Ended = SSL.ZeroReturnError
Broken: tuple[type[Exception], ...] = (SSL.Error, OSError)


class TlsFailed(Exception):
    """A handshake failed. `reason` is one of a bounded set for metrics; the text is for the log."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _NoCommonProtocol(Exception):
    """The client offers ALPN protocols and ours is not among them."""


def _handshake_failure(connection: SSL.Connection, error: SSL.Error) -> TlsFailed:
    detail = _describe(error)
    problem = connection.get_app_data()  # see note_problem
    refused = "certificate verify failed" in detail or "peer did not return a certificate" in detail
    return TlsFailed("certificate" if refused else "protocol", f"{detail}: {problem}" if problem else detail)


def _describe(error: SSL.Error) -> str:
    """OpenSSL's error queue in one line."""
    if isinstance(error, SSL.SysCallError):
        return str(error.args[1]) if len(error.args) > 1 else "connection closed"
    if error.args and isinstance(error.args[0], list):
        return "; ".join(part[-1] for part in error.args[0]) or "unknown TLS error"
    return str(error) or type(error).__name__


def new_context(method: int, minimum_version: str) -> SSL.Context:
    """What the contexts of both sides have in common; tls_client.py makes those towards backends."""
    context = SSL.Context(method)
    context.set_min_proto_version(VERSIONS[minimum_version])
    context.set_cipher_list(_CIPHERS)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    # An idle session gives OpenSSL's buffers back; a write is whole or not at all, so that the rest to be
    # retried is always what was handed in.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.clear_mode(0x1)  # SSL_MODE_ENABLE_PARTIAL_WRITE, which pyOpenSSL sets and does not name
    return context


def _alpn_selector(speaks: bytes) -> Callable[[SSL.Connection, list[bytes]], bytes]:
    def select(_connection: SSL.Connection, offered: list[bytes]) -> bytes:
        if speaks in offered:
            return speaks
        # Raising makes pyOpenSSL answer with the fatal alert no_application_protocol (RFC 7301 §3.2).
        raise _NoCommonProtocol

    return select


class ClientAuthorities:
    """Who vouches for the clients of a listener, and whether they have to show a certificate.

    The file is read once: a ticket stands for a check against these authorities for as long as the listener lives.

    Raises:
        ValueError: The file holds no certificate. The settings room has checked it before.
    """

    def __init__(self, ca: Path, *, required: bool) -> None:
        self._certificates = read_certificates(ca)
        self._mode = SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if required else 0)

    def guard(self, context: SSL.Context) -> None:
        """Ask clients for certificates, for use by clients (RFC 5280 §4.2.1.12), of these authorities alone."""
        context.set_verify(self._mode, note_problem)
        context.set_verify_depth(_MOST_INTERMEDIATES)
        store = context.get_cert_store()
        assert store is not None
        # Whoever trusts an intermediate authority alone does not trust its siblings.
        store.set_flags(X509StoreFlags.PARTIAL_CHAIN)
        for certificate in self._certificates:
            store.add_cert(X509.from_cryptography(certificate))
            context.add_client_ca(certificate)


def note_problem(connection: SSL.Connection, certificate: X509, code: int, depth: int, ok: int) -> bool:
    """Leave OpenSSL's verdict as it is, but keep its reason, which pyOpenSSL's errors do not tell."""
    if not ok:
        problem = _VERIFY_ERRORS.get(code, f"ERROR_{code}")
        connection.set_app_data(problem.removeprefix("ERR_").replace("_", " ").lower())
    return bool(ok)


def _server_context(minimum_version: str, clients: ClientAuthorities | None, speaks: bytes) -> SSL.Context:
    context = new_context(SSL.TLS_SERVER_METHOD, minimum_version)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)  # resumption is by tickets alone: no memory per client
    context.set_session_id(b"imap-porter")
    # Ours first: AES-128 costs a third less than the AES-256 that most clients name first, and is as safe in practice.
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_tls13_ciphersuites(_TLS13_CIPHERS)
    context.set_alpn_select_callback(_alpn_selector(speaks))
    if clients is not None:
        clients.guard(context)
    return context


class _Choice:
    """The inner contexts of listeners that verify clients alike and speak alike."""

    def __init__(self) -> None:
        self.by_pair: dict[Pair, SSL.Context] = {}
        self._by_name: dict[bytes, SSL.Context] = {}  # b"" is the default

    def show(self, contexts: dict[Pair, SSL.Context], names: Iterable[tuple[bytes, Pair]]) -> None:
        """These from the next handshake on. Of two for one name the first counts."""
        by_name: dict[bytes, SSL.Context] = {}
        for name, pair in names:
            by_name.setdefault(name, contexts[pair])
        self.by_pair, self._by_name = contexts, by_name

    def apply(self, connection: SSL.Connection) -> None:
        """Move a connection to the context of the certificate that fits."""
        name = (connection.get_servername() or b"").lower().rstrip(b".")
        context = self._by_name.get(name)
        if context is None and b"." in name:
            context = self._by_name.get(b"*" + name[name.index(b".") :])
        # An unknown name gets the default certificate, as mail clients expect, and leaves no trace here.
        connection.set_context(context or self._by_name[b""])


# How a listener verifies its clients, and what it speaks.
_Manner = tuple[ClientAuthorities | None, bytes]


class ServerCertificates:
    """The certificates that clients may be shown, chosen by the name they ask for (RFC 6066 §3).

    What their files hold is kept: a process that may not read them is told of one file that has changed, and needs the
    other one of the pair.

    Raises:
        ValueError: A pair cannot be used. The settings room has checked the files before.
        OSError: A file cannot be read.
    """

    def __init__(self, pairs: Sequence[Pair], minimum_version: str) -> None:
        self._minimum_version = minimum_version
        self._files: Mapping[Path, bytes] = {}
        self._key_pairs: dict[Pair, KeyPair] = {}
        self._choices: dict[_Manner, _Choice] = {(None, IMAP): _Choice()}
        self.swap(pairs)

    @property
    def ends(self) -> dict[Path, datetime]:
        """When each certificate ends, by its file."""
        return {pair[0]: key_pair.not_after for pair, key_pair in self._key_pairs.items()}

    def swap(self, pairs: Sequence[Pair]) -> None:
        """Use other files from the next handshake on, or the same ones as they are now; all or nothing.

        Raises:
            ValueError, OSError: As above. Nothing has changed.
        """
        assert pairs
        self._use(pairs, {path: path.read_bytes() for pair in pairs for path in pair})

    def renew(self, files: Mapping[Path, bytes]) -> bool:
        """The files hold something else from the next handshake on; all or nothing.

        Args:
            files: What some of them hold now. Others than ours may be among them.
        Returns:
            Whether that makes a difference.
        Raises:
            ValueError: A pair cannot be used. Nothing has changed.
        """
        new = {path: files.get(path, before) for path, before in self._files.items()}
        if new == self._files:
            return False
        self._use([*self._key_pairs], new)
        return True

    def base_context(self, clients: ClientAuthorities | None = None, speaks: bytes = IMAP) -> SSL.Context:
        """A context for a listener's lifetime; see the theory of operation.

        Args:
            clients: Who vouches for the clients' certificates; None: they are not asked for any.
            speaks: What clients are to name who say what they want to speak (ALPN).
        """
        manner = (clients, speaks)
        if manner not in self._choices:
            choice = self._choices[manner] = _Choice()
            choice.show(self._contexts(self._key_pairs, manner, {}), _names(self._key_pairs))
        base = _server_context(self._minimum_version, *manner)
        base.set_tlsext_servername_callback(self._choices[manner].apply)
        return base

    def _use(self, pairs: Sequence[Pair], files: Mapping[Path, bytes]) -> None:
        same = {
            pair: key_pair
            for pair, key_pair in self._key_pairs.items()
            if all(files.get(path) == self._files[path] for path in pair)
        }
        key_pairs = {pair: same.get(pair) or read_key_pair(*(files[path] for path in pair)) for pair in pairs}
        loaded = {}
        for manner, choice in self._choices.items():
            kept = {pair: context for pair, context in choice.by_pair.items() if pair in same}
            loaded[choice] = self._contexts(key_pairs, manner, kept)
        for choice, contexts in loaded.items():
            choice.show(contexts, _names(key_pairs))
        self._files, self._key_pairs = files, key_pairs

    def _contexts(
        self, key_pairs: Mapping[Pair, KeyPair], manner: _Manner, kept: Mapping[Pair, SSL.Context]
    ) -> dict[Pair, SSL.Context]:
        return {pair: kept.get(pair) or self._context(key_pair, manner) for pair, key_pair in key_pairs.items()}

    def _context(self, key_pair: KeyPair, manner: _Manner) -> SSL.Context:
        context = _server_context(self._minimum_version, *manner)
        try:
            context.use_certificate(key_pair.chain[0])
            for certificate in key_pair.chain[1:]:
                context.add_extra_chain_cert(certificate)
            context.use_privatekey(key_pair.private_key)
            context.check_privatekey()
        except SSL.Error as exc:
            raise ValueError(f"the certificate cannot be used: {_describe(exc)}") from None
        return context


def _names(key_pairs: Mapping[Pair, KeyPair]) -> Iterable[tuple[bytes, Pair]]:
    for pair, key_pair in key_pairs.items():
        for name in (b"", *key_pair.names):
            yield name, pair


def no_other_work() -> None:
    """Nobody waits for his turn."""


async def accept_tls(
    sock: socket.socket, base: SSL.Context, *, speaks_first: bool, before_work: Callable[[], None] = no_other_work
) -> TlsStream:
    """The server's side of a handshake. The caller owns the deadline and, on failure, the socket.

    Args:
        speaks_first: A greeting follows at once. It then leaves in one segment with the session tickets that end the
            handshake: the first send() lets both go.
        before_work: Called before each step, which keeps the processor busy for up to half a millisecond.
    Raises:
        TlsFailed: The handshake cannot succeed.
    """
    connection = SSL.Connection(base, sock)
    connection.set_accept_state()
    await shake_hands(connection, sock, before_work, cork=speaks_first)
    if base.get_verify_mode() != SSL.VERIFY_NONE:
        # A resumed session carries the certificate of its first handshake, and every resumption brings a new ticket.
        certificate = connection.get_peer_certificate()
        if certificate is not None and certificate.has_expired():
            raise TlsFailed("certificate", "certificate has expired since the session began")
    return TlsStream(sock, connection, corked=speaks_first)


async def shake_hands(
    connection: SSL.Connection,
    sock: socket.socket,
    before_work: Callable[[], None] = no_other_work,
    *,
    cork: bool = False,
) -> None:
    """The handshake of either side. The caller owns the deadline.

    Args:
        cork: Our last flight waits in the kernel for what is sent next.
    Raises:
        TlsFailed: It cannot succeed.
    """
    corked = False
    while True:
        before_work()
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            if corked:  # what we said needs an answer (a HelloRetryRequest came between): off with it
                _cork(sock, False)
            await wait_readable(sock)
            if cork:
                corked = True
                _cork(sock, True)
        except SSL.WantWriteError:
            await wait_writable(sock)
        except _NoCommonProtocol:
            raise TlsFailed("alpn", "client offers no ALPN protocol of this listener") from None
        except SSL.SysCallError as exc:
            raise TlsFailed("closed", _describe(exc)) from exc
        except SSL.Error as exc:
            with contextlib.suppress(OSError):  # what the peer said meanwhile, unread, would reset our alert away
                sock.recv(RECORD_BYTES)
            raise _handshake_failure(connection, exc) from exc
        else:
            return


def _cork(sock: socket.socket, on: bool) -> None:
    with contextlib.suppress(OSError):  # it only saves a segment
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, on)


class TlsStream:
    """Octets through TLS on a socket."""

    __slots__ = ("_corked", "connection", "socket")
    secure = True

    def __init__(self, sock: socket.socket, connection: SSL.Connection, *, corked: bool = False) -> None:
        self.socket = sock
        self.connection = connection
        self._corked = corked

    @property
    def transport(self) -> Transport:
        return records_of(self.connection)

    @property
    def binds_channel(self) -> bool:
        """Whether channel_binding() gives one."""
        return self.connection.get_protocol_version() >= SSL.TLS1_3_VERSION

    def channel_binding(self) -> bytes | None:
        """What both ends of this connection know and no other (`tls-exporter`, RFC 9266).

        None: TLS is older than 1.3, where it would need the extended master secret (RFC 9266 §4.2), which pyOpenSSL
        does not tell.
        """
        if not self.binds_channel:
            return None
        return self.connection.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")

    def facts(self) -> TlsFacts:
        """What was agreed on with the client."""
        connection = self.connection
        return TlsFacts(
            connection.get_protocol_version_name(),
            connection.get_cipher_name() or "",
            host_name(connection.get_servername() or b""),
        )

    def client_certificate(self, field: str) -> ClientCertificate | None:
        """Whom the client's certificate names, where the listener asks for one and the client has shown one.

        Args:
            field: A value of the setting `client_certificates.name`.
        """
        certificate = self.connection.get_peer_certificate()
        if certificate is None:
            return None
        return read_client_certificate(dump_certificate(FILETYPE_ASN1, certificate), field)

    async def receive(self) -> bytes:
        while True:
            try:
                return self.connection.recv(RECORD_BYTES)
            except SSL.WantReadError:
                await wait_readable(self.socket)
            except SSL.WantWriteError:
                await wait_writable(self.socket)
            except SSL.ZeroReturnError:
                return b""
            except SSL.Error as exc:
                raise ConnectionLost(_describe(exc)) from exc

    async def send(self, data: bytes) -> None:
        while data:  # never empty: OpenSSL takes a write of nothing for the end
            try:
                self.connection.send(data)
            except SSL.WantWriteError:
                await wait_writable(self.socket)
            except SSL.WantReadError:
                await wait_readable(self.socket)
            except SSL.Error as exc:
                raise ConnectionLost(_describe(exc)) from exc
            else:
                break
        if self._corked:
            self._corked = False
            _cork(self.socket, False)

    def end_sending(self) -> None:
        """Say close_notify if the connection's state allows (RFC 8446 §6.1)."""
        with contextlib.suppress(SSL.Error):
            self.connection.shutdown()

    def close(self) -> None:
        if self.socket.fileno() >= 0:
            self.end_sending()
            self.socket.close()
