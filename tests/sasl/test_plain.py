"""PLAIN as a table: what a client may respond, and what it may not (RFC 4616 §2)."""

from __future__ import annotations

import pytest

from proxy.model import Challenge, Credentials, MalformedResponse
from proxy.outcome import Outcome
from proxy.sasl.plain import Plain

GOOD = [
    ("no authorization identity", b"\0ann\0pw", Credentials("PLAIN", "ann", "", b"pw")),
    ("both identities", b"bob\0ann\0pw", Credentials("PLAIN", "ann", "bob", b"pw")),
    ("UTF-8", "jürgen\0änn\0pw€".encode(), Credentials("PLAIN", "änn", "jürgen", "pw€".encode())),
    ("no UTF-8", b"\xfe\0\xffann\0\xff", Credentials("PLAIN", "\udcffann", "\udcfe", b"\xff")),
    ("spaces stay", b"\0 ann \0 p w ", Credentials("PLAIN", " ann ", "", b" p w ")),
]

MALFORMED = [
    ("empty", b""),
    ("no NUL", b"ann"),
    ("one NUL", b"ann\0pw"),
    ("three NULs", b"\0ann\0pw\0"),
    ("many NULs", b"\0" * 10000),
    ("no authentication identity", b"bob\0\0pw"),
    ("no password", b"bob\0ann\0"),
    ("nothing but NULs", b"\0\0"),
]


@pytest.mark.parametrize(("name", "response", "credentials"), GOOD, ids=[row[0] for row in GOOD])
def test_a_response_becomes_credentials(name, response, credentials):
    assert Plain().step(response) == credentials


@pytest.mark.parametrize(("name", "response"), MALFORMED, ids=[row[0] for row in MALFORMED])
def test_a_malformed_response_is_refused_and_not_repeated(name, response):
    with pytest.raises(MalformedResponse) as caught:
        Plain().step(response)
    assert "ann" not in repr(caught.value)


def test_without_initial_response_it_asks_with_an_empty_challenge():
    plain = Plain()
    assert plain.step(None) == Challenge(b"")
    assert plain.step(b"\0ann\0pw") == Credentials("PLAIN", "ann", "", b"pw")


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_failure_has_no_challenge(outcome):
    assert Plain().failure(outcome) is None


def test_the_password_is_in_no_repr():
    assert "s3cret" not in repr(Plain().step(b"\0ann\0s3cret"))
