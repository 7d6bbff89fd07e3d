"""Whatever a client responds: a challenge, credentials, a wanted account or MalformedResponse, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import sasl
from proxy.model import (
    Account,
    AccountWanted,
    Challenge,
    Credentials,
    Identity,
    MalformedResponse,
    Mechanism,
    ScramKeys,
)
from proxy.sasl import External, OAuthBearer, Plain, ScramSha256, XOAuth2

MAKERS: dict[str, Callable[[], Mechanism]] = {
    "SCRAM-SHA-256-PLUS": lambda: ScramSha256(True, b"b" * 32, "nonce"),
    "SCRAM-SHA-256": lambda: ScramSha256(False, None, "nonce"),
    "PLAIN": Plain,
    "XOAUTH2": lambda: XOAuth2("imap"),
    "OAUTHBEARER": lambda: OAuthBearer("imap", ""),
    "EXTERNAL": lambda: External("ann", None),
}
ACCOUNT = Account(Identity("ann", "file"), ScramKeys(b"s" * 16, 4096, b"k" * 32, b"K" * 32))

PIECES = [
    *(b"n,,", b"y,a=ann,", b"p=tls-exporter,,", b"n=ann", b"r=abc", b"r=abcnonce", b"c=biws", b"c=eSws", b"p=AAAA"),
    *(b"p=" + b"A" * 43 + b"=", b",", b"=", b"=2C", b"\0", b"\1", b"\1\1", b"user=ann", b"auth=Bearer t", b"auth="),
    *(b"host=h", b"port=143", b"x=1", b"m=1", b"\xff", "ä".encode()),
]
RESPONSES = st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(PIECES), max_size=10).map(b"".join))


def test_every_mechanism_has_its_name_in_the_list() -> None:
    assert tuple(MAKERS) == sasl.NAMES


@pytest.mark.parametrize("name", sasl.NAMES)
@given(responses=st.lists(RESPONSES, min_size=1, max_size=4))
def test_any_bytes_end_in_an_answer_or_a_malformed_response(name: str, responses: list[bytes]) -> None:
    mechanism = MAKERS[name]()
    for response in responses:
        try:
            answer = mechanism.step(response)
        except MalformedResponse:
            return
        if isinstance(answer, AccountWanted):
            assert isinstance(mechanism, ScramSha256)
            assert mechanism.supply(ACCOUNT).data.startswith(b"r=")
        elif isinstance(answer, Credentials):
            assert answer.mechanism == name
            assert answer.proven is None  # nobody finds the key of these
            return
        else:
            assert isinstance(answer, Challenge)


@pytest.mark.parametrize("name", sasl.NAMES)
@pytest.mark.parametrize(
    "piece", [b"\1", b",", b"=2C", b"=", b"a", b"x=1,", b",x=1", b"x=1\1", b"\0", b"n=a,r=a,", b",p=", b",p=AAAA"]
)
def test_a_long_response_takes_no_long_time(name: str, piece: bytes) -> None:
    """No pattern goes over a response again and again: 64 KiB would take minutes then, and the run would stop."""
    for beginning in (b"", b"n,,", b"n,a=", b"n,,n=a,r=a", b"n,,\1", b"user=ann\1"):
        mechanism = MAKERS[name]()
        response = beginning + piece * (65536 // len(piece))
        try:
            if isinstance(mechanism.step(response), AccountWanted):
                assert isinstance(mechanism, ScramSha256)
                mechanism.supply(ACCOUNT)
                mechanism.step(b"c=biws,r=abc" + response)
        except MalformedResponse:
            pass
