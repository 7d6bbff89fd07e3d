"""The first door: places in all and by address, and that every one comes back."""

from __future__ import annotations

import ipaddress

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from proxy.limits import reached
from proxy.limits.admission import Admission
from proxy.limits.board import Board, Row
from proxy.settings.addresses import Network
from proxy.settings.limit_models import Limits


def door(
    connections: int, per_address: int, exempt: tuple[Network, ...] = (), *, row: Row | None = None, prefix: int = 64
) -> Admission:
    limits = Limits(
        connections=connections, connections_per_address=per_address, ipv6_prefix=prefix, exempt_networks=exempt
    )
    return Admission(limits, row)


def test_so_many_in_all_and_then_room_again() -> None:
    admission = door(2, 2)
    assert admission.admit("192.0.2.1") is None
    assert admission.admit("192.0.2.2") is None
    assert admission.admit("192.0.2.3") == "connections"
    assert admission.open == 2
    admission.release("192.0.2.1")
    assert admission.admit("192.0.2.3") is None


def test_so_many_from_one_address_and_then_room_again() -> None:
    admission = door(10, 2)
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
    admission = door(10, 1)
    assert admission.admit(first) is None
    assert admission.admit(second) == ("connections_per_address" if same else None)
    admission.release(first)
    assert admission.open == (0 if same else 1)


@pytest.mark.parametrize("address", ["10.0.0.8", "2001:db8:8::1", "::ffff:10.0.0.8"])
def test_from_an_exempt_network_only_all_together_are_counted(address: str) -> None:
    exempt = (ipaddress.ip_network("10.0.0.8/32"), ipaddress.ip_network("2001:db8:8::/48"))
    admission = door(5, 1, exempt)
    assert [admission.admit(address) for _ in range(3)] == [None, None, None]
    assert [admission.admit(other) for other in ("10.0.0.9", "10.0.0.9")] == [None, "connections_per_address"]
    assert [admission.admit(address) for _ in range(2)] == [None, "connections"]
    for each in (address, address, "10.0.0.9", address, address):
        admission.release(each)
    assert admission.open == 0
    assert not admission._by_address


def test_who_is_not_known_yet_counts_in_all_alone() -> None:
    admission = door(3, 1)
    assert [admission.admit_unknown() for _ in range(4)] == [None, None, None, "connections"]
    assert admission.admit("192.0.2.1") == "connections"
    for _ in range(3):
        admission.release(None)
    assert admission.open == 0


def test_who_becomes_known_counts_by_address_from_then_on() -> None:
    admission = door(10, 1)
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
    admission = door(1, 1)
    assert admission.admit_unknown() is None
    assert admission.admit("192.0.2.1") == "connections"
    admission.release(None)
    assert admission.admit("192.0.2.1") is None


def test_who_becomes_known_from_an_exempt_network_is_not_counted() -> None:
    admission = door(10, 1, (ipaddress.ip_network("10.0.0.8/32"),))
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
    admission = door(connections, per_address, (ipaddress.ip_network("192.0.2.2/32"),))
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


PREFIXES = [(48, "2001:db8:0:1::1", True), (64, "2001:db8:0:1::1", False), (64, "2001:db8::2", True)]
PREFIXES += [(128, "2001:db8::2", False), (128, "2001:db8::1", True)]


@pytest.mark.parametrize(("prefix", "other", "same"), PREFIXES)
def test_what_is_one_address_is_a_setting(prefix: int, other: str, same: bool) -> None:
    admission = door(10, 1, prefix=prefix)
    assert admission.admit("2001:db8::1") is None
    assert admission.admit(other) == ("connections_per_address" if same else None)


# --- over all workers ---


@pytest.fixture
def doors() -> tuple[Admission, Admission]:
    """Those of two workers, with 4 places in all and 2 for each address."""
    board = Board.create()
    return door(4, 2, row=board.row(board.take_row())), door(4, 2, row=board.row(board.take_row()))


def test_so_many_in_all_over_all_workers(doors: tuple[Admission, Admission]) -> None:
    one, other = doors
    assert [one.admit(f"192.0.2.{number}") for number in range(3)] == [None] * 3
    assert [other.admit_unknown(), other.admit_unknown()] == [None, "connections"]
    assert other.admit("198.51.100.1") == one.admit_unknown() == "connections"
    assert (one.open, other.open) == (3, 1)
    one.release("192.0.2.1")
    assert other.admit("198.51.100.1") is None


def test_so_many_from_one_address_over_all_workers(doors: tuple[Admission, Admission]) -> None:
    one, other = doors
    assert [one.admit("192.0.2.1"), other.admit("192.0.2.1")] == [None, None]
    assert one.admit("192.0.2.1") == other.admit("192.0.2.1") == "connections_per_address"
    assert other.admit_unknown() is None
    assert other.identify("192.0.2.1") == "connections_per_address"
    one.release("192.0.2.1")
    assert other.identify("192.0.2.1") is None
    for _ in range(2):
        other.release("192.0.2.1")
    assert [one.admit("192.0.2.1"), one.admit("192.0.2.1")] == [None, None]


def test_his_own_connections_share_no_slot_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all networks collide a worker alone still tells them apart; several count them together."""
    monkeypatch.setattr(Row, "slot", lambda self, network: 7)
    board = Board.create()
    one, other = (door(10, 2, row=board.row(board.take_row())) for _ in range(2))
    assert [one.admit(f"192.0.2.{number}") for number in range(3)] == [None] * 3
    assert other.admit("198.51.100.1") == "connections_per_address"  # too early, never too late


def test_a_limit_that_was_reached_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr("proxy.limits.admission.reached", lambda limit, client="": told.append((limit, client)))
    admission = door(2, 1)
    for address in ("192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.3"):
        admission.admit(address)
    assert told == [("connections_per_address", "192.0.2.1"), ("connections", "")]
    assert {limit for limit, _ in told} <= reached.ACTIONS.keys()


# --- room for clients ---


async def test_whoever_waits_for_room_hears_of_each_place_that_is_given_back() -> None:
    admission = door(10, 10)
    room = admission.room(2)
    assert room.clients == 2
    await room.wait()  # there is room: nothing to wait for
    for _ in range(2):
        admission.admit("192.0.2.1")
    assert not room.is_free()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(room.wait)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 2
        admission.release("192.0.2.1")
    assert room.is_free()
    admission.admit("192.0.2.1")
    with trio.move_on_after(0.01) as waiting:
        await room.wait()
    assert waiting.cancelled_caught
