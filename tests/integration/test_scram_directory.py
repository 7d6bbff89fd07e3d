"""SCRAM keys in a directory: a real OpenLDAP server, the whole proxy, real Dovecots."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path

import pytest

from tests.integration.scram_stage import (
    ALICE,
    FAILED,
    PASSWORDS,
    UNAVAILABLE,
    WRONG,
    Settings,
    client_of,
    enter,
    keys_of,
    leave,
    make_keys,
    messages,
    offered,
    write_settings,
)
from tests.servers.pki import Pki
from tests.servers.porter import Porter
from tests.servers.ports import Ports
from tests.servers.scram_client import PLUS, SCRAM, BoundWire, Scramp, authenticate
from tests.servers.slapd import PEOPLE, SERVICE_DN, SERVICE_PASSWORD, Slapd, write_slapd

pytestmark = pytest.mark.server
StartPorter = Callable[..., Porter]


@pytest.fixture(scope="module")
def keys() -> dict[str, str]:
    return make_keys()


@pytest.fixture(scope="module")
def settings(folder: Path, keys: dict[str, str]) -> Settings:
    return write_settings(folder, keys)


@pytest.fixture
def slapd(folder: Path, ports: Ports, pki: Pki, keys: dict[str, str]) -> Iterator[Slapd]:
    """A directory that keeps alice's and bob's keys among the values of another attribute."""
    with ExitStack() as stack:
        server = write_slapd(Path(tempfile.mkdtemp(prefix="slapd-", dir=folder)), ports, pki)
        stack.callback(server.stop)
        server.start()
        for name, text in keys.items():
            values = f"description: {{SSHA}}of another kind\ndescription: {text}\n"
            server.add(f"dn: uid={name},{PEOPLE}\nchangetype: modify\nadd: description\n{values}\n")
        yield server


@pytest.fixture
def directory(slapd: Slapd, short_folder: Path) -> Settings:
    """The source that asks it."""
    secret = short_folder / "ldap-secret"
    secret.write_text(SERVICE_PASSWORD + "\n")
    secret.chmod(0o600)
    return {
        "ldap": {
            "urls": [slapd.url],
            "bind": {"dn": SERVICE_DN, "password": {"file": str(secret)}},
            "search": {"base": PEOPLE, "filter": "(uid={name})"},
            "attributes": {"scram": "description"},
            "timeout": "2s",
        }
    }


def test_keys_in_a_directory(
    start_porter: StartPorter, settings: Settings, directory: Settings, slapd: Slapd, keys: dict[str, str]
) -> None:
    porter = start_porter(**{**settings, "identity": [directory]})
    for mechanism, name in product((SCRAM, PLUS), ("alice", "bob")):
        with BoundWire.enter(porter.doors["starttls"]) as wire:
            assert offered(wire) == [PLUS, SCRAM, "PLAIN"]
            for whom, password in ((name, WRONG), ("nobody-here", WRONG), ("u05", WRONG)):
                told = authenticate(wire, client_of(mechanism, wire, whom, password))
                assert (told.answer, len(told.challenges)) == (FAILED, 1), whom
            assert authenticate(wire, client_of(mechanism, wire, name, PASSWORDS[name])).accepted
            assert messages(wire) == 100
            leave(wire)
            (line,) = porter.wait_for_log("session.closed", client=wire.address)
        assert (line["name"], line["source"], line["mechanism"]) == (name, "ldap", mechanism)
    with enter(porter.doors["imaps"]) as wire:
        changed = keys_of("another-9m")
        text = f"dn: uid=alice,{PEOPLE}\nchangetype: modify\nreplace: description\ndescription: {changed}\n\n"
        slapd.add(text)
        assert authenticate(wire, Scramp("alice", ALICE)).answer == FAILED, "at once: nothing of it is remembered"
        assert authenticate(wire, Scramp("alice", "another-9m")).accepted


def test_a_name_that_the_directory_does_not_know_looks_like_those_it_knows(
    start_porter: StartPorter, settings: Settings, directory: Settings
) -> None:
    porter = start_porter(workers=1, **{**settings, "identity": [directory]})
    with enter(porter.doors["imaps"]) as wire:
        known = [authenticate(wire, Scramp(name, WRONG)).server_first for name in ("alice", "bob")]
        unknown = [authenticate(wire, Scramp(name, WRONG)).server_first for name in ("nobody-here", "u05")]
    assert {first["i"] for first in unknown} == {first["i"] for first in known}
    assert {len(first["s"]) for first in unknown} == {len(first["s"]) for first in known}


@pytest.mark.parametrize("end", [Slapd.stop, Slapd.freeze])
@pytest.mark.parametrize("mechanism", [SCRAM, PLUS])
def test_an_outage_is_no_wrong_password(
    start_porter: StartPorter,
    settings: Settings,
    directory: Settings,
    slapd: Slapd,
    end: Callable[[Slapd], None],
    mechanism: str,
) -> None:
    porter = start_porter(**{**settings, "identity": [directory]})
    with BoundWire.enter(porter.doors["imaps"]) as wire, BoundWire.enter(porter.doors["starttls"]) as other:
        assert authenticate(wire, client_of(mechanism, wire, "alice", WRONG)).answer == FAILED
        # Half of an exchange has all it needs.
        client = client_of(mechanism, wire, "alice", ALICE)
        wire.send(b"y AUTHENTICATE %b %b\r\n" % (mechanism.encode(), base64.b64encode(client.first())))
        final = client.final(base64.b64decode(wire.line().removeprefix(b"+ ")))
        end(slapd)
        for name, password in (("alice", ALICE), ("alice", WRONG), ("nobody-here", WRONG)):
            told = authenticate(other, client_of(mechanism, other, name, password))
            assert told.answer == UNAVAILABLE, "neither the owner nor who guesses hears of a wrong password"
            assert told.challenges == ()
        wire.send(base64.b64encode(final) + b"\r\n")
        client.verify(base64.b64decode(wire.line().removeprefix(b"+ ")))
        wire.send(b"\r\n")
        assert wire.until(b"y")[-1].startswith(b"y OK")
        lines = porter.wait_for_log("login.refused", 3, client=other.address)
    assert all(line["detail"].startswith("ldap: ldap://") for line in lines)
    assert {(line["outcome"], line["mechanism"]) for line in lines} == {("unavailable", mechanism)}
    attempts = porter.metrics().total("porter_login_attempts_total", mechanism=mechanism, outcome="unavailable")
    assert attempts == 3
