"""A socket with a deadline and a number of octets for each operation, and what went wrong at it in words."""

from __future__ import annotations

import socket
import ssl
import time

MAX_ANSWER_OCTETS = 256 * 1024

# X509_V_ERR_…: no issuer, an issuer that is its own, no issuer in `ca`, a first certificate without
_UNTRUSTED = frozenset({2, 18, 19, 20, 21})
_OTHER_NAME = frozenset({62, 64})  # of a host, of an IP address
# What OpenSSL makes of an answer that is no record of TLS; later versions say the last.
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"})


class BoundedSocket:
    """What ldap3 sends to and reads from. Each operation is allowed some time and some octets."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._deadline = 0.0
        self._octets = 0
        self.problem = ""  # what went wrong here, for the log
        self.gone = False  # the other side had closed it

    @property
    def tls_version(self) -> str:
        """As a Connection has it."""
        return (self._socket.version() or "") if isinstance(self._socket, ssl.SSLSocket) else ""

    @property
    def plain(self) -> bool:
        """Whether it leads to a port, without TLS."""
        return self._socket.family != socket.AF_UNIX and not isinstance(self._socket, ssl.SSLSocket)

    def allow(self, deadline: float) -> None:
        """Begin an operation."""
        self._deadline = deadline
        self._octets = MAX_ANSWER_OCTETS

    def fileno(self) -> int:
        """For poll()."""
        return self._socket.fileno()

    def sendall(self, data: bytes) -> None:
        """As a socket does."""
        try:
            self._set_timeout()
            self._socket.sendall(data)
        except OSError as exc:
            raise self._failed(exc) from None

    def recv(self, size: int) -> bytes:
        """As a socket does."""
        try:
            self._set_timeout()
            data = self._socket.recv(size)
        except OSError as exc:
            raise self._failed(exc) from None
        self._octets -= len(data)
        if self._octets < 0:
            self.problem = f"its answer is larger than {MAX_ANSWER_OCTETS} octets"
            raise OSError(self.problem)
        if not data:
            self.gone, self.problem = True, "closed by the server"
        return data

    def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Go on with TLS; the context checks chain and name."""
        try:
            self._set_timeout()
            self._socket = context.wrap_socket(self._socket, server_hostname=host)
        except OSError as exc:
            self.problem = handshake_problem(exc)
            raise

    def shutdown(self, how: int) -> None:
        """As a socket does."""
        self._socket.shutdown(how)

    def close(self) -> None:
        """As a socket does."""
        self._socket.close()

    def _set_timeout(self) -> None:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        self._socket.settimeout(seconds)

    def _failed(self, exc: OSError) -> OSError:
        self.gone = isinstance(exc, (ConnectionError, ssl.SSLEOFError))
        self.problem = "no answer in time" if isinstance(exc, TimeoutError) else os_reason(exc)
        return OSError(self.problem)


def handshake_problem(exc: OSError) -> str:
    """Why there is no TLS."""
    if isinstance(exc, TimeoutError):
        return "TLS: no answer in time"
    if isinstance(exc, (ConnectionError, ssl.SSLEOFError)):
        return "TLS: closed by the server"
    if isinstance(exc, ssl.SSLError) and exc.reason in _NO_TLS:
        return "TLS: the port speaks no TLS"
    return os_reason(exc)


def os_reason(exc: OSError) -> str:
    """What went wrong at a socket, without numbers and places in OpenSSL's source."""
    if isinstance(exc, ssl.SSLEOFError):
        return "closed by the server"
    if isinstance(exc, ssl.SSLCertVerificationError):
        problem = f"TLS: certificate verify failed: {exc.verify_message.rstrip('.')}"
        if exc.verify_code in _UNTRUSTED:
            return f'{problem}; "ca" says whom to trust'
        if exc.verify_code in _OTHER_NAME:
            return f'{problem}; "urls" has to name the server as its certificate does'
        return problem
    if isinstance(exc, ssl.SSLError) and exc.reason:
        return f"TLS: {exc.reason.replace('_', ' ').lower()}"
    return exc.strerror or str(exc) or type(exc).__name__
