"""OAUTHBEARER as a table: the examples of RFC 7628 §4, what else a client may respond, and what it may not."""

from __future__ import annotations

import base64
import json

import pytest

from proxy.model import Challenge, Credentials, MalformedResponse
from proxy.outcome import Outcome
from proxy.sasl.oauthbearer import OAuthBearer

# RFC 7628 §4.1
SUCCESS = base64.b64decode(
    "bixhPXVzZXJAZXhhbXBsZS5jb20sAWhvc3Q9c2VydmVyLmV4YW1wbGUuY29tAXBvcnQ9MTQzAWF1dGg9QmVhcmVyIHZGOWRmdDRxbVRjMk52YjNSbG"
    "NrQmhiSFJoZG1semRHRXVZMjl0Q2c9PQEB"
)
# RFC 7628 §4.3: "an empty Authorization header, which is how a client can query for the needed scope"
QUERY = b"n,a=user@example.com,\1host=server.example.com\1port=143\1auth=\1\1"
FAILED = base64.b64decode(
    "eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIiwic2NvcGUiOiJleGFtcGxlX3Njb3BlIiwib3BlbmlkLWNvbmZpZ3VyYXRpb24iOiJodHRwczovL2V4YW"
    "1wbGUuY29tLy53ZWxsLWtub3duL29wZW5pZC1jb25maWd1cmF0aW9uIn0="
)
CONFIGURATION = "https://example.com/.well-known/openid-configuration"


def offered(name: str, token: bytes) -> Credentials:
    return Credentials("OAUTHBEARER", name, "", token)


GOOD = [
    ("RFC 7628 §4.1", SUCCESS, offered("user@example.com", b"vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==")),
    ("RFC 7628 §4.3", QUERY, offered("user@example.com", b"")),
    ("token alone", b"n,,\1auth=Bearer t\1\1", offered("", b"t")),
    ("name of one octet", b"n,a=a,\1auth=Bearer t\1\1", offered("a", b"t")),
    ("could bind", b"y,a=ann,\1auth=Bearer t\1\1", offered("ann", b"t")),
    ("small letters", b"n,a=ann,\1auth=bearer t\1\1", offered("ann", b"t")),
    ("host behind", b"n,a=ann,\1auth=Bearer t\1host=h\1port=1\1\1", offered("ann", b"t")),
    ("unknown keys", b"n,a=ann,\1mthd=POST\1path=/\1qs=a=1&b=2\1auth=Bearer t\1\1", offered("ann", b"t")),
    ("unknown key, empty", b"n,a=ann,\1x=\1auth=Bearer t\1\1", offered("ann", b"t")),
    ("escapes", b"n,a=a=2Cb=3Dc=3D2C,\1auth=Bearer t\1\1", offered("a,b=c=2C", b"t")),
    ("UTF-8", "n,a=jürgen,\1auth=Bearer t\1\1".encode(), offered("jürgen", b"t")),
    ("no UTF-8", b"n,a=\xff,\1auth=Bearer t\1\1", offered("\udcff", b"t")),
]

