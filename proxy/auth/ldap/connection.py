"""One connection to a directory server, blocking: the only door to ldap3.

ldap3 speaks LDAP here and nothing else. What it would do by itself and must not is kept from it:

- Deadlines and sizes: it reads from a socket of ours, on which an operation ends at its deadline and within a number of
  octets, however slowly or much a server sends. (Its own receive timeout counts whole seconds, and anew for each read.)
- Addresses: it tries only the first of a name's, so it is given one at a time.
- Certificates: by default it checks none, and its check of names neither sends SNI nor exists in Python 3.12. Python's
  ssl does both.
- Referrals are not followed, the schema is not read, attributes in ranges are not completed.
- Its exceptions go no further: the text of some holds what was sent, a password too.
"""

from __future__ import annotations

import math
import re
import select
import socket
import ssl
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from proxy.auth.ldap.bounded_socket import BoundedSocket, handshake_problem, os_reason
from proxy.auth.ldap.entries import Entry
from proxy.auth.ldap.verdicts import Result, ServerFailed
from proxy.settings.identity_values import LdapUrl

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # names that newer versions of pyasn1 would spell otherwise
    import ldap3
    from ldap3.core.exceptions import (
        LDAPExceptionError,
        LDAPInvalidFilterError,
        LDAPSessionTerminatedByServerError,
        LDAPStartTLSError,
    )
    from ldap3.operation.search import compile_filter, parse_filter

Scope = Literal["subtree", "one", "base"]

_MOST_ENTRIES = 2  # one is asked for; the second tells that there are more
_SCOPES: Mapping[str, str] = {"subtree": ldap3.SUBTREE, "one": ldap3.LEVEL, "base": ldap3.BASE}
_PASSWORD_POLICY = "1.3.6.1.4.1.42.2.27.8.5.1"  # noqa: S105  draft-behera-ldap-password-policy-11 §6
_ASK_FOR_POLICY = [(_PASSWORD_POLICY, False, None)]

_ERRNO = re.compile(r"^\[Errno -?[0-9]+\] ")


def check_filter(text: str) -> None:
    """Say whether a search could be made with this filter.

    Raises:
        ValueError: It could not.
    """
    try:
        compile_filter(parse_filter(text, None, False, False, None, False).elements[0])
    except (LDAPInvalidFilterError, IndexError):
        raise ValueError("not a filter as RFC 4515 writes it, e.g. (mail={name})") from None


@dataclass(frozen=True, slots=True)
class Found:
    """What a search gave: at most two entries, and how it ended. References to other servers are left out."""

    entries: Sequence[Entry]
    result: Result


@dataclass(frozen=True, slots=True)
class Connector:
    """How one server is reached."""

    url: LdapUrl
    tls: ssl.SSLContext | None  # for ldaps and StartTLS; it checks chain and name
    start_tls: bool
    connect_seconds: float

    def open(self, deadline: float) -> Connection:
        """Connect, with TLS where it is asked for; nobody is bound.

        Args:
            deadline: Of time.monotonic().
        Raises:
            ServerFailed: None of its addresses, or no TLS, in time.
        """
        deadline = min(deadline, time.monotonic() + self.connect_seconds)
        if self.url.endpoint is None:
            return self._open(f"ldapi://{quote((self.url.socket or '').lstrip('/'))}", None, deadline)
        host, port = self.url.endpoint.host, self.url.endpoint.port
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as exc:
            raise ServerFailed(f"its name is not found: {os_reason(exc)}") from None
        except UnicodeError as exc:
            raise ServerFailed(f"its name is not found: {exc}") from None
        addresses = list(dict.fromkeys(str(address[4][0]) for address in found))
        for number, address in enumerate(addresses, 1):
            now = time.monotonic()
            share = now + (deadline - now) / (len(addresses) - number + 1)
            try:
                return self._open(address, port, share)
            except ServerFailed:
                if number == len(addresses):
                    raise
        raise ServerFailed("its name has no address")

    def _open(self, host: str, port: int | None, deadline: float) -> Connection:
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            raise ServerFailed("not connected in time")
        tls = None
        if self.tls is not None and self.url.endpoint is not None:
            tls = _VerifiedTls(self.tls, self.url.endpoint.host, deadline)
        server = ldap3.Server(
            host,
            port,
            use_ssl=self.url.scheme == "ldaps",
            get_info=ldap3.NONE,
            tls=tls,
            connect_timeout=seconds,
        )
        connection = ldap3.Connection(
            server,
            client_strategy=ldap3.SYNC,
            auto_bind=ldap3.AUTO_BIND_NONE,
            auto_referrals=False,
            auto_range=False,
            check_names=False,
            fast_decoder=True,
            return_empty_attributes=False,
            auto_escape=False,
            auto_encode=False,
        )
        try:
            connection.open(read_server_info=False)
        except Exception as exc:
            if connection.socket is not None:
                connection.socket.close()  # ldap3 leaves it open
            raise ServerFailed((tls.problem if tls is not None else "") or _reason(exc)) from None
        opened = Connection(connection)
        if self.start_tls:
            opened.start_tls(deadline)
        return opened


