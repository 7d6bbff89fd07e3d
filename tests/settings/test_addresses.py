from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.model import Endpoint
from proxy.settings.addresses import (
    parse_backend_url,
    parse_domain,
    parse_listen_address,
    parse_network,
    parse_peer_network,
)

LISTEN = [
    ("[::]:993", Endpoint("::", 993)),
    ("127.0.0.1:1143", Endpoint("127.0.0.1", 1143)),
    ("0.0.0.0:65535", Endpoint("0.0.0.0", 65535)),
    ("[2001:db8::1]:143", Endpoint("2001:db8::1", 143)),
    ("127.0.0.1:0", Endpoint("127.0.0.1", 0)),
    ("[fe80::1%eth0]:993", Endpoint("fe80::1%eth0", 993)),
]


@pytest.mark.parametrize(("text", "endpoint"), LISTEN)
def test_listen_address(text: str, endpoint: Endpoint) -> None:
    assert parse_listen_address(text) == endpoint
    assert str(endpoint) == text


LISTEN_MISTAKES: list[tuple[object, str]] = [
    ("*:993", r'"\*" is no address; "\[::\]:993" listens on every one'),
    ("localhost:993", "expected an IP address and a port"),
    (":993", "expected an IP address and a port"),
    ("993", "the port is missing"),
    (993, "expected an IP address and a port"),
    (None, "expected an IP address and a port"),
    ("127.0.0.1", "the port is missing"),
    ("[::]", "the port is missing"),
    ("::1:993", "in brackets"),
    ("[::1:993", r"expected \[address\]:port"),
    ("[::1]993", r"expected \[address\]:port"),
    ("[127.0.0.1]:993", "expected an IPv6 address in the brackets"),
    ("127.0.0.1:", "expected a port between 0 and 65535"),
    ("127.0.0.1:imap", "expected a port between 0 and 65535"),
    ("127.0.0.1:65536", "expected a port between 0 and 65535"),
    ("127.0.0.1:-1", "expected a port between 0 and 65535"),
    ("127.0.0.1:²", "expected a port between 0 and 65535"),
    ("127.0.0.1:999999999999", "expected a port between 0 and 65535"),
    ("1.2.3:993", "expected an IP address and a port"),
    ("[fe80::1%é]:993", "expected an IPv6 address in the brackets"),
    ("[fe80::1%]:993", "expected an IPv6 address in the brackets"),
]


