"""Where a client arrived, as a front that is trusted tells by IMAP ID: a webmail server, or another proxy.

The fields are those of Dovecot's `login_trusted_networks`. Who may be believed is decided by whoever calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from proxy.model import Endpoint

# What Visitor counts down from, so that fronts which form a ring cannot raise it for ever.
_MOST_PROXIES = 5


@dataclass(frozen=True, slots=True)
class Arrival:
    """What to use for a connection from now on."""

    client: Endpoint
    local: Endpoint  # where the client connected to
    proxy_ttl: int = _MOST_PROXIES  # as in Visitor; below 1: there have been too many proxies already


def believed(client_id: Mapping[str, str], client: Endpoint, local: Endpoint) -> Arrival:
    """Where a client arrived, by the word of its front.

    What is malformed counts as not told; so does a port without an address, which would go with another's.

    Args:
        client_id: The fields of ID, names in lower case.
        client: The front, as it is seen from here.
        local: Where it connected to.
    """
    told_ttl = _number(client_id.get("x-proxy-ttl", ""), digits=9)
    return Arrival(
        _endpoint(client_id, "x-originating", client),
        _endpoint(client_id, "x-connected", local),
        # The front counted us in; the next one has one less.
        _MOST_PROXIES if told_ttl is None else min(told_ttl - 1, _MOST_PROXIES),
    )


def _endpoint(client_id: Mapping[str, str], prefix: str, seen: Endpoint) -> Endpoint:
    """The address and port that are told; port 0 where it is not. Otherwise what is seen here."""
    try:
        address = ip_address(client_id.get(f"{prefix}-ip", ""))
    except ValueError:
        return seen
    if address.version == 6:
        if address.scope_id is not None:  # a zone means nothing here
            return seen
        address = address.ipv4_mapped or address
    port = _number(client_id.get(f"{prefix}-port", ""), digits=5)
    return Endpoint(str(address), port if port is not None and port <= 65535 else 0)


def _number(text: str, *, digits: int) -> int | None:
    """A decimal number of so many digits at most; None: it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= digits else None
