"""SCRAM-SHA-256 and -PLUS through the whole proxy: keys made by `imap-porter hash-password`, real Dovecots."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
import yaml
from OpenSSL import SSL

from tests.integration.scram_stage import (
    ALICE,
    CANCELLED,
    CANNOT,
    FAILED,
    NOT_YOURS,
    PASSWORDS,
    WRONG,
    Settings,
    client_of,
    enter,
    leave,
    make_keys,
    messages,
    offered,
    running,
    write_settings,
)
from tests.servers.accounts import MASTER
from tests.servers.dovecot import Dovecot
from tests.servers.pki import Pki
from tests.servers.porter import Door, Porter, porter_settings, serve_in_vain
from tests.servers.ports import LOOPBACK, Ports
from tests.servers.scram_client import PLUS, SCRAM, TLS_EXPORTER, BoundWire, Handmade, Scramp, authenticate, bound
from tests.servers.wire import Wire

pytestmark = pytest.mark.server
StartPorter = Callable[..., Porter]
MALFORMED = b"BAD Malformed authentication response."
UNFIT = "the proof does not fit the name's keys"
HIDDEN = "the client was not told of PLUS, which was offered: a downgrade?"


@pytest.fixture(scope="module")
def keys() -> dict[str, str]:
    return make_keys()


@pytest.fixture(scope="module")
def settings(folder: Path, keys: dict[str, str]) -> Settings:
    return write_settings(folder, keys)


@pytest.fixture(scope="module")
def clear_port(ports: Ports) -> int:
    """Where the proxy takes logins without TLS."""
    return ports.take()


@pytest.fixture(scope="module")
def porter(
    folder: Path, pki: Pki, ports: Ports, dovecots: list[Dovecot], settings: Settings, clear_port: int
) -> Iterator[Porter]:
    """The proxy that most of these tests share."""
    with running(folder, pki, ports, dovecots, settings, clear_port) as porter:
        yield porter


@pytest.fixture(params=["imaps", "starttls"])
def door(request: pytest.FixtureRequest, porter: Porter) -> Door:
    return porter.doors[request.param]


# --- who knows the password, and who does not ---


@pytest.mark.parametrize("mechanism", [SCRAM, PLUS])
@pytest.mark.parametrize("initial_response", [True, False], ids=["initial response", "no initial response"])
def test_each_way_in(porter: Porter, door: Door, mechanism: str, initial_response: bool) -> None:
    with BoundWire.enter(door) as wire:
        assert offered(wire) == [PLUS, SCRAM, "PLAIN"]
        client = client_of(mechanism, wire, "Alice", ALICE)
        told = authenticate(wire, client, initial_response=initial_response)
        assert told.answer.startswith(b"OK "), told
        assert told.challenges[:-2] == (() if initial_response else (b"",))
        assert messages(wire) == 100
        assert offered(wire) == [], "that it is the backend who talks now"
        leave(wire)
        (line,) = porter.wait_for_log("session.closed", client=wire.address)
    assert (line["outcome"], line["mechanism"], line["source"]) == ("logged_out", mechanism, "file")
    assert (line["authentication_identity"], line["name"]) == ("Alice", "alice")


def test_the_backend_is_told_by_authzid_too(start_porter: StartPorter, settings: Settings) -> None:
    login = {**settings["backends"]["login"], "method": "authzid"}
    porter = start_porter(**{**settings, "backends": {"login": login}})
    for mechanism in (SCRAM, PLUS):
        with BoundWire.enter(porter.doors["imaps"]) as wire:
            assert authenticate(wire, client_of(mechanism, wire, "alice", ALICE)).accepted
            assert messages(wire) == 100


def test_the_keys_verify_a_password_that_is_shown(porter: Porter) -> None:
    for name in ("alice", "bob"):
        with enter(porter.doors["imaps"]) as wire:
            assert wire.login(name, WRONG) == FAILED
            assert wire.login(name, PASSWORDS[name]).startswith(b"OK")


@pytest.mark.parametrize("mechanism", [SCRAM, PLUS])
@pytest.mark.parametrize("initial_response", [True, False], ids=["initial response", "no initial response"])
def test_every_no_reads_the_same(porter: Porter, door: Door, mechanism: str, initial_response: bool) -> None:
    """Wrong password, unknown name, a name without keys: all fail at the same step, with the same octets."""
    tries = [("alice", WRONG), ("nobody-here", WRONG), ("u05", PASSWORDS["u05"])]
    before = porter.metrics()
    with BoundWire.enter(door) as wire:
        for name, password in tries:
            told = authenticate(wire, client_of(mechanism, wire, name, password), initial_response=initial_response)
            assert told.answer == FAILED
            assert len(told.challenges) == (1 if initial_response else 2), "no signature of the server's"
        assert authenticate(wire, client_of(mechanism, wire, "alice", ALICE)).accepted, "here, all the same"
        lines = porter.wait_for_log("login.refused", 3, client=wire.address)
    assert [(line["authentication_identity"], line["detail"]) for line in lines] == [(name, UNFIT) for name, _ in tries]
    assert {(line["mechanism"], line["outcome"]) for line in lines} == {(mechanism, "authentication_failed")}
    after, attempts = porter.metrics(), "porter_login_attempts_total"
    for outcome, count in (("authentication_failed", 3), ("ok", 1)):
        labels = {"mechanism": mechanism, "outcome": outcome}
        assert after.total(attempts, **labels) - before.total(attempts, **labels) == count


def test_an_unknown_name_looks_like_any_other(
    porter: Porter, start_porter: StartPorter, settings: Settings, keys: dict[str, str]
) -> None:
    """At each try, and at each proxy of a site: else the names that are known could be told from the others."""
    second = start_porter(**settings)
    names = ["alice", "bob", "u05", "nobody-here", "Nobody-Here", "nobody-there"]
    said = []
    for proxy, name, _ in product((porter, second), names, range(2)):
        with enter(proxy.doors["imaps"]) as wire:
            said.append((name.lower(), authenticate(wire, Scramp(name, WRONG)).server_first))
    assert {tuple(first) for _, first in said} == {("r", "s", "i")}
    assert len({first["r"] for _, first in said}) == len(said)
    assert {len(first["r"]) for _, first in said} == {len(said[0][1]["r"])}
    assert {len(base64.b64decode(first["s"])) for _, first in said} == {16}
    iterations, _, salt = keys["alice"].split("$")[1].partition(":")
    assert {first["i"] for _, first in said} == {iterations}
    salts = {name: {first["s"] for whose, first in said if whose == name} for name, _ in said}
    assert [len(found) for found in salts.values()] == [1] * 5, "capital letters make no other name"
    assert len(set.union(*salts.values())) == 5
    assert salts["alice"] == {salt}


# --- what somebody in between may try ---

# What is tried, the mechanism, what the client says of channel binding, whose binding, the answer, what the log says.
DOWNGRADES = [
    ("PLUS was hidden from the client", SCRAM, "y", "none", FAILED, HIDDEN),
    ("a binding without PLUS", SCRAM, TLS_EXPORTER, "own", MALFORMED, ""),
    ("PLUS without a binding", PLUS, "n", "none", MALFORMED, ""),
    ("PLUS, and thinks there is none", PLUS, "y", "none", MALFORMED, ""),
    ("another type of binding", PLUS, "p=tls-unique", "own", MALFORMED, ""),
    ("bound to another connection", PLUS, TLS_EXPORTER, "other", FAILED, UNFIT),
    ("bound to nothing", PLUS, TLS_EXPORTER, "none", FAILED, UNFIT),
]


@pytest.mark.parametrize(
    ("name", "mechanism", "flag", "binding", "answer", "detail"), DOWNGRADES, ids=[row[0] for row in DOWNGRADES]
)
def test_downgrades(
    porter: Porter, name: str, mechanism: str, flag: str, binding: str, answer: bytes, detail: str
) -> None:
    with BoundWire.enter(porter.doors["imaps"]) as wire, BoundWire.enter(porter.doors["imaps"]) as other:
        bindings = {"none": b"", "own": wire.channel_binding, "other": other.channel_binding}
        assert bindings["own"] != bindings["other"]
        told = authenticate(wire, Handmade("alice", ALICE, mechanism, flag, bindings[binding]))
        assert told.answer == answer
        assert len(told.challenges) == (detail == UNFIT), "nobody's salt where it can't go on"
        assert authenticate(wire, bound("alice", ALICE, bindings["own"])).accepted
        leave(wire)
        porter.wait_for_log("session.closed", client=wire.address)
        refused = [line for line in porter.log("login.refused") if line["client"] == wire.address]
    assert [(line["mechanism"], line["detail"]) for line in refused] == ([(mechanism, detail)] if detail else [])


@pytest.mark.parametrize("way", ["TLS 1.2", "STARTTLS with TLS 1.2", "no TLS"])
def test_no_plus_where_there_is_nothing_to_bind_to(porter: Porter, clear_port: int, way: str) -> None:
    def connect() -> Wire:
        if way == "no TLS":
            return Wire.connect(clear_port)
        return BoundWire.enter(porter.doors["starttls" if "START" in way else "imaps"], SSL.TLS1_2_VERSION)

    with connect() as wire:
        assert offered(wire) == [SCRAM, "PLAIN"]
        plus = bound("alice", ALICE, b"\0" * 32)
        assert authenticate(wire, plus).answer == CANNOT
        assert authenticate(wire, plus, initial_response=False).answer == CANNOT
        assert authenticate(wire, Handmade("alice", WRONG, flag="y")).answer == FAILED
        assert authenticate(wire, Handmade("alice", ALICE, flag="y")).accepted, "it could bind, and there is no PLUS"
        assert messages(wire) == 100
    for client in (Scramp("alice", ALICE), Handmade("alice", ALICE)):
        with connect() as wire:
            assert authenticate(wire, client).accepted


def test_nothing_is_offered_in_clear_before_starttls(porter: Porter) -> None:
    with Wire.connect(porter.starttls_port) as wire:
        assert offered(wire) == []
        assert authenticate(wire, Scramp("alice", ALICE)).answer.startswith(b"NO [PRIVACYREQUIRED] ")


# --- who acts as whom ---


@pytest.mark.parametrize("mechanism", [SCRAM, PLUS])
def test_the_authorization_identity(porter: Porter, mechanism: str) -> None:
    def acting_as(whom: str, name: str = "alice", password: str = ALICE) -> bytes:
        flag, binding = (TLS_EXPORTER, wire.channel_binding) if mechanism == PLUS else ("n", b"")
        return authenticate(wire, Handmade(name, password, mechanism, flag, binding, whom)).answer

    with BoundWire.enter(porter.doors["imaps"]) as wire:
        assert acting_as("bob") == NOT_YOURS
        assert acting_as("bob", password=WRONG) == FAILED, "only the owner learns that he may not"
        assert acting_as("bob", "nobody-here") == FAILED
        assert acting_as("alice", "bob") == FAILED
        assert acting_as("alice", "bob", PASSWORDS["bob"]) == NOT_YOURS
        assert acting_as(f"bob*{MASTER}") == NOT_YOURS
        assert acting_as("ALICE").startswith(b"OK")
        leave(wire)
        (refusal, *_) = porter.wait_for_log("login.refused", 6, client=wire.address)
        (session,) = porter.wait_for_log("session.closed", client=wire.address)
    assert (refusal["outcome"], refusal["authorization_identity"]) == ("authorization_failed", "bob")
    assert (session["name"], session["authorization_identity"]) == ("alice", "ALICE")


# --- exchanges that come to nothing ---


def test_an_exchange_can_be_cancelled_at_each_step(porter: Porter) -> None:
    """That it was counts where the client had been told of an account."""
    attempts, before = "porter_login_attempts_total", porter.metrics()
    with enter(porter.doors["imaps"]) as wire:
        for steps in range(3):
            client = Scramp("alice", ALICE)
            wire.send(b"x AUTHENTICATE " + SCRAM.encode() + b"\r\n")
            for _ in range(steps):
                response = client.step(base64.b64decode(wire.line().removeprefix(b"+ ")))
                wire.send(base64.b64encode(response) + b"\r\n")
            assert wire.line().startswith(b"+ "), steps
            wire.send(b"*\r\n")
            assert wire.line() == b"x " + CANCELLED
        assert authenticate(wire, Scramp("alice", ALICE)).accepted
        lines = porter.wait_for_log("login.refused", 2, client=wire.address)
    assert [(line["outcome"], line["mechanism"]) for line in lines] == [("cancelled", SCRAM)] * 2
    after, cancelled = porter.metrics(), {"mechanism": SCRAM, "outcome": "cancelled"}
    assert after.total(attempts, **cancelled) - before.total(attempts, **cancelled) == 2
    assert after.total(attempts) - before.total(attempts) == 3


def test_what_does_not_fit_is_bad(porter: Porter) -> None:
    """As any malformed response, whoever is named in it."""
    good = Handmade("alice", ALICE)
    firsts = [b"=", b"AAAA", b"!", *map(base64.b64encode, [b"n,,", b"n,,n=,r=x", b"n,,n=alice", b"F,n,,n=alice,r=x"])]
    finals = [b"", b"!", *map(base64.b64encode, [b"c=biws", b"c=biws,r=x,p=x", b"p=AAAA", b"\0"])]
    with enter(porter.doors["imaps"]) as wire:
        for first in firsts:
            assert wire.command(b"AUTHENTICATE SCRAM-SHA-256 " + first)[-1].split(b" ", 1)[1].startswith(b"BAD "), first
    for final in finals:
        with enter(porter.doors["imaps"]) as wire:
            wire.send(b"x AUTHENTICATE SCRAM-SHA-256 " + base64.b64encode(good.first()) + b"\r\n")
            assert wire.line().startswith(b"+ ")
            wire.send(final + b"\r\n")
            assert wire.line().startswith(b"x BAD "), final
            assert authenticate(wire, Scramp("alice", ALICE)).accepted


def test_a_proof_is_good_once(porter: Porter) -> None:
    """The next exchange has another nonce, whatever the client does about its own."""
    with enter(porter.doors["imaps"]) as wire:
        first = Handmade("alice", ALICE, nonce="same-every-time")
        wire.send(b"x AUTHENTICATE SCRAM-SHA-256 " + base64.b64encode(first.first()) + b"\r\n")
        proof = first.final(base64.b64decode(wire.line().removeprefix(b"+ ")))
        wire.send(b"*\r\n")
        assert wire.line() == b"x " + CANCELLED
        wire.send(b"y AUTHENTICATE SCRAM-SHA-256 " + base64.b64encode(first.first()) + b"\r\n")
        assert wire.line().startswith(b"+ ")
        wire.send(base64.b64encode(proof) + b"\r\n")
        assert wire.line() == b"y " + FAILED


# --- where it is offered ---


def test_not_offered_where_nobody_has_keys(start_porter: StartPorter, settings: Settings, tmp_path: Path) -> None:
    people = yaml.safe_load(Path(settings["identity"][0]["file"]["path"]).read_text())
    users = tmp_path / "users.yaml"
    users.write_text(yaml.safe_dump({"u05": people["u05"]}))
    porter = start_porter(**{**settings, "identity": [{"file": {"path": str(users)}}]})
    with BoundWire.enter(porter.doors["imaps"]) as wire:
        assert offered(wire) == ["PLAIN"]
        for client in (Scramp("u05", PASSWORDS["u05"]), bound("u05", PASSWORDS["u05"], wire.channel_binding)):
            assert authenticate(wire, client).answer == CANNOT


def test_keys_that_no_backend_would_let_in_are_a_mistake(pki: Pki, ports: Ports, settings: Settings) -> None:
    """SCRAM shows no password that could be passed on."""
    all_settings, _ = porter_settings(pki, {"d1": f"imap://{LOOPBACK}:{ports.take()}"}, ports)
    all_settings |= {"identity": settings["identity"]}
    with tempfile.TemporaryDirectory() as place:
        ended = serve_in_vain(Path(place), all_settings)
    assert ended.returncode != 0
    assert "alice.scram: SCRAM shows no password that backends.login.method password could pass on" in ended.stderr
