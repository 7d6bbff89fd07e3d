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
