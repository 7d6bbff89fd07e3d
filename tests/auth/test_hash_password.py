"""`imap-porter hash-password`."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pytest
from typer.testing import CliRunner

from proxy.auth.passwords import verify
from proxy.auth.scram_keys import parse_scram_keys, verify_password
from proxy.cli import hash_password as command
from proxy.cli.main import app


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch, cheap_hash: object) -> None:
    monkeypatch.setattr(command, "make_hash", cheap_hash)


def piped(monkeypatch: pytest.MonkeyPatch, octets: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(octets)))


def typed(monkeypatch: pytest.MonkeyPatch, answers: Iterable[str | BaseException]) -> None:
    left = iter(answers)

    def answer(prompt: str) -> str:
        given = next(left)
        if isinstance(given, BaseException):
            raise given
        return given

    monkeypatch.setattr("sys.stdin", Terminal(io.BytesIO()))
    monkeypatch.setattr("getpass.getpass", answer)


@pytest.mark.parametrize(
    ("octets", "secret"),
    [
        (b"secret\n", b"secret"),
        (b"secret", b"secret"),
        (b"secret\r\n", b"secret"),
        (b" two words \nsecond line\n", b" two words "),
        (b"p\xc3\xa4ss\n", "päss".encode()),
        (b"\xff\n", b"\xff"),
    ],
)
def test_the_first_line_of_standard_input(
    octets: bytes, secret: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(monkeypatch, octets)
    assert command.hash_password() == 0
    out, err = capsys.readouterr()
    assert out.endswith("\n")
    assert out.count("\n") == 1
    assert err == ""
    assert verify(out.strip(), secret)


@pytest.mark.parametrize(
    ("octets", "problem"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"\r\nsecond line\n", "empty"),
        (b"sec\0ret\n", "NUL"),
        (b"x" * 8193 + b"\n", "longer"),
        (b"x" * 20000, "longer"),
    ],
)
def test_what_nobody_could_log_in_with(
    octets: bytes, problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(monkeypatch, octets)
    assert command.hash_password() == command.EXIT_REFUSED
    out, err = capsys.readouterr()
    assert out == ""
    assert problem in err


def test_asked_twice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    typed(monkeypatch, ["päss", "päss"])
    assert command.hash_password() == 0
    assert verify(capsys.readouterr().out.strip(), "päss".encode())


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        (["one", "two"], command.EXIT_REFUSED),
        ([""], command.EXIT_REFUSED),
        ([KeyboardInterrupt()], command.EXIT_INTERRUPTED),
        (["one", EOFError()], command.EXIT_INTERRUPTED),
    ],
)
def test_answers_that_end_it(
    answers: list[str | BaseException],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    typed(monkeypatch, answers)
    assert command.hash_password() == status
    out, err = capsys.readouterr()
    assert out == ""
    assert "one" not in err


def test_scram_keys_alone_on_standard_output() -> None:
    result = CliRunner().invoke(app, ["hash-password", "--scram"], input="pässword\nsecond line\n")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout.startswith("SCRAM-SHA-256$")
    assert result.stdout.count("\n") == 1
    assert verify_password(parse_scram_keys(result.stdout.removesuffix("\n")), "pässword".encode())


@pytest.mark.parametrize(
    ("octets", "problem"), [(b"\xffs3cret\n", "UTF-8"), (b"s3cret\x07\n", "RFC 4013"), (b"\n", "empty")]
)
def test_what_no_scram_client_could_send(
    octets: bytes, problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(monkeypatch, octets)
    assert command.hash_password(scram=True) == command.EXIT_REFUSED
    out, err = capsys.readouterr()
    assert out == ""
    assert problem in err
    assert "s3cret" not in err
