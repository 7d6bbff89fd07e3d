"""A secret from a terminal or from standard input."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from proxy.cli.secret_input import UnusableSecret, read_secret


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def typed(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Answer questions; gives what was asked."""
    left, asked = iter(answers), []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return next(left)

    monkeypatch.setattr("sys.stdin", Terminal(io.BytesIO()))
    monkeypatch.setattr("getpass.getpass", answer)
    return asked


@pytest.mark.parametrize(
    ("octets", "secret"),
    [
        (b"secret\n", b"secret"),
        (b"secret\r\n", b"secret"),
        (b" two words \nsecond line\n", b" two words "),
        (b"\xff", b"\xff"),
        (b"x" * 10, b"x" * 10),
    ],
)
def test_the_first_line(octets: bytes, secret: bytes, piped: Callable[[bytes], None]) -> None:
    piped(octets)
    assert read_secret(max_octets=11) == secret


@pytest.mark.parametrize(
    ("octets", "problem"),
    [(b"", "The token is empty"), (b"\nx", "empty"), (b"a\0b\n", "NUL"), (b"x" * 12, "longer than 11 octets")],
)
def test_what_nobody_could_log_in_with(octets: bytes, problem: str, piped: Callable[[bytes], None]) -> None:
    piped(octets)
    with pytest.raises(UnusableSecret, match=problem):
        read_secret("token", max_octets=11)


def test_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = typed(monkeypatch, "päss")
    assert read_secret() == "päss".encode()
    assert asked == ["Password: "]


def test_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = typed(monkeypatch, "one", "one")
    assert read_secret("token", twice=True) == b"one"
    assert asked == ["Token: ", "Once more: "]


def test_typed_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "one", "two")
    with pytest.raises(UnusableSecret, match="The two passwords differ"):
        read_secret(twice=True)