MALFORMED = [
    ("empty", b""),
    ("the answer to a failure", b"\1"),
    ("no header", b"auth=Bearer s3cret\1\1"),
    ("no header but ^A", b"\1auth=Bearer s3cret\1\1"),
    ("one comma", b"n,\1auth=Bearer s3cret\1\1"),
    ("three commas", b"n,a=ann,,\1auth=Bearer s3cret\1\1"),
    ("empty name", b"n,a=,\1auth=Bearer s3cret\1\1"),
    ("name without a=", b"n,ann,\1auth=Bearer s3cret\1\1"),
    ("binds", b"p=tls-exporter,a=ann,\1auth=Bearer s3cret\1\1"),
    ("binds to n", b"p=n,a=ann,\1auth=Bearer s3cret\1\1"),
    ("binds to nothing", b"p=,a=ann,\1auth=Bearer s3cret\1\1"),
    ("other flag", b"x,a=ann,\1auth=Bearer s3cret\1\1"),
    ("capital flag", b"N,a=ann,\1auth=Bearer s3cret\1\1"),
    ("not a GS2 mechanism", b"F,n,a=ann,\1auth=Bearer s3cret\1\1"),
    ("bare =", b"n,a=a=b,\1auth=Bearer s3cret\1\1"),
    ("escape in small letters", b"n,a=a=2cb,\1auth=Bearer s3cret\1\1"),
    ("escape cut off", b"n,a=a=2,\1auth=Bearer s3cret\1\1"),
    ("NUL in the name", b"n,a=a\0b,\1auth=Bearer s3cret\1\1"),
    ("NUL in a value", b"n,a=ann,\1host=a\0b\1auth=Bearer s3cret\1\1"),
    ("no ^A behind the header", b"n,a=ann,auth=Bearer s3cret\1\1"),
    ("something else than ^A behind the header", b"n,a=ann,\2auth=Bearer s3cret\1\1"),
    ("no pairs", b"n,a=ann,\1\1"),
    ("no end", b"n,a=ann,\1auth=Bearer s3cret"),
    ("half an end", b"n,a=ann,\1auth=Bearer s3cret\1"),
    ("more behind the end", b"n,a=ann,\1auth=Bearer s3cret\1\1x"),
    ("no auth", b"n,a=ann,\1host=h\1port=143\1\1"),
    ("two tokens", b"n,a=ann,\1auth=Bearer s3cret\1auth=Bearer x\1\1"),
    ("host twice", b"n,a=ann,\1host=h\1host=h\1auth=Bearer s3cret\1\1"),
    ("unknown key twice", b"n,a=ann,\1x=1\1x=1\1auth=Bearer s3cret\1\1"),
    ("port is a word", b"n,a=ann,\1port=imap\1auth=Bearer s3cret\1\1"),
    ("port is empty", b"n,a=ann,\1port=\1auth=Bearer s3cret\1\1"),
    ("port is long", b"n,a=ann,\1port=000143\1auth=Bearer s3cret\1\1"),
    ("key with a digit", b"n,a=ann,\1x1=1\1auth=Bearer s3cret\1\1"),
    ("no key", b"n,a=ann,\1=1\1auth=Bearer s3cret\1\1"),
    ("other scheme", b"n,a=ann,\1auth=Basic s3cret\1\1"),
    ("scheme alone", b"n,a=ann,\1auth=Bearer\1\1"),
    ("empty token", b"n,a=ann,\1auth=Bearer \1\1"),
    ("no b64token", b"n,a=ann,\1auth=Bearer s3cret!\1\1"),
    ("XOAUTH2's form", b"user=ann\1auth=Bearer s3cret\1\1"),
]

STATUS = {
    Outcome.AUTHENTICATION_FAILED: "invalid_token",
    Outcome.EXPIRED: "invalid_token",
    Outcome.AUTHORIZATION_FAILED: "insufficient_scope",
}


@pytest.mark.parametrize(("name", "response", "credentials"), GOOD, ids=[row[0] for row in GOOD])
def test_a_response_becomes_credentials(name: str, response: bytes, credentials: Credentials) -> None:
    assert OAuthBearer("imap", "").step(response) == credentials


@pytest.mark.parametrize(("name", "response"), MALFORMED, ids=[row[0] for row in MALFORMED])
def test_a_malformed_response_is_refused_and_not_repeated(name: str, response: bytes) -> None:
    with pytest.raises(MalformedResponse) as caught:
        OAuthBearer("imap", "").step(response)
    assert "s3cret" not in repr(caught.value)
    assert "a=ann" not in repr(caught.value)


def test_without_initial_response_it_asks_with_an_empty_challenge() -> None:
    mechanism = OAuthBearer("imap", "")
    assert mechanism.step(None) == Challenge(b"")
    assert mechanism.step(b"n,a=ann,\1auth=Bearer t\1\1") == offered("ann", b"t")


def test_the_failure_of_rfc_7628() -> None:
    told = OAuthBearer("example_scope", CONFIGURATION).failure(Outcome.AUTHENTICATION_FAILED)
    assert told == Challenge(FAILED)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_only_what_is_wrong_with_the_token_is_told(outcome: Outcome) -> None:
    challenge = OAuthBearer("imap", CONFIGURATION).failure(outcome)
    if outcome in STATUS:
        assert challenge is not None
        told = {"status": STATUS[outcome], "scope": "imap", "openid-configuration": CONFIGURATION}
        assert json.loads(challenge.data) == told
    else:
        assert challenge is None


def test_what_is_not_known_is_left_out() -> None:
    assert OAuthBearer("", "").failure(Outcome.EXPIRED) == Challenge(b'{"status":"invalid_token"}')


def test_the_token_is_in_no_repr() -> None:
    mechanism = OAuthBearer("imap", "")
    assert "s3cret" not in repr(mechanism.step(b"n,a=ann,\1auth=Bearer s3cret\1\1"))
    assert "s3cret" not in repr(mechanism)
