"""The first door: places in all and by address, and that every one comes back."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.limits.admission import Admission


def test_so_many_in_all_and_then_room_again() -> None:
    admission = Admission(2, 2)
    assert admission.admit("192.0.2.1") is None
    assert admission.admit("192.0.2.2") is None
    assert admission.admit("192.0.2.3") == "connections"
    assert admission.open == 2
    admission.release("192.0.2.1")
    assert admission.admit("192.0.2.3") is None


def test_so_many_from_one_address_and_then_room_again() -> None:
    admission = Admission(10, 2)
    assert [admission.admit("192.0.2.1") for _ in range(3)] == [None, None, "connections_per_address"]
    assert admission.open == 2
    assert admission.admit("192.0.2.2") is None
    admission.release("192.0.2.1")
    assert admission.admit("192.0.2.1") is None
    assert admission.admit("192.0.2.1") == "connections_per_address"


SAME_HOUSEHOLD = [
    ("192.0.2.1", "192.0.2.1", True),
    ("192.0.2.1", "192.0.2.2", False),
    ("2001:db8::1", "2001:db8::ffff:1", True),
    ("2001:db8::1", "2001:db8:0:0:8000::1", True),
    ("2001:DB8::1", "2001:db8:0::2", True),
    ("2001:db8::1", "2001:db8:0:1::1", False),
    ("::1", "192.0.2.1", False),
]


@pytest.mark.parametrize(("first", "second", "same"), SAME_HOUSEHOLD)
def test_an_ipv6_network_of_one_customer_counts_as_one_address(first: str, second: str, same: bool) -> None:
    admission = Admission(10, 1)
    assert admission.admit(first) is None
    assert admission.admit(second) == ("connections_per_address" if same else None)
    admission.release(first)
    assert admission.open == (0 if same else 1)


@pytest.mark.parametrize("address", ["10.0.0.8", "2001:db8:8::1", "::ffff:10.0.0.8"])
def test_from_an_exempt_network_only_all_together_are_counted(address: str) -> None:
    exempt = [ipaddress.ip_network(network) for network in ("10.0.0.8/32", "2001:db8:8::/48")]
    admission = Admission(5, 1, exempt)
    assert [admission.admit(address) for _ in range(3)] == [None, None, None]
    assert [admission.admit(other) for other in ("10.0.0.9", "10.0.0.9")] == [None, "connections_per_address"]
    assert [admission.admit(address) for _ in range(2)] == [None, "connections"]
    for each in (address, address, "10.0.0.9", address, address):
        admission.release(each)
    assert admission.open == 0
    assert not admission._by_address


def test_who_is_not_known_yet_counts_in_all_alone() -> None:
    admission = Admission(3, 1)
    assert [admission.admit_unknown() for _ in range(4)] == [None, None, None, "connections"]
    assert admission.admit("192.0.2.1") == "connections"
    for _ in range(3):
        admission.release(None)
    assert admission.open == 0


def test_who_becomes_known_counts_by_address_from_then_on() -> None:
    admission = Admission(10, 1)
    assert [admission.admit_unknown() for _ in range(3)] == [None, None, None]
    assert admission.identify("192.0.2.1") is None
    assert admission.identify("192.0.2.1") == "connections_per_address"
    assert admission.identify("2001:db8::1") is None
    assert admission.admit("2001:db8::2") == "connections_per_address"
    assert admission.open == 3
    admission.release("192.0.2.1")
    admission.release(None)  # whom identify() refused
    admission.release("2001:db8::1")
    assert admission.open == 0
    assert admission.admit("192.0.2.1") is None
    assert admission.admit("2001:db8::2") is None


def test_a_refusal_in_all_takes_no_place_of_the_address() -> None:
    admission = Admission(1, 1)
    assert admission.admit_unknown() is None
    assert admission.admit("192.0.2.1") == "connections"
    admission.release(None)
    assert admission.admit("192.0.2.1") is None


def test_who_becomes_known_from_an_exempt_network_is_not_counted() -> None:
    admission = Admission(10, 1, [ipaddress.ip_network("10.0.0.8/32")])
    for _ in range(3):
        assert admission.admit_unknown() is None
        assert admission.identify("10.0.0.8") is None
    for _ in range(3):
        admission.release("10.0.0.8")
    assert admission.open == 0
    assert not admission._by_address


ADDRESSES = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]


@given(
    st.lists(st.tuples(st.sampled_from(["comes", "is unknown", "goes"]), st.sampled_from(ADDRESSES)), max_size=80),
    st.integers(1, 6),
    st.integers(1, 3),
)
def test_any_order_of_coming_and_going_ends_at_nothing(
    moves: list[tuple[str, str]], connections: int, per_address: int
) -> None:
    admission = Admission(connections, per_address, [ipaddress.ip_network("192.0.2.2/32")])
    inside: list[str | None] = []
    for move, address in moves:
        if move == "comes":
            if admission.admit(address) is None:
                inside.append(address)
        elif move == "is unknown":
            if admission.admit_unknown() is None:
                inside.append(address if admission.identify(address) is None else None)
        elif address in inside:
            inside.remove(address)
            admission.release(address)
        assert admission.open == len(inside) <= connections
        assert all(inside.count(each) <= per_address for each in inside if each not in ("192.0.2.2", None))
    for left in inside:
        admission.release(left)
    assert admission.open == 0
    assert not admission._by_address
