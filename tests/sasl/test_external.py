"""EXTERNAL as a table: whom a certificate names, and whom the client wants to act as (RFC 4422 Appendix A)."""

from __future__ import annotations

import pytest

from proxy.model import Challenge, Credentials, MalformedResponse
from proxy.outcome import Outcome
from proxy.sasl.external import External

GOOD = [
    ("nobody else", "ann", b"", Credentials("EXTERNAL", "ann", "", b"", expires_at=5.0)),
    ("oneself", "ann", b"ann", Credentials("EXTERNAL", "ann", "ann", b"", expires_at=5.0)),
    ("somebody else", "ann", "jürgen".encode(), Credentials("EXTERNAL", "ann", "jürgen", b"", expires_at=5.0)),
    ("no name in the certificate", None, b"ann", Credentials("EXTERNAL", "", "ann", b"", expires_at=5.0)),
]


@pytest.mark.parametrize(("row", "name", "response", "credentials"), GOOD, ids=[row[0] for row in GOOD])
def test_a_response_becomes_credentials(row: str, name: str, response: bytes, credentials: Credentials) -> None:
    assert External(name, 5.0).step(response) == credentials


@pytest.mark.parametrize("response", [b"ann\0", b"\0", b"\xff", b"ann\xc3", b"\xed\xa0\x80"])
def test_a_malformed_response_is_refused(response: bytes) -> None:
    with pytest.raises(MalformedResponse) as caught:
        External("ann", None).step(response)
    assert "ann" not in repr(caught.value)


def test_without_initial_response_it_asks_with_an_empty_challenge() -> None:
    mechanism = External("ann", None)
    assert mechanism.step(None) == Challenge(b"")
    assert mechanism.step(b"") == Credentials("EXTERNAL", "ann", "", b"")


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_failure_has_no_challenge(outcome: Outcome) -> None:
    assert External("ann", None).failure(outcome) is None
