"""From an identity to its backend."""

from __future__ import annotations

from typing import Literal

import pytest

from proxy.model import Identity
from proxy.outcome import Outcome, Refused
from proxy.routing.rendezvous import Member, Rendezvous
from proxy.routing.router import Choice, Router
from proxy.settings.models import Server

WEIGHTS = {"dovecot-1": 1, "dovecot-2": 2, "draining": 0}


def router(hash: Literal["name", "domain"] = "name", weights: dict[str, int] = WEIGHTS) -> Router:
    return Router(
        [
            Server.model_validate({"name": name, "url": "imap://127.0.0.1", "weight": weight})
            for name, weight in weights.items()
        ],
        hash,
    )


RING = Rendezvous(Member(name, weight) for name, weight in WEIGHTS.items())
NAMES = [f"person{number}@example.org" for number in range(40)]


def test_by_name() -> None:
    choices = [router().route(Identity(name, "file")) for name in NAMES]
    assert [choice.order for choice in choices] == [RING.order(name) for name in NAMES]
    assert {choice.backend for choice in choices} == {"dovecot-1", "dovecot-2"}
    assert all(choice.why == "hash" and choice.backend == choice.order[0] for choice in choices)


def test_by_domain() -> None:
    by_domain = router("domain")
    choices = {by_domain.route(Identity(name, "file")) for name in NAMES}
    assert choices == {Choice(RING.order("example.org")[0], "hash", RING.order("example.org"))}
    assert by_domain.route(Identity("alice", "file")).order == RING.order("alice")
    assert by_domain.explain("alice@example.org").key == "example.org"
    assert by_domain.explain("alice").key == "alice"


@pytest.mark.parametrize("backend", WEIGHTS)
def test_a_source_may_name_the_backend(backend: str) -> None:
    for name in NAMES:
        assert router().route(Identity(name, "file", backend)) == Choice(backend, "override", (backend,))


SERVERS = [
    ("one", "imap://10.0.0.1"),
    ("two", "imaps://mail2.example.org:1993"),
    ("three", "imap://10.0.0.3:1143"),
    ("four", "imap://10.0.0.3:2143"),
    ("five", "imap://10.0.0.5:1143"),
    ("six", "imap://10.0.0.5:1143"),
    ("10.0.0.1", "imap://[2001:db8::7]"),
]
SPELLINGS = [
    ("one", "one"),
    ("ONE", "one"),
    ("10.0.0.1:143", "one"),
    ("10.0.0.1", "10.0.0.1"),  # a name comes before an address
    ("mail2.example.org", "two"),
    ("MAIL2.example.org:1993", "two"),
    ("10.0.0.3:2143", "four"),
    ("[2001:db8::7]:143", "10.0.0.1"),
    ("2001:db8::7", "10.0.0.1"),
    # nobody's alone, or nobody's
    ("10.0.0.3", None),
    ("10.0.0.5:1143", None),
    ("mail2.example.org:993", None),
    ("four ", None),
    ("", None),
]


@pytest.mark.parametrize(("spelled", "backend"), SPELLINGS)
def test_a_source_may_give_an_address(spelled: str, backend: str | None) -> None:
    servers = [Server.model_validate({"name": name, "url": url}) for name, url in SERVERS]
    identity = Identity("alice@example.org", "ldap", spelled)
    if backend is None:
        with pytest.raises(Refused, match="unknown backend"):
            Router(servers, "name").route(identity)
    else:
        assert Router(servers, "name").route(identity) == Choice(backend, "override", (backend,))


def test_a_backend_that_there_is_not() -> None:
    with pytest.raises(Refused) as refusal:
        router().route(Identity("alice@example.org", "file", "dovecot-9"))
    assert refusal.value.outcome is Outcome.UNAVAILABLE
    assert '"dovecot-9"' in refusal.value.detail
    assert "file" in refusal.value.detail


def test_no_backend_takes_new_homes() -> None:
    closed = router(weights={"a": 0, "b": 0})
    with pytest.raises(Refused) as refusal:
        closed.route(Identity("alice@example.org", "file"))
    assert refusal.value.outcome is Outcome.UNAVAILABLE
    assert closed.route(Identity("alice@example.org", "file", "b")).backend == "b"


def test_an_explanation() -> None:
    explanation = router().explain("alice@example.org")
    assert (explanation.name, explanation.key) == ("alice@example.org", "alice@example.org")
    assert explanation.epoch == router().epoch == RING.epoch
    assert explanation.scores == RING.scores("alice@example.org")
    assert explanation.scores[-1].name == "draining"
