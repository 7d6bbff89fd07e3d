"""A site that comes from nginx: its authentication service, the proxy, and real Dovecots."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.servers.accounts import USERS
from tests.servers.auth_service import AuthService, Person
from tests.servers.dovecot import Dovecot
from tests.servers.porter import Porter
from tests.servers.ports import LOOPBACK, Ports
from tests.servers.wire import Wire

pytestmark = pytest.mark.server
StartPorter = Callable[..., Porter]
FAILED = b"NO [AUTHENTICATIONFAILED] Authentication failed."
UNAVAILABLE = b"NO [UNAVAILABLE] Account is temporarily unavailable."
ALICE = USERS["alice"]


@pytest.fixture
def service(ports: Ports) -> Iterator[AuthService]:
    with AuthService(ports.take(), {"alice": Person(ALICE.encode())}) as running:
        yield running


@pytest.fixture
def porter(service: AuthService, start_porter: StartPorter) -> Porter:
    """A proxy that asks this service."""
    return start_porter(identity=[{"http": {"url": service.url, "timeout": "2s"}}])


def connect(porter: Porter) -> Wire:
    return Wire.connect(porter.imaps_port, porter.pki.client_context())


def backend_of(wire: Wire) -> bytes:
    """Who answers in this session: each backend has a mailbox that says so."""
    (listed,) = [line for line in wire.command(b'LIST "" On-*') if line.startswith(b"* LIST")]
    return listed.rpartition(b"On-")[2].strip(b'"')


def test_service_decides(porter: Porter, service: AuthService) -> None:
    with connect(porter) as wire:
        assert wire.login("alice", "wrong-pw-6h") == FAILED
        assert wire.login("nobody", ALICE) == FAILED
        assert wire.login("Alice", ALICE).startswith(b"OK")
    first, _, third = service.questions
    assert (first["Auth-User"], first["Auth-Pass"], first["Auth-Login-Attempt"]) == (b"alice", b"wrong-pw-6h", b"1")
    assert (third["Auth-User"], third["Auth-Login-Attempt"]) == (b"alice", b"3")
    assert (third["Client-IP"], third["Auth-SSL"]) == (LOOPBACK.encode(), b"on")
    refusals = porter.wait_for_log("login.refused", 2)
    assert ["Invalid login or password" in line["detail"] for line in refusals] == [True, True]
    assert "wrong-pw-6h" not in porter.output()


def test_service_chooses_the_backend(porter: Porter, service: AuthService, dovecots: list[Dovecot]) -> None:
    for dovecot in dovecots:  # one of them is not the hash's choice
        place = {"Auth-Server": LOOPBACK, "Auth-Port": str(dovecot.imap_port)}
        service.people["alice"] = Person(ALICE.encode(), place)
        with connect(porter) as wire:
            assert wire.login("alice", ALICE).startswith(b"OK")
            assert backend_of(wire) == dovecot.name.encode()


def test_no_backend_but_the_settings(porter: Porter, service: AuthService, dovecots: list[Dovecot]) -> None:
    place = {"Auth-Server": LOOPBACK, "Auth-Port": str(dovecots[0].imaps_port)}
    service.people["alice"] = Person(ALICE.encode(), place)
    with connect(porter) as wire:
        assert wire.login("alice", ALICE) == UNAVAILABLE


def test_password_of_the_backend(porter: Porter, service: AuthService) -> None:
    service.people["alice"] = Person(b"of-the-service-4d")
    with connect(porter) as wire:
        assert wire.login("alice", "of-the-service-4d") == FAILED  # by the backend, which has another one
        service.people["alice"] = Person(b"of-the-service-4d", {"Auth-Pass": ALICE})
        assert wire.login("alice", "of-the-service-4d").startswith(b"OK")
    assert "of-the-service-4d" not in porter.output()


def test_name_of_the_backend(porter: Porter, service: AuthService, dovecots: list[Dovecot]) -> None:
    service.people["a.alias"] = Person(b"of-the-alias-9k", {"Auth-User": "Alice", "Auth-Pass": ALICE})
    with connect(porter) as wire:
        assert wire.login("a.alias", "of-the-alias-9k").startswith(b"OK")
    (session,) = porter.wait_for_log("session.closed")
    assert (session["authentication_identity"], session["name"]) == ("a.alias", "alice")


def test_service_down_is_no_wrong_password(porter: Porter, service: AuthService) -> None:
    with connect(porter) as open_session, connect(porter) as wire:
        assert open_session.login("alice", ALICE).startswith(b"OK")
        service.stop()
        assert wire.login("alice", ALICE) == UNAVAILABLE
        assert open_session.command(b"NOOP")[-1].split()[1] == b"OK"
        service.start()
        assert wire.login("alice", ALICE).startswith(b"OK")
