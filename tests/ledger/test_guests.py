"""Guests by session, worker and user: the three ways to find them never contradict each other."""

from __future__ import annotations

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
