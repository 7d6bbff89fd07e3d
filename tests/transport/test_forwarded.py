"""Whom web servers say that they speak for."""

from __future__ import annotations

import pytest

from proxy.model import Endpoint
from proxy.transport.forwarded import Contradiction, forwarded_client

ANN, BOB = Endpoint("203.0.113.7", 0), Endpoint("198.51.100.9", 0)


def trusted(host: str) -> bool:
    return host.startswith(("10.", "fd00:"))


CASES = [
    ("neither", [], [], None),
    ("one", ["203.0.113.7"], [], ANN),
    ("the last counts", ["198.51.100.9, 203.0.113.7"], [], ANN),
    ("in two headers", ["198.51.100.9", "203.0.113.7"], [], ANN),
    ("behind two servers", ["198.51.100.9, 203.0.113.7, 10.0.0.2"], [], ANN),
    ("servers alone", ["10.0.0.9, 10.0.0.2"], [], Endpoint("10.0.0.9", 0)),
    ("nobody", [""], [], None),
    ("a name", ["ann"], [], None),
    ("a name further to the front", ["ann, 10.0.0.2"], [], Endpoint("10.0.0.2", 0)),
    ("with its port", ["203.0.113.7:40007"], [], Endpoint("203.0.113.7", 40007)),
    ("a port that is none", ["203.0.113.7:70000"], [], ANN),
    ("IPv6", ["2001:db8::7"], [], Endpoint("2001:db8::7", 0)),
    ("IPv6 in brackets", ["[2001:db8::7]"], [], Endpoint("2001:db8::7", 0)),
    ("IPv6 with its port", ["[2001:db8::7]:40007"], [], Endpoint("2001:db8::7", 40007)),
    ("IPv4 in IPv6", ["::ffff:203.0.113.7"], [], ANN),
    ("a zone", ["fe80::1%eth0"], [], None),
    ("too many servers", ["203.0.113.7, " + ", ".join(["10.0.0.2"] * 32)], [], Endpoint("10.0.0.2", 0)),
    ("RFC 7239", [], ["for=203.0.113.7;proto=https;by=10.0.0.2"], ANN),
    ("its parameters in any order", [], ["proto=https; For=203.0.113.7"], ANN),
    ("its last element", [], ["for=198.51.100.9, for=203.0.113.7"], ANN),
    ("in quotes", [], ['for="[2001:db8::7]:40007"'], Endpoint("2001:db8::7", 40007)),
    ("separators in quotes", [], ['for=198.51.100.9, by="a,b;for=10.0.0.3";for=203.0.113.7'], ANN),
    ("a name of its own", [], ["for=198.51.100.9, for=_hidden"], None),
    ("not known", [], ["for=198.51.100.9, for=unknown"], None),
    ("no for", [], ["for=198.51.100.9, proto=https"], None),
    ("a quote without end", [], ['for="203.0.113.7'], None),
    ("both", ["203.0.113.7"], ["for=203.0.113.7"], ANN),
    ("both, with a port in one", ["203.0.113.7"], ['for="203.0.113.7:40007"'], ANN),
]


@pytest.mark.parametrize(("name", "x_forwarded_for", "forwarded", "client"), CASES, ids=[case[0] for case in CASES])
def test_who_it_is(name: str, x_forwarded_for: list[str], forwarded: list[str], client: Endpoint | None) -> None:
    assert forwarded_client(x_forwarded_for, forwarded, trusted) == client


@pytest.mark.parametrize(
    ("x_forwarded_for", "forwarded"),
    [
        (["203.0.113.7"], ["for=198.51.100.9"]),
        (["203.0.113.7"], ["proto=https"]),
        ([""], ["for=198.51.100.9"]),
        (["203.0.113.7, 10.0.0.2"], ["for=198.51.100.9, for=10.0.0.2"]),
    ],
)
def test_one_of_them_is_the_clients_own(x_forwarded_for: list[str], forwarded: list[str]) -> None:
    with pytest.raises(Contradiction):
        forwarded_client(x_forwarded_for, forwarded, trusted)
