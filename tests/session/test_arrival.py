"""What a front says by ID of where its client arrived, and what of it is used."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.model import Endpoint
from proxy.session.arrival import Arrival, believed

FRONT, HERE = Endpoint("10.0.0.8", 50123), Endpoint("10.0.0.1", 143)
CLIENT, THERE = Endpoint("192.0.2.7", 40001), Endpoint("203.0.113.1", 993)
ALL = {
    "x-originating-ip": "192.0.2.7",
    "x-originating-port": "40001",
    "x-connected-ip": "203.0.113.1",
    "x-connected-port": "993",
    "x-session-id": "c/WpEN8lEwB/AAAB",
    "x-proxy-ttl": "4",
}

TOLD = [
    ("nothing", {}, Arrival(FRONT, HERE)),
    ("a client's own words", {"name": "Thunderbird", "version": "128"}, Arrival(FRONT, HERE)),
    ("all", ALL, Arrival(CLIENT, THERE, 3)),
    ("all, and more", {**ALL, "x-forward-a": "b", "x-multiplex": "1"}, Arrival(CLIENT, THERE, 3)),
    (
        "no ports",
        {"x-originating-ip": "192.0.2.7", "x-connected-ip": "203.0.113.1"},
        Arrival(Endpoint("192.0.2.7", 0), Endpoint("203.0.113.1", 0)),
    ),
    ("ports alone", {"x-originating-port": "40001", "x-connected-port": "993"}, Arrival(FRONT, HERE)),
    (
        "the client alone",
        {"x-originating-ip": "192.0.2.7", "x-originating-port": "40001"},
        Arrival(CLIENT, HERE),
    ),
    ("IPv6", {"x-originating-ip": "2001:DB8:0::7"}, Arrival(Endpoint("2001:db8::7", 0), HERE)),
    ("IPv4 among IPv6", {"x-originating-ip": "::ffff:192.0.2.7"}, Arrival(Endpoint("192.0.2.7", 0), HERE)),
]
NO_ADDRESS = [
    "", "localhost", "192.0.2", "192.0.2.7 ", "192.0.2.07", "192.0.2.7/32", "[2001:db8::7]", "fe80::1%eth0", "1",
    "192.0.2.7\r\n", "192.0.2.\u0667", "\ufffd", "::1::", "192.0.2.7:993", "x" * 1024,
]  # fmt: skip
NO_PORT = ["", "-1", "+1", " 1", "1 ", "65536", "100000", "1e3", "0x1", "1_0", "\u0661", "9" * 1024]


@pytest.mark.parametrize(("name", "client_id", "arrival"), TOLD, ids=[row[0] for row in TOLD])
def test_what_is_told(name: str, client_id: dict[str, str], arrival: Arrival) -> None:
    assert believed(client_id, FRONT, HERE) == arrival


@pytest.mark.parametrize("address", NO_ADDRESS)
def test_what_is_no_address_is_not_told(address: str) -> None:
    told = believed({**ALL, "x-originating-ip": address, "x-connected-ip": address}, FRONT, HERE)
    assert (told.client, told.local) == (FRONT, HERE)


@pytest.mark.parametrize("port", NO_PORT)
def test_what_is_no_port_is_not_told(port: str) -> None:
    told = believed({**ALL, "x-originating-port": port, "x-connected-port": port}, FRONT, HERE)
    assert (told.client, told.local) == (Endpoint("192.0.2.7", 0), Endpoint("203.0.113.1", 0))


TTLS = [("4", 3), ("2", 1), ("1", 0), ("0", -1), ("6", 5), ("7", 5), ("999999999", 5)]
NO_TTL = ["", "-1", "x", "1000000000", "9" * 1024, "1.5"]


@pytest.mark.parametrize(("told", "left"), [*TTLS, *((told, 5) for told in NO_TTL)])
def test_every_proxy_leaves_one_less(told: str, left: int) -> None:
    assert believed({"x-proxy-ttl": told}, FRONT, HERE).proxy_ttl == left


@given(st.dictionaries(st.sampled_from(sorted(ALL)), st.text() | st.ip_addresses().map(str) | st.integers().map(str)))
def test_any_words_end_in_an_arrival(client_id: dict[str, str]) -> None:
    arrival = believed(client_id, FRONT, HERE)
    for endpoint in (arrival.client, arrival.local):
        assert endpoint.host.isascii()
        assert endpoint.host.isprintable()
        assert 0 <= endpoint.port <= 65535
    assert arrival.proxy_ttl <= 5
