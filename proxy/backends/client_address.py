"""How a backend is told who the client is: by a PROXY header ahead of everything, or by IMAP ID before the login."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from proxy.model import Visitor
from proxy.settings.backend_models import ClientAddress
from proxy.transport.proxy_header import LOCAL_V1, LOCAL_V2, encode_v1, encode_v2

_ENCODERS: Mapping[ClientAddress, Callable[[Visitor], bytes]] = MappingProxyType(
    {"proxy_v1": encode_v1, "proxy_v2": encode_v2}
)
_LOCAL: Mapping[ClientAddress, bytes] = MappingProxyType({"proxy_v1": LOCAL_V1, "proxy_v2": LOCAL_V2})


def header_for(visitor: Visitor, way: ClientAddress) -> bytes:
    """What a connection for a client begins with; b"": nothing."""
    encode = _ENCODERS.get(way)
    return b"" if encode is None else encode(visitor)


def local_header(way: ClientAddress) -> bytes:
    """The same for a connection of our own."""
    return _LOCAL.get(way, b"")


def fields_for(visitor: Visitor, way: ClientAddress) -> tuple[tuple[str, str], ...]:
    """The parameters of ID; (): none is sent.

    They are those that Dovecot takes from its `login_trusted_networks`. `x-multiplex`, which it takes too, changes the
    protocol of the connection and is never among them.
    """
    if way != "id":
        return ()
    return (
        ("x-originating-ip", visitor.client.host),
        ("x-originating-port", str(visitor.client.port)),
        ("x-connected-ip", visitor.local.host),
        ("x-connected-port", str(visitor.local.port)),
        ("x-session-id", visitor.session_id),
        ("x-proxy-ttl", str(visitor.proxy_ttl)),
        *((f"x-forward-{name}", value) for name, value in visitor.forward.items()),
    )
