"""Addresses, networks and backend URLs as they are written in the settings file."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from proxy.model import Endpoint

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Security = Literal["none", "tls", "starttls"]

# scheme -> how the connection is secured, default port (RFC 8314 §7.3 for imaps; the third is ours)
SCHEMES: dict[str, tuple[Security, int]] = {
    "imap": ("none", 143),
    "imaps": ("tls", 993),
    "imap+starttls": ("starttls", 143),
}

# RFC 1123 §2.1, and `_` because container platforms hand out such names
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
# A name that ends so is read as an IPv4 address by resolvers: 127.1, 0x7f.1 (inet_aton(3)).
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")  # IPv4 addresses among IPv6 ones (RFC 4291 §2.5.5.2)
_ORIGIN = re.compile(r"(?i:https?)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_HTTP_HOST = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_USUAL_PORTS = {"http": ":80", "https": ":443"}
_VALKEY_SCHEMES = ("redis", "rediss", "valkey", "valkeys")
_ZONE = re.compile(r"[A-Za-z0-9_.-]{1,15}")  # RFC 4007 §11; an interface's name on Linux


@dataclass(frozen=True, slots=True)
class BackendUrl:
    """Where a backend listens and how the connection to it is secured."""

    scheme: str
    endpoint: Endpoint

    @property
    def security(self) -> Security:
        """none: plain; tls: from the first octet; starttls: before the login."""
        return SCHEMES[self.scheme][0]

    @property
    def host(self) -> str:
        return self.endpoint.host

    @property
    def port(self) -> int:
        return self.endpoint.port

    def __str__(self) -> str:
        return f"{self.scheme}://{self.endpoint}"


@dataclass(frozen=True, slots=True)
class ValkeyUrl:
    """Where a Valkey or Redis server listens, and which of its databases is meant."""

    tls: bool
    endpoint: Endpoint
    database: int

    @property
    def host(self) -> str:
        return self.endpoint.host

    @property
    def port(self) -> int:
        return self.endpoint.port

    def __str__(self) -> str:
        return f"{'rediss' if self.tls else 'redis'}://{self.endpoint}/{self.database}"


def parse_valkey_url(value: object) -> ValkeyUrl:
    """A server and its database: "redis://127.0.0.1:6379/0", "rediss://valkey.example.org"; `valkey` for `redis` too.

    Raises:
        ValueError: Its text says what is wrong and how to write it. It never repeats the URL, which may hold a secret.
    """
    example = 'e.g. "redis://127.0.0.1:6379/0" or "rediss://valkey.example.org"'
    scheme, separator, rest = value.partition("://") if isinstance(value, str) else ("", "", "")
    if not separator or scheme.lower() not in _VALKEY_SCHEMES:
        raise ValueError(f"expected a redis:// or rediss:// URL, {example}")
    if "@" in rest:
        raise ValueError("a server's URL has no name or password in it; they belong in username and password")
    where, _, database = rest.partition("/")
    if not re.fullmatch(r"[0-9]{0,4}", database):
        raise ValueError(f"expected nothing behind host and port but the number of a database, {example}")
    endpoint = parse_host_and_port(where, 6379, example)
    return ValkeyUrl(scheme.lower() in ("rediss", "valkeys"), endpoint, int(database or 0))


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine itself, so far as can be told without asking anybody."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_origin(value: object) -> str:
    """The origin of a web page as browsers send it (RFC 6454 §6.2): scheme, host, and port unless it is the usual one.

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    example = "e.g. https://mail.example.org or http://localhost:8080"
    if not isinstance(value, str) or _ORIGIN.fullmatch(value) is None:
        raise ValueError(f"expected the origin of a web page, scheme and host and nothing behind them, {example}")
    return usual_origin(value)


def usual_origin(origin: str) -> str:
    """An origin as all write it: in lower case, without the port that goes without saying."""
    origin = origin.lower()
    scheme, _, rest = origin.partition("://")
    return f"{scheme}://{rest.removesuffix(_USUAL_PORTS.get(scheme, ' '))}"


def parse_http_host(value: object) -> str:
    """What a client says as Host (RFC 9110 §7.2): a name or an address, and perhaps a port; in lower case.

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    if not isinstance(value, str) or _HTTP_HOST.fullmatch(value) is None:
        raise ValueError("expected a host as in a URL, e.g. imap.example.org or imap.example.org:9143")
    return value.lower()


def parse_listen_address(value: object) -> Endpoint:
    """An IP address and port to listen on: "[::]:993", "127.0.0.1:1143". Port 0: any free one.

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    example = 'e.g. "127.0.0.1:1143", "0.0.0.0:993" or "[::]:993"'
    if not isinstance(value, str):
        raise ValueError(f"expected an IP address and a port, {example}")
    if value.startswith("*:"):
        raise ValueError(f'"*" is no address; "[::]{value[1:]}" listens on every one')
    host, port = _split_port(value, example)
    if port is None:
        raise ValueError(f"the port is missing, {example}")
    if not _is_address(host):
        raise ValueError(f"expected an IP address and a port, {example}")
    return Endpoint(host, port)


