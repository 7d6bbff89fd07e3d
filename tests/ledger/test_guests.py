"""Guests by session, worker and user: the three ways to find them never contradict each other."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.ledger.guests import Guest, Guests, by_worker


def guest(session_id: str, name: str = "ann", worker: str = "w1.0", backend: str = "a") -> Guest:
    return Guest(session_id, name, "192.0.2.1:4711", "[::]:993", worker, 5.0, backend)


def ids(guests: list[Guest]) -> list[str]:
    return [each.id for each in guests]


def test_a_worker_is_gone() -> None:
    guests = Guests()
    for number in range(6):
        guests.add(guest(f"s{number}", "ann" if number % 3 else "bob", f"w1.{number % 2}"))
    assert guests.count("w1.0") == 3
    assert by_worker(["s1", "s2", "gone", "s3"], guests) == {"w1.1": ["s1", "s3"], "w1.0": ["s2"]}
    assert ids(guests.gone("w1.0")) == ["s0", "s2", "s4"]
    assert ids(list(guests)) == ["s1", "s3", "s5"]
    assert ids(guests.named("ann", 10)) == ["s1", "s5"]
    assert ids(guests.named("bob", 10)) == ["s3"]
    assert guests.gone("w1.0") == []
    assert ids(guests.gone("w1.1")) == ["s1", "s3", "s5"]
    assert not any((guests._by_id, guests._by_worker, guests._by_name))


def test_lists_have_an_end() -> None:
    guests = Guests()
    for number in range(20):
        guests.add(guest(f"s{number}", backend="ab"[number % 2]))
    assert ids(guests.first(2)) == ids(guests.named("ann", 2)) == ids(guests.of_worker("w1.0", 2)) == ["s0", "s1"]
    assert ids(guests.at("b", 2)) == ["s1", "s3"]
    assert guests.at("c", 2) == guests.named("bob", 2) == guests.of_worker("w1.1", 2) == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "remove", "gone"]),
            st.sampled_from("1234"),
            st.sampled_from(["ann", "bob"]),
            st.sampled_from(["w1.0", "w1.1"]),
        )
    )
)
def test_all_ways_lead_to_the_same_guests(steps: list[tuple[str, str, str, str]]) -> None:
    guests = Guests()
    model: dict[str, Guest] = {}
    for act, session_id, name, worker in steps:
        if act == "add":
            model.pop(session_id, None)
            model[session_id] = guest(session_id, name, worker)
            guests.add(model[session_id])
        elif act == "remove":
            assert guests.remove(session_id) is model.pop(session_id, None)
        else:
            gone = [each for each in model.values() if each.worker == worker]
            assert guests.gone(worker) == gone
            model = {key: each for key, each in model.items() if each.worker != worker}
        assert list(guests) == list(model.values())
        assert len(guests) == len(model)
        for each in ("ann", "bob"):
            assert guests.named(each, 9) == [one for one in model.values() if one.name == each]
        for each in ("w1.0", "w1.1"):
            assert guests.of_worker(each, 9) == [one for one in model.values() if one.worker == each]
        assert all(guests.get(key) is each for key, each in model.items())
    assert all(guests._by_name.values())
    assert all(guests._by_worker.values())


# --- pages ---


def crowd(count: int) -> Guests:
    """So many, of 100 users at three backends, in two workers, from 50 addresses; ids as they really are: random."""
    guests = Guests()
    ids = list(range(count))
    random.Random(7).shuffle(ids)
    for number in ids:
        client = f"[2001:db8::{number % 50:x}]:4711" if number % 2 else f"192.0.2.{number % 50}:4711"
        listener = "[::]:993" if number % 5 else "[::]:143"
        name, worker, backend = f"u{number % 100}", f"w1.{number % 2}", "abc"[number % 3]
        guests.add(Guest(f"{number * 7919 % 100003:06x}", name, client, listener, worker, 5.0, backend))
    return guests


FILTERS: list[dict[str, Any]] = [
    {},
    {"user": "u7"},
    {"user": "nobody"},
    {"backend": "b"},
    {"address": "192.0.2.4"},
    {"address": "2001:db8::1"},
    {"address": "192.0.2"},
    {"listener": "[::]:143"},
    {"worker": "w1.1"},
    {"worker": "w9.9"},
    {"user": "u7", "worker": "w1.1"},
    {"user": "u7", "worker": "w1.0"},
    {"user": "u8", "backend": "a", "listener": "[::]:993", "address": "192.0.2.8", "worker": "w1.0"},
    {"worker": "w1.0", "backend": "c"},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_all_that_is_given_applies(filters: dict[str, Any]) -> None:
    guests = crowd(900)
    keys = {"user": "name"}
    wanted = sorted(
        each.id for each in guests if all(getattr(each, keys.get(key, key)) == filters[key] for key in filters)
    )
    found, total = guests.search(**filters, most=1000)
    assert (ids(found), total) == (wanted, len(wanted))
    few, total = guests.search(**filters, most=3)
    assert (ids(few), total) == (wanted[:3], len(wanted))
    assert guests.search(**filters, most=0)[0] == []


ADDRESSES = [
    ("192.0.2.1:4711", "192.0.2.1"),
    ("[2001:db8::1]:4711", "2001:db8::1"),
    ("[fe80::1%eth0]:4711", "fe80::1%eth0"),
    ("", ""),
]


@pytest.mark.parametrize(("client", "address"), ADDRESSES)
def test_addresses(client: str, address: str) -> None:
    assert Guest("s1", "ann", client, "l", "w", 0.0).address == address


def pages(guests: Guests, most: int, change: Callable[[int, list[Guest]], None] | None = None) -> list[list[str]]:
    """All pages, with what happens between them."""
    seen: list[list[str]] = []
    after: str | None = None
    while True:
        found, _ = guests.search(after=after, most=most)
        if not found:
            return seen
        seen.append(ids(found))
        after = found[-1].id
        if change is not None:
            change(len(seen), found)


@pytest.mark.parametrize("most", [1, 7, 100, 899, 900, 1000])
def test_pages_make_the_whole(most: int) -> None:
    guests = crowd(900)
    told = pages(guests, most)
    assert [each for page in told for each in page] == sorted(each.id for each in guests)
    assert {len(page) for page in told[:-1]} <= {most}


def test_pages_survive_changes() -> None:
    """Whoever stays is told of once, however many come and go, and though those who go are what `after` names."""
    guests = crowd(900)
    staying = {each.id for number, each in enumerate(guests) if number % 3}
    coming = iter(range(10_000))

    def change(_page: int, shown: list[Guest]) -> None:
        for each in shown:
            if each.id not in staying:
                guests.remove(each.id)
        for number in range(20):
            guests.add(guest(f"{next(coming):06x}-{number}", "newcomer"))
        for each in list(guests)[:10]:
            if each.id not in staying:
                guests.remove(each.id)

    told = [each for page in pages(guests, 50, change) for each in page]
    assert len(told) == len(set(told)), "nobody twice"
    assert [each for each in told if each in staying] == sorted(staying), "and nobody who stays is left out"


def test_nine_thousand_guests() -> None:
    guests = crowd(9000)
    assert len(guests) == 9000
    told = pages(guests, 1000)
    assert [len(page) for page in told] == [1000] * 9
    assert guests.search(user="u42", most=1000)[1] == 90
    found, total = guests.search(backend="a", worker="w1.0", most=1000)
    assert (len(found), total) == (1000, 1500)
    assert guests.crowds(3) == [("u0", 90), ("u1", 90), ("u10", 90)], "of alike ones by name, so that all see the same"


# --- crowds ---


def test_crowds() -> None:
    guests = Guests()
    assert (guests.crowds(5), guests.users) == ([], 0)
    for name, count in (("bob", 3), ("ann", 3), ("cid", 1), ("dan", 7)):
        for number in range(count):
            guests.add(guest(f"{name}{number}", name))
    assert guests.crowds(9) == [("dan", 7), ("ann", 3), ("bob", 3), ("cid", 1)]
    assert guests.crowds(2) == [("dan", 7), ("ann", 3)]
    assert guests.crowds(0) == []
    guests.remove("cid0")
    guests.gone("w1.0")
    assert (guests.crowds(9), guests.users) == ([], 0)
