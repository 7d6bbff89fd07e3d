"""Who a web server says its client is: X-Forwarded-For, or Forwarded (RFC 7239).

Each server adds to the end whom it has seen, so the last entry is the word of the one that speaks here, and an entry
further to the front is believed as long as those behind it are all web servers that are trusted. A server sets one of
the two headers and may pass on what its client has sent as the other: where both are there they have to agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address

from proxy.model import Endpoint

# More servers than anybody has one behind the other.
_MOST_HOPS = 32
# RFC 7239 §6; X-Forwarded-For has bare IPv6 addresses beside that.
_NODE = re.compile(r"\[(?P<v6>[0-9A-Fa-f:.]+)\](?::(?P<port6>[0-9]{1,5}))?|(?P<v4>[0-9.]+)(?::(?P<port4>[0-9]{1,5}))?")


class Contradiction(ValueError):
    """The two headers name different clients: who of them is lying cannot be told."""


def forwarded_client(
    x_forwarded_for: Sequence[str], forwarded: Sequence[str], trusted: Callable[[str], bool]
) -> Endpoint | None:
    """The client that a trusted web server speaks for; port 0 where it does not say. None: it names none.

    Args:
        x_forwarded_for: The values of this header, in their order.
        forwarded: Of this one.
        trusted: Whether an address is a web server's whose word counts.
    Raises:
        Contradiction: See there.
    """
    one = _first_untrusted([entry.strip() for value in x_forwarded_for for entry in value.split(",")], trusted)
    other = _first_untrusted(list(_for_parameters(forwarded)), trusted)
    if x_forwarded_for and forwarded and (one and one.host) != (other and other.host):
        raise Contradiction("X-Forwarded-For and Forwarded name different clients")
    return one or other


def _first_untrusted(nodes: list[str], trusted: Callable[[str], bool]) -> Endpoint | None:
    """From the end, the first that is no web server of ours; in front of something unreadable nothing counts."""
    found = None
    for node in nodes[: -_MOST_HOPS - 1 : -1]:
        endpoint = _endpoint(node)
        if endpoint is None:
            break
        found = endpoint
        if not trusted(endpoint.host):
            break
    return found


def _for_parameters(values: Iterable[str]) -> Iterable[str]:
    """The `for` of each element; "" where an element has none."""
    for value in values:
        for element in _split(value, ","):
            parameters = (parameter.partition("=") for parameter in _split(element, ";"))
            yield next((node.strip().strip('"') for name, _, node in parameters if name.strip().lower() == "for"), "")


def _split(text: str, separator: str) -> Iterator[str]:
    """What stands between separators, as long as these stand in no quoted string (RFC 7239 §4, RFC 9110 §5.6.4)."""
    start, quoted, escaped = 0, False, False
    for at, character in enumerate(text):
        if escaped:
            escaped = False
        elif quoted and character == "\\":
            escaped = True
        elif character == '"':
            quoted = not quoted
        elif character == separator and not quoted:
            if part := text[start:at].strip():
                yield part
            start = at + 1
    if part := text[start:].strip():
        yield "" if quoted else part  # a quote without an end: nobody knows what it means


def _endpoint(node: str) -> Endpoint | None:
    match = _NODE.fullmatch(node)
    host = node if match is None else match["v6"] or match["v4"]
    port = 0 if match is None else int(match["port6"] or match["port4"] or 0)
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if address.version == 6:
        if address.scope_id is not None:  # a zone means nothing here
            return None
        address = address.ipv4_mapped or address
    return Endpoint(str(address), port if port <= 65535 else 0)