def parse_backend_url(value: object) -> BackendUrl:
    """A backend's URL: "imaps://10.0.0.11:993", "imap+starttls://mail1.example.org".

    Raises:
        ValueError: Its text says what is wrong and how to write it. It never repeats the URL, which may hold a secret.
    """
    example = 'e.g. "imaps://10.0.0.11:993" or "imap+starttls://mail1.example.org"'
    scheme, separator, rest = value.partition("://") if isinstance(value, str) else ("", "", "")
    if not separator:
        raise ValueError(f"expected a URL, {example}")
    if scheme.lower() not in SCHEMES:
        raise ValueError(f"expected imap://, imaps:// or imap+starttls:// and not {scheme[:20]}://, {example}")
    if "@" in rest:
        raise ValueError("a backend's URL has no name or password in it; they belong in backends.login")
    rest = rest.removesuffix("/")
    if any(mark in rest for mark in "/?#"):
        raise ValueError(f"expected nothing behind host and port, {example}")
    return BackendUrl(scheme.lower(), parse_host_and_port(rest, SCHEMES[scheme.lower()][1], example))


def parse_host_and_port(text: str, default_port: int, example: str) -> Endpoint:
    """What stands between a URL's scheme and its path.

    Raises:
        ValueError: Its text says what is wrong and ends with the example.
    """
    host, port = _split_port(text, example)
    if port == 0:
        raise ValueError(f"port 0 is no port to connect to, {example}")
    return Endpoint(_checked_host(host, example), port or default_port)


def parse_host_port(value: object) -> Endpoint:
    """A host's name or address, and a port: "10.0.0.11:24".

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    example = 'e.g. "10.0.0.11:24" or "mail1.example.org:24"'
    if not isinstance(value, str):
        raise ValueError(f"expected a host and a port, {example}")
    return parse_host_and_port(value, 24, example)


def parse_name_server(value: object) -> Endpoint:
    """The IP address of a name server, with or without a port: "10.96.0.10", "127.0.0.1:5353".

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    example = 'e.g. "10.96.0.10" or "127.0.0.1:5353"'
    if isinstance(value, str) and _is_address(value):
        return Endpoint(value, 53)
    found = parse_host_and_port(value, 53, example) if isinstance(value, str) else None
    if found is None or not _is_address(found.host):
        raise ValueError(f"expected the IP address of a name server, {example}")
    return found


def parse_dns_name(value: object) -> str:
    """A name to ask DNS for, in lower case; those of SRV records begin with underscores (RFC 2782).

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    if not isinstance(value, str) or not _is_name(value.removesuffix(".")):
        raise ValueError("expected a domain name, e.g. dovecot.mail.svc.cluster.local")
    return value.lower().removesuffix(".")


def parse_network(value: object) -> Network:
    """A network in CIDR form: "10.0.0.0/8", "2001:db8::/32"; a single address is a network of one.

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    example = 'e.g. "10.0.0.0/8" or "::1/128"'
    if not isinstance(value, str):
        raise ValueError(f"expected a network, {example}")
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError(f"expected a network, {example}") from None
    address = ipaddress.ip_address(value.partition("/")[0])
    if address not in (network.network_address, None):
        raise ValueError(f'{value} has bits set behind its prefix; "{network}" is the network around it')
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        ipv4 = ipaddress.ip_network((network.network_address.packed[12:], network.prefixlen - 96))
        raise ValueError(f'nobody is there: clients by IPv4 are known by IPv4 addresses; write "{ipv4}"')
    return network


def parse_peer_network(value: object) -> Network:
    """As parse_network; the network of those who are believed, so not everybody.

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    network = parse_network(value)
    if not network.prefixlen:
        # Security: then every client could say that it is somebody else.
        raise ValueError(f'"{network}" is everybody, and whoever is there is believed; name the hosts in front')
    return network


def parse_domain(value: object) -> str:
    """A domain name, in lower case.

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    if not isinstance(value, str) or not _is_name(value):
        raise ValueError("expected a domain name, e.g. example.org")
    return value.lower()


def _split_port(text: str, example: str) -> tuple[str, int | None]:
    """Host (without brackets) and port, if one is given."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"expected [address]:port, {example}")
        separator, port = rest[:1], rest[1:]
        if ":" not in host or not _is_address(host):
            raise ValueError(f"expected an IPv6 address in the brackets, {example}")
    else:
        host, separator, port = text.partition(":")
        if ":" in port:
            raise ValueError(f"an IPv6 address is written in brackets, {example}")
    if not separator:
        return host, None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError(f"expected a port between 0 and 65535 behind the colon, {example}")
    return host, int(port)


def _checked_host(host: str, example: str) -> str:
    """An address, or a name in the form that DNS and TLS take as it is: whoever connects converts nothing."""
    if _is_address(host):
        return host
    if not host.isascii():
        raise ValueError("write the host's name in its ASCII form (xn--…)")
    if not _is_name(host) or _NUMBER.fullmatch(host.rpartition(".")[2]):
        raise ValueError(f"expected a host's name or IP address, {example}")
    return host


def _is_address(text: str) -> bool:
    """Whether this is an IP address; ipaddress itself takes any text at all for a zone (fe80::1%eth0)."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    _, percent, zone = text.partition("%")
    return not percent or _ZONE.fullmatch(zone) is not None


def _is_name(name: str) -> bool:
    """Whether every label is one: none is empty, and none longer than 63 octets (RFC 1035 §2.3.4)."""
    return len(name) <= 253 and all(_LABEL.fullmatch(label) for label in name.split("."))
