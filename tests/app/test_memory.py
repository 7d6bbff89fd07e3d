"""When memory is given back."""

from __future__ import annotations

import pytest

from proxy.app.memory import LEAST, Ebb, give_back

TIDES = [
    ("quiet", [0, 3, 0, 200, 0], []),
    ("a storm", [10, 5 * LEAST, 4 * LEAST, 2 * LEAST, 100, 50, 0], [2 * LEAST, 100]),
    ("it stays full", [5 * LEAST, 4 * LEAST, 3 * LEAST, 4 * LEAST], []),
    ("one after the other", [2 * LEAST, 10, 2 * LEAST, 10], [10, 10]),
]


@pytest.mark.parametrize(("clients", "given_back"), [case[1:] for case in TIDES], ids=[case[0] for case in TIDES])
def test_when_most_have_gone(clients: list[int], given_back: list[int]) -> None:
    ebb = Ebb()
    assert [count for count in clients if ebb.is_out(count)] == given_back


def test_giving_back_needs_no_c_library_of_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    give_back()
    monkeypatch.setattr("proxy.app.memory.ctypes.CDLL", lambda _: object())
    give_back()