class Connection:
    """One connection, used by one thread at a time. After a ServerFailed it is good only for closing."""

    def __init__(self, connection: Any) -> None:
        if connection.socket.family != socket.AF_UNIX:
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ldap = connection
        self._answered = False
        self._socket = connection.socket = BoundedSocket(connection.socket)
        self.used_at = time.monotonic()

    @property
    def tls_version(self) -> str:
        """ "TLSv1.3"; "" without TLS."""
        return self._socket.tls_version

    def start_tls(self, deadline: float) -> None:
        """Ask for TLS and check the server's certificate; anything but success ends the connection."""
        try:
            self._carry_out(deadline, self._ldap.start_tls, read_server_info=False)
        except ServerFailed as failure:
            self.close()
            raise ServerFailed(f"StartTLS: {str(failure).removeprefix('TLS: ')}") from None

    def bind(self, dn: str, password: bytes, deadline: float) -> Result:
        """Bind as somebody by a password, which is not empty.

        Raises:
            ServerFailed: No answer.
        """
        assert dn  # RFC 4513 §5.1.2: with an empty name or password a bind may succeed that proves nothing
        assert password
        ldap = self._ldap
        ldap.authentication, ldap.user, ldap.password = ldap3.SIMPLE, dn, password
        try:
            return self._carry_out(deadline, ldap.bind, read_server_info=False, controls=_ASK_FOR_POLICY)
        finally:
            ldap.user = ldap.password = ldap.request = None

    def bind_external(self, deadline: float) -> Result:
        """Bind as whom the server knows by the connection itself (RFC 4513 §5.2.3).

        Raises:
            ServerFailed: No answer.
        """
        ldap = self._ldap
        # "": we ask to act as nobody else (RFC 4422 appendix A.1). Without it the server would ask for it first.
        ldap.authentication, ldap.sasl_mechanism, ldap.sasl_credentials = ldap3.SASL, ldap3.EXTERNAL, ""
        return self._carry_out(deadline, ldap.bind, read_server_info=False)

    def search(self, base: str, text: str, scope: Scope, attributes: Sequence[str], deadline: float) -> Found:
        """Search for up to two entries, aliases left alone.

        Args:
            base: Where.
            text: The filter, values in it escaped.
            scope: How deep.
            attributes: What is wanted of the entries; nothing: only their names.
            deadline: Of time.monotonic().
        Raises:
            ServerFailed: No answer, or one that is too large.
        """
        result = self._carry_out(
            deadline,
            self._ldap.search,
            base,
            text,
            _SCOPES[scope],
            ldap3.DEREF_NEVER,
            list(attributes),
            size_limit=_MOST_ENTRIES,
            time_limit=max(1, math.ceil(deadline - time.monotonic())),
        )
        entries = [_entry(found) for found in self._ldap.response if found["type"] == "searchResEntry"]
        self._ldap.request = self._ldap.response = None
        return Found(entries, result)

    def usable(self, now: float, max_idle_seconds: float) -> bool:
        """Whether it may be used again: not idle for too long, and nothing has come, such as the end of it."""
        if now - self.used_at > max_idle_seconds:
            return False
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """End it, without the courtesy of an unbind, which could block."""
        self._socket.close()

    def _carry_out(self, deadline: float, operation: Callable[..., object], *args: object, **options: object) -> Result:
        self._socket.allow(deadline)
        try:
            operation(*args, **options)
        except Exception as exc:
            raise self._failure(exc) from None
        self._answered = True
        self.used_at = time.monotonic()
        return _result(self._ldap.result)

    def _failure(self, exc: Exception) -> ServerFailed:
        gone = self._socket.gone or isinstance(exc, LDAPSessionTerminatedByServerError)
        problem = self._socket.problem or ("closed by the server" if gone else "")
        if gone and not self._answered and self._socket.plain:
            problem += "; does this port expect ldaps://?"
        if problem:
            return ServerFailed(problem, gone=gone)
        # Neither the socket nor TLS: the answer cannot be read, which says nothing about answers to others.
        return ServerFailed(_reason(exc), down=isinstance(exc, LDAPStartTLSError))


