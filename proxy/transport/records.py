"""TLS records read and written without pyOpenSSL's wrappers, once a connection is established.

For each octet string pyOpenSSL makes a buffer of its own, a context manager and several checks that matter in a
handshake alone. Two direct calls of OpenSSL in their place take a sixth off what it costs to carry a command. What they
cannot do at once, errors above all, is left to pyOpenSSL, so that it ends in the same exceptions.

pyOpenSSL's handle of a connection and its bindings are private; where a version has them elsewhere the connection
itself is used.
"""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL

from proxy.transport.stream import RECORD_BYTES, Transport


def records_of(connection: SSL.Connection) -> Transport:
    """What reads and writes on an established connection as fast as can be."""
    if _bindings is None or _interface is None:
        return connection
    try:
        return _Records(connection)
    except AttributeError:
        return connection


class _Records:
    """The two calls that a relay makes for each chunk."""

    __slots__ = ("recv", "send")

    def __init__(self, connection: SSL.Connection) -> None:
        """Raises AttributeError: This pyOpenSSL keeps things elsewhere."""
        ssl, fail = connection._ssl, connection._raise_ssl_error
        buffer, octets, read, write, slow = _BUFFER, _octets, _read, _write, connection.send

        def recv(count: int) -> bytes:
            result = read(ssl, buffer, count if count < RECORD_BYTES else RECORD_BYTES)
            if result <= 0:
                fail(ssl, result)
            return octets(buffer, result)[:]  # type: ignore[no-any-return]

        def send(data: bytes | memoryview) -> int:
            if type(data) is not bytes or not data:
                return slow(data)
            result = write(ssl, data, len(data))
            if result <= 0:
                fail(ssl, result)
            return result  # type: ignore[no-any-return]

        self.recv, self.send = recv, send


_bindings: Any = getattr(SSL, "_lib", None)
_interface: Any = getattr(SSL, "_ffi", None)
if _bindings is not None and _interface is not None:
    # One for all connections: the loop is single-threaded, and what is read is copied out at once.
    _BUFFER = _interface.new("char[]", RECORD_BYTES)
    _octets, _read, _write = _interface.buffer, _bindings.SSL_read, _bindings.SSL_write
