"""XOAUTH2 as a table: what a client may respond, what it may not, and what it hears of a token that won't do."""

from __future__ import annotations

import base64
import json

import pytest

from proxy.model import Challenge, Credentials, MalformedResponse
from proxy.outcome import Outcome
from proxy.sasl.xoauth2 import XOAuth2

# The example of https://developers.google.com/workspace/gmail/imap/xoauth2-protocol.
GOOGLE = base64.b64decode(
    "dXNlcj1zb21ldXNlckBleGFtcGxlLmNvbQFhdXRoPUJlYXJlciB5YTI5LnZGOWRmdDRxbVRjMk52YjNSbGNrQmhkSFJoZG1semRHRXVZMjl0Q2cBAQ=="
)


def offered(name: str, token: bytes) -> Credentials:
    return Credentials("XOAUTH2", name, "", token)


GOOD = [
    ("Google's example", GOOGLE, offered("someuser@example.com", b"ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg")),
    ("small letters", b"user=ann\1auth=bearer t\1\1", offered("ann", b"t")),
    ("capitals", b"user=ann\1auth=BEARER t\1\1", offered("ann", b"t")),
    ("more spaces", b"user=ann\1auth=Bearer   t\1\1", offered("ann", b"t")),
    ("every character of a token", b"user=a\1auth=Bearer aZ09-._~+/==\1\1", offered("a", b"aZ09-._~+/==")),
    ("the other way round", b"auth=Bearer t\1user=ann\1\1", offered("ann", b"t")),
    ("more fields", b"user=ann\1host=h\1port=993\1auth=Bearer t\1\1", offered("ann", b"t")),
    ("an equals sign in the name", b"user=a=b,c\1auth=Bearer t\1\1", offered("a=b,c", b"t")),
    ("UTF-8", "user=jürgen\1auth=Bearer t\1\1".encode(), offered("jürgen", b"t")),
    ("no UTF-8", b"user=\xff\1auth=Bearer t\1\1", offered("\udcff", b"t")),
]

MALFORMED = [
    ("empty", b""),
    ("^A", b"\1"),
    ("^A^A", b"\1\1"),
    ("no end", b"user=ann\1auth=Bearer s3cret"),
    ("half an end", b"user=ann\1auth=Bearer s3cret\1"),
    ("more behind the end", b"user=ann\1auth=Bearer s3cret\1\1x"),
    ("a third ^A", b"user=ann\1auth=Bearer s3cret\1\1\1"),
    ("no ^A between", b"user=annauth=Bearer s3cret\1\1"),
    ("two ^A between", b"user=ann\1\1auth=Bearer s3cret\1\1"),
    ("no name", b"auth=Bearer s3cret\1\1"),
    ("empty name", b"user=\1auth=Bearer s3cret\1\1"),
    ("no token", b"user=ann\1\1"),
    ("empty token", b"user=ann\1auth=Bearer \1\1"),
    ("nothing behind auth", b"user=ann\1auth=\1\1"),
    ("no scheme", b"user=ann\1auth=s3cret\1\1"),
    ("other scheme", b"user=ann\1auth=Basic s3cret\1\1"),
    ("no space", b"user=ann\1auth=Bearers3cret\1\1"),
    ("a tab", b"user=ann\1auth=Bearer\ts3cret\1\1"),
    ("a space in the token", b"user=ann\1auth=Bearer s3cret x\1\1"),
    ("a line end in the token", b"user=ann\1auth=Bearer s3cret\n\1\1"),
    ("8-bit in the token", b"user=ann\1auth=Bearer s3cret\xff\1\1"),
    ("an equals sign amid the token", b"user=ann\1auth=Bearer s3=cret\1\1"),
    ("only equals signs", b"user=ann\1auth=Bearer ==\1\1"),
    ("two names", b"user=ann\1user=bob\1auth=Bearer s3cret\1\1"),
    ("twice the same name", b"user=ann\1user=ann\1auth=Bearer s3cret\1\1"),
    ("two tokens", b"user=ann\1auth=Bearer s3cret\1auth=Bearer x\1\1"),
    ("a field without a key", b"user=ann\1=x\1auth=Bearer s3cret\1\1"),
    ("a field without =", b"user=ann\1x\1auth=Bearer s3cret\1\1"),
    ("a digit in a key", b"user=ann\1x1=x\1auth=Bearer s3cret\1\1"),
    ("a NUL", b"user=ann\0\1auth=Bearer s3cret\1\1"),
    ("OAUTHBEARER's form", b"n,a=ann,\1auth=Bearer s3cret\1\1"),
    ("base64 once more", base64.b64encode(GOOGLE)),
]

SCOPE = "https://mail.example.org/ imap"

TOLD = {
    Outcome.AUTHENTICATION_FAILED: {"status": "401", "schemes": "bearer", "scope": SCOPE},
    Outcome.EXPIRED: {"status": "401", "schemes": "bearer", "scope": SCOPE},
    Outcome.AUTHORIZATION_FAILED: {"status": "400", "schemes": "bearer", "scope": SCOPE},
}


@pytest.mark.parametrize(("name", "response", "credentials"), GOOD, ids=[row[0] for row in GOOD])
def test_a_response_becomes_credentials(name: str, response: bytes, credentials: Credentials) -> None:
    assert XOAuth2("imap").step(response) == credentials


@pytest.mark.parametrize(("name", "response"), MALFORMED, ids=[row[0] for row in MALFORMED])
def test_a_malformed_response_is_refused_and_not_repeated(name: str, response: bytes) -> None:
    with pytest.raises(MalformedResponse) as caught:
        XOAuth2("imap").step(response)
    assert "s3cret" not in repr(caught.value)
    assert "ann" not in repr(caught.value)


def test_without_initial_response_it_asks_with_an_empty_challenge() -> None:
    mechanism = XOAuth2("imap")
    assert mechanism.step(None) == Challenge(b"")
    assert mechanism.step(b"user=ann\1auth=Bearer t\1\1") == offered("ann", b"t")


@pytest.mark.parametrize("outcome", list(Outcome))
def test_only_what_is_wrong_with_the_token_is_told(outcome: Outcome) -> None:
    challenge = XOAuth2(SCOPE).failure(outcome)
    assert (None if challenge is None else json.loads(challenge.data)) == TOLD.get(outcome)


def test_the_failure_reads_as_dovecot_writes_it() -> None:
    assert XOAuth2("mail").failure(Outcome.AUTHENTICATION_FAILED) == Challenge(
        b'{"status":"401","schemes":"bearer","scope":"mail"}'
    )


def test_the_token_is_in_no_repr() -> None:
    mechanism = XOAuth2("imap")
    assert "s3cret" not in repr(mechanism.step(b"user=ann\1auth=Bearer s3cret\1\1"))
    assert "s3cret" not in repr(mechanism)