class _VerifiedTls(ldap3.Tls):  # type: ignore[misc]
    """TLS by Python's ssl, with a context that checks chain and name."""

    def __init__(self, context: ssl.SSLContext, host: str, deadline: float) -> None:
        super().__init__(validate=ssl.CERT_REQUIRED)
        self._context = context
        self._host = host
        self._deadline = deadline
        self.problem = ""  # ldap3 makes a text of the exception, and of that another

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:
        """ldap3 calls this for ldaps once it has connected, and for StartTLS once the server has said yes."""
        plain = connection.socket
        if isinstance(plain, BoundedSocket):
            plain.start_tls(self._context, self._host)
            return
        plain.settimeout(max(self._deadline - time.monotonic(), 0.001))
        try:
            connection.socket = self._context.wrap_socket(plain, server_hostname=self._host)
        except OSError as exc:
            self.problem = handshake_problem(exc)
            if isinstance(exc, (TimeoutError, ConnectionError, ssl.SSLEOFError)):
                self.problem += "; perhaps the port speaks no TLS"
            raise


def _entry(found: Mapping[str, Any]) -> Entry:
    # ldap3 guesses at names that are no UTF-8; a guess is not to be bound as.
    try:
        dn = bytes(found["raw_dn"]).decode("utf-8")
    except UnicodeDecodeError:
        dn = ""
    values = {name.lower(): tuple(octets or ()) for name, octets in found["raw_attributes"].items()}
    return Entry(dn, values)


def _result(result: Mapping[str, Any]) -> Result:
    control = (result.get("controls") or {}).get(_PASSWORD_POLICY)
    policy_error = _policy_error(control["value"]) if control else None
    return Result(result["result"], result["description"], result["message"] or "", policy_error)


def _policy_error(value: bytes | None) -> int | None:
    """The error in a PasswordPolicyResponseValue.

    It is a sequence of at most `[0] warning` and `[1] error ENUMERATED`, all of them shorter than 128 octets.

    Source: draft-behera-ldap-password-policy-11 §6.2.
    """
    if not value or value[0] != 0x30:
        return None
    rest = value[2:]
    while len(rest) > 2:
        tag, length = rest[0], rest[1]
        if tag == 0x81:
            return int.from_bytes(rest[2 : 2 + length], "big")
        rest = rest[2 + length :]
    return None


def _reason(exc: Exception) -> str:
    """An exception as text for the log. Only of ldap3's own: others may hold what was sent."""
    if not isinstance(exc, (LDAPExceptionError, OSError)):
        return f"its answer cannot be read ({type(exc).__name__})"
    text = str(exc)
    if "timed out" in text:
        return "not connected in time"
    # ldap3 tells first where it was, then what happened: that is enough.
    for prefix in ("socket connection error while opening: ", "startTLS failed - "):
        text = text.removeprefix(prefix)
    return _ERRNO.sub("", text) or type(exc).__name__