@pytest.mark.parametrize(("value", "problem"), LISTEN_MISTAKES)
def test_listen_address_mistake(value: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_listen_address(value)


URLS = [
    ("imap://10.0.0.1", "none", Endpoint("10.0.0.1", 143)),
    ("imaps://10.0.0.1", "tls", Endpoint("10.0.0.1", 993)),
    ("imap+starttls://mail1.example.org", "starttls", Endpoint("mail1.example.org", 143)),
    ("IMAPS://mail1.example.org:1993/", "tls", Endpoint("mail1.example.org", 1993)),
    ("imaps://[2001:db8::1]", "tls", Endpoint("2001:db8::1", 993)),
    ("imap://[::1]:1143", "none", Endpoint("::1", 1143)),
    ("imap://dovecot_1", "none", Endpoint("dovecot_1", 143)),
    ("imap://[fe80::1%eth0.2]", "none", Endpoint("fe80::1%eth0.2", 143)),
    ("imaps://xn--bcher-kva.example", "tls", Endpoint("xn--bcher-kva.example", 993)),
    ("imaps://" + "a" * 63 + ".example", "tls", Endpoint("a" * 63 + ".example", 993)),
]


@pytest.mark.parametrize(("text", "security", "endpoint"), URLS)
def test_backend_url(text: str, security: str, endpoint: Endpoint) -> None:
    url = parse_backend_url(text)
    assert (url.security, url.endpoint) == (security, endpoint)
    assert (url.host, url.port) == (endpoint.host, endpoint.port)
    assert parse_backend_url(str(url)) == url


URL_MISTAKES: list[tuple[object, str]] = [
    ("10.0.0.1:143", "expected a URL"),
    (143, "expected a URL"),
    (None, "expected a URL"),
    ("https://x", "and not https://"),
    ("imaps://", "expected a host's name or IP address"),
    ("imaps://:993", "expected a host's name or IP address"),
    ("imaps://a b", "expected a host's name or IP address"),
    ("imaps://a..b", "expected a host's name or IP address"),
    ("imaps://-a", "expected a host's name or IP address"),
    ("imaps://a-", "expected a host's name or IP address"),
    ("imaps://.a", "expected a host's name or IP address"),
    ("imaps://a.", "expected a host's name or IP address"),
    ("imaps://a\n", "expected a host's name or IP address"),
    ("imaps://999.1.1.1", "expected a host's name or IP address"),
    ("imaps://127.1", "expected a host's name or IP address"),
    ("imaps://0x7f.1", "expected a host's name or IP address"),
    ("imaps://127.0x1", "expected a host's name or IP address"),
    ("imaps://127.0.0.1%eth0", "expected a host's name or IP address"),
    ("imaps://[fe80::1%é]", "expected an IPv6 address in the brackets"),
    ("imaps://[fe80::1%a b]", "expected an IPv6 address in the brackets"),
    ("imaps://[127.0.0.1]", "expected an IPv6 address in the brackets"),
    ("imaps://" + "a" * 64, "expected a host's name or IP address"),
    ("imaps://" + "a." * 127 + "a", "expected a host's name or IP address"),
    ("imaps://post.bücher.example", "in its ASCII form"),
    ("imaps://x/INBOX", "expected nothing behind host and port"),
    ("imaps://x?a", "expected nothing behind host and port"),
    ("imaps://x:0", "port 0 is no port to connect to"),
    ("imaps://x:99999", "expected a port between"),
    ("imaps://::1", "in brackets"),
]


@pytest.mark.parametrize(("value", "problem"), URL_MISTAKES)
def test_backend_url_mistake(value: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_backend_url(value)


@given(st.text(st.sampled_from("aB-_.x0:%[]é\u2024\n"), max_size=70) | st.text(max_size=70))
def test_whatever_host_is_taken_can_be_connected_to(host: str) -> None:
    try:
        url = parse_backend_url(f"imaps://{host}")
    except ValueError:
        return
    assert url.host.isascii()
    assert url.host.encode("idna") == url.host.encode("ascii")


def test_a_url_with_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="no name or password") as caught:
        parse_backend_url("imaps://ann:hunter2@x")
    assert "hunter2" not in str(caught.value)


NETWORKS = [("10.0.0.0/8", "10.0.0.0/8"), ("::1/128", "::1/128"), ("192.0.2.7", "192.0.2.7/32"), ("::/0", "::/0")]


@pytest.mark.parametrize(("text", "network"), NETWORKS)
def test_network(text: str, network: str) -> None:
    assert parse_network(text) == ipaddress.ip_network(network)


@pytest.mark.parametrize("value", ["", "10.0.0.0/33", "everywhere", "10.0.0.0/8/8", 10, None, ["10.0.0.0/8"]])
def test_network_mistake(value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected a network"):
        parse_network(value)


def test_bits_behind_the_prefix() -> None:
    with pytest.raises(ValueError, match=r'"10\.0\.0\.0/8" is the network around it'):
        parse_network("10.1.2.3/8")


MAPPED = [
    ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
    ("::ffff:c000:207", "192.0.2.7/32"),
    ("::ffff:0:0/96", "0.0.0.0/0"),
]


@pytest.mark.parametrize("parse", [parse_network, parse_peer_network])
@pytest.mark.parametrize(("text", "network"), MAPPED)
def test_ipv4_is_written_as_such(parse: Callable[[object], object], text: str, network: str) -> None:
    with pytest.raises(ValueError, match=f'^nobody is there: .*; write "{network}"$'):
        parse(text)


def test_what_is_around_ipv4_among_ipv6_is_a_network() -> None:
    assert parse_network("::/80") == ipaddress.ip_network("::/80")
    assert parse_peer_network("::/80") == ipaddress.ip_network("::/80")


@pytest.mark.parametrize("text", ["::/0", "0.0.0.0/0"])
def test_not_everybody_is_believed(text: str) -> None:
    with pytest.raises(ValueError, match=f'^"{text}" is everybody, and whoever is there is believed'):
        parse_peer_network(text)


def test_domain_is_lower_case() -> None:
    assert parse_domain("Example.ORG") == "example.org"


@pytest.mark.parametrize("value", ["", "@example.org", "a b", ".org", "a" * 64, 5, None])
def test_domain_mistake(value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected a domain name"):
        parse_domain(value)
