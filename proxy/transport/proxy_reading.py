"""Takes a PROXY header off a socket, and not one octet more: what follows is the client's, TLS most often."""

from __future__ import annotations

import socket

from trio.lowlevel import wait_readable

from proxy.transport.proxy_header import MAX_V2_BYTES, ProxyHeader, ProxyHeaderReader
from proxy.transport.stream import ConnectionLost


async def read_proxy_header(sock: socket.socket) -> ProxyHeader:
    """The header that a connection begins with. How long that may take is the caller's to say.

    Args:
        sock: Non-blocking.
    Raises:
        ProxyHeaderError: It begins with something else.
        ConnectionLost: It ended first.
    """
    reader = ProxyHeaderReader()
    while reader.header is None:
        try:
            # Looked at first, since where the header ends is known only then. Half a header is taken nevertheless, or
            # the socket would stay readable, and waiting for more of it would be no waiting.
            data = sock.recv(MAX_V2_BYTES, socket.MSG_PEEK)
            if not data:
                raise ConnectionLost("closed before its PROXY header was complete")
            sock.recv(reader.receive_data(data))
        except BlockingIOError:
            await wait_readable(sock)
        except OSError as exc:
            raise ConnectionLost(exc.strerror or str(exc)) from exc
    return reader.header
