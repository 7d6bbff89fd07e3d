"""EXTERNAL through the whole proxy: client certificates, a real OpenLDAP server that knows their owners, Dovecots."""

from __future__ import annotations

import base64
import imaplib
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from tests.integration.scram_stage import (
    CANNOT,
    FAILED,
    NO_LIMITS,
    NOT_YOURS,
    UNAVAILABLE,
    enter,
    keys_of,
    leave,
    messages,
    offered,
)
from tests.servers import clients
from tests.servers.accounts import MASTER, MASTER_PASSWORD, USERS
from tests.servers.dovecot import Dovecot
from tests.servers.pki import KeyPair, Pki
from tests.servers.porter import Door, Porter, porter_settings, wait_for
from tests.servers.ports import LOOPBACK, Ports
from tests.servers.sasl_clients import curl_fetch, mbsync_fetch, mutt_fetch
from tests.servers.slapd import PEOPLE, SERVICE_DN, SERVICE_PASSWORD, Slapd, write_slapd
from tests.servers.wire import Wire

pytestmark = pytest.mark.server

EMAIL = "alice@test.example"
NO_NAME = "the certificate does not hold exactly one name where asked"
UNKNOWN = "no source knows the certificate's name: file: the name is not known; ldap: the name is not known"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def slapd(folder: Path, ports: Ports, pki: Pki) -> Iterator[Slapd]:
    """Who has which address; `alice@test.example` is the uid alice, and so on."""
    server = write_slapd(Path(tempfile.mkdtemp(prefix="slapd-", dir=folder)), ports, pki)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def extra_ports(ports: Ports) -> dict[str, int]:
    """Further listeners: where a certificate must be shown, where its subject counts, where none is asked for."""
    return {"required": ports.take(), "subject": ports.take(), "unasked": ports.take()}


@pytest.fixture(scope="module")
def porter(
    folder: Path, pki: Pki, ports: Ports, dovecots: list[Dovecot], slapd: Slapd, extra_ports: dict[str, int]
) -> Iterator[Porter]:
    """A proxy whose users file knows bob, and a directory the others."""
    place = Path(tempfile.mkdtemp(prefix="external-", dir=folder))
    secrets = {"ldap": SERVICE_PASSWORD, "master": MASTER_PASSWORD}
    for name, secret in secrets.items():
        (place / name).write_text(secret + "\n")
        (place / name).chmod(0o600)
    (place / "users.yaml").write_text(yaml.safe_dump({"bob": {"scram": keys_of("scram-of-bob-9z"), "backend": "d2"}}))
    (place / "users.yaml").chmod(0o600)
    urls = {server.name: f"imap://{LOOPBACK}:{server.imap_port}" for server in dovecots}
    settings, taken = porter_settings(pki, urls, ports)
    certificates = {"ca": str(pki.client_ca)}
    for listener in settings["listeners"]:
        listener["client_certificates"] = {**certificates}  # the same one twice would be written as an alias
    for kind, more in (
        ("required", {"client_certificates": {**certificates, "required": True}}),
        ("subject", {"client_certificates": {**certificates, "name": "subject.cn"}}),
        ("unasked", {}),
    ):
        settings["listeners"].append({"address": f"{LOOPBACK}:{extra_ports[kind]}", "tls": "implicit", **more})
    directory = {
        "urls": [slapd.url],
        "bind": {"dn": SERVICE_DN, "password": {"file": str(place / "ldap")}},
        "search": {"base": PEOPLE, "filter": "(|(mail={name})(uid={name}))"},
        "attributes": {"name": "uid"},
        "timeout": "2s",
    }
    settings["identity"] = [{"file": {"path": str(place / "users.yaml")}}, {"ldap": directory}]
    settings["backends"]["login"] = {"method": "master", "name": MASTER, "password": {"file": str(place / "master")}}
    settings["limits"] = NO_LIMITS
    running = Porter(place, settings, pki, {**taken, **extra_ports})
    try:
        yield running
        running.stop()
    finally:
        running.kill()


@pytest.fixture(params=["imaps", "starttls"])
def door(request: pytest.FixtureRequest, porter: Porter) -> Door:
    return porter.doors[request.param]


@pytest.fixture
def issue(pki: Pki, tmp_path: Path) -> Callable[..., KeyPair]:
    """Make a certificate for these e-mail addresses."""

    def make(*addresses: str) -> KeyPair:
        alternatives = [x509.RFC822Name(address) for address in addresses]
        return pki.client_authority.issue(tmp_path / "-".join(["issued", *addresses]), alternatives=alternatives)

    return make


def showing(pki: Pki, pair: KeyPair | None, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """TLS as a client that shows this certificate."""
    context = pki.client_context()
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context if pair is None else pair.show(context)


def external(wire: Wire, acting_as: bytes = b"", *, initial_response: bool = True) -> bytes:
    """AUTHENTICATE EXTERNAL; the tagged line without its tag."""
    response = base64.b64encode(acting_as)
    if initial_response:
        return wire.command(b"AUTHENTICATE EXTERNAL " + (response or b"="))[-1].split(b" ", 1)[1]
    wire.send(b"x AUTHENTICATE EXTERNAL\r\n")
    line = wire.line()
    if line.startswith(b"+"):
        assert line == b"+ "
        wire.send(response + b"\r\n")
        line = wire.until(b"x")[-1]
    return line.removeprefix(b"x ")


# --- who has a certificate ---


@pytest.mark.parametrize("initial_response", [True, False], ids=["initial response", "no initial response"])
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_each_way_in(porter: Porter, door: Door, pki: Pki, version: ssl.TLSVersion, initial_response: bool) -> None:
    for acting_as in (b"", b"alice", b"ALICE@test.example"):
        with enter(door, showing(pki, pki.clients["san.email"], version)) as wire:
            assert "EXTERNAL" in offered(wire)
            assert external(wire, acting_as, initial_response=initial_response).startswith(b"OK ")
            assert messages(wire) == 100
            assert offered(wire) == [], "that it is the backend who talks now"
            leave(wire)
            (line,) = porter.wait_for_log("session.closed", client=wire.address)
        assert (line["outcome"], line["mechanism"], line["source"]) == ("logged_out", "EXTERNAL", "ldap")
        assert (line["authentication_identity"], line["name"]) == (EMAIL, "alice")
        assert line["authorization_identity"] == acting_as.decode()


def test_the_subject_names_the_owner(porter: Porter, pki: Pki, extra_ports: dict[str, int], tmp_path: Path) -> None:
    """By a setting of the listener; here a users file has the first word."""
    bob = pki.client_authority.issue(tmp_path / "bob", subject={"cn": "Bob"})
    for pair, name, source in ((pki.clients["subject.cn"], "alice", "ldap"), (bob, "bob", "file")):
        with Wire.connect(extra_ports["subject"], showing(pki, pair)) as wire:
            assert external(wire).startswith(b"OK ")
            leave(wire)
            (line,) = porter.wait_for_log("session.closed", client=wire.address)
        assert (line["name"], line["source"]) == (name, source)
    assert line["backend"] == "d2", "which the file gives him"
    with Wire.connect(extra_ports["subject"], showing(pki, pki.clients["san.email"])) as wire:
        assert external(wire) == FAILED
        (line,) = porter.wait_for_log("login.refused", client=wire.address)
    assert line["detail"] == NO_NAME


def test_a_resumed_session_is_whose_it_was(porter: Porter, pki: Pki) -> None:
    """In whichever worker it is resumed: no certificate is shown a second time."""
    context = showing(pki, pki.clients["san.email"])
    session = None
    for number in range(8):
        connection = socket.create_connection((LOOPBACK, porter.imaps_port), timeout=20)
        tls = context.wrap_socket(connection, server_hostname="localhost", session=session)
        with Wire(tls) as wire:
            assert tls.session_reused is (number > 0)
            session = session or tls.session
            assert external(wire).startswith(b"OK ")
            leave(wire)
            (line,) = porter.wait_for_log("session.closed", client=wire.address)
        assert (line["mechanism"], line["name"]) == ("EXTERNAL", "alice")


def test_a_certificate_stands_in_nobodys_way(porter: Porter, door: Door, pki: Pki) -> None:
    """It proves who a client is to those who ask; a password proves as much."""
    with enter(door, showing(pki, pki.clients["san.email"])) as wire:
        assert external(wire, b"bob") == NOT_YOURS
        assert wire.login("bob", "scram-of-bob-9z").startswith(b"OK")


# --- who may not ---


def test_the_authorization_identity(porter: Porter, pki: Pki, issue: Callable[..., KeyPair]) -> None:
    with enter(porter.doors["imaps"], showing(pki, pki.clients["san.email"])) as wire:
        for whom in (b"bob", b"bob@test.example", b"alice@elsewhere.example", b"alice*" + MASTER.encode(), b"\xc2\xa0"):
            for initial_response in (True, False):
                assert external(wire, whom, initial_response=initial_response) == NOT_YOURS, whom
        for malformed in (b"\0", b"alice\0", b"\xff"):
            assert external(wire, malformed).startswith(b"BAD "), malformed
        lines = porter.wait_for_log("login.refused", 10, client=wire.address)
        assert external(wire).startswith(b"OK ")
    assert {(line["outcome"], line["authentication_identity"]) for line in lines} == {("authorization_failed", EMAIL)}
    with enter(porter.doors["imaps"], showing(pki, issue("nobody@test.example"))) as wire:
        assert external(wire, b"bob") == FAILED
        assert external(wire, b"nobody@test.example") == FAILED


def test_names_that_are_of_no_use(porter: Porter, door: Door, pki: Pki, issue: Callable[..., KeyPair]) -> None:
    """To a client they all read the same; the log says why."""
    rows = [
        (issue("nobody@test.example"), "nobody@test.example", UNKNOWN),
        (issue(f"bob*{MASTER}@test.example"), f"bob*{MASTER}@test.example", "the name contains the master separator"),
        (issue(EMAIL, "bob@test.example"), "", NO_NAME),
        (pki.clients["none"], "", NO_NAME),
        (pki.clients["subject.cn"], "", NO_NAME),
    ]
    before = porter.metrics()
    for (pair, name, detail), initial_response in product(rows, (True, False)):
        with enter(door, showing(pki, pair)) as wire:
            assert "EXTERNAL" in offered(wire)
            assert external(wire, initial_response=initial_response) == FAILED
            (line,) = porter.wait_for_log("login.refused", client=wire.address)
            assert wire.login("alice", USERS["alice"]).startswith(b"OK"), "there is a password yet"
        assert (line["detail"], line["authentication_identity"], line["mechanism"]) == (detail, name, "EXTERNAL")
    attempts, labels = "porter_login_attempts_total", {"mechanism": "EXTERNAL", "outcome": "authentication_failed"}
    assert porter.metrics().total(attempts, **labels) - before.total(attempts, **labels) == 2 * len(rows)


@pytest.mark.parametrize("way", ["imaps", "starttls", "unasked"])
def test_without_a_certificate(porter: Porter, pki: Pki, extra_ports: dict[str, int], way: str) -> None:
    """Not offered, and refused to who tries all the same. Who is not asked for a certificate has none."""
    doors = {**porter.doors, "unasked": Door(extra_ports["unasked"], False, pki)}
    pair = pki.clients["san.email"] if way == "unasked" else None
    with enter(doors[way], showing(pki, pair)) as wire:
        assert "EXTERNAL" not in offered(wire)
        assert external(wire) == CANNOT
        assert external(wire, b"alice", initial_response=False) == CANNOT
        assert wire.login("alice", USERS["alice"]).startswith(b"OK")


def test_only_inside_tls(porter: Porter, pki: Pki) -> None:
    with Wire.connect(porter.starttls_port) as wire:
        assert offered(wire) == []
        assert external(wire).startswith(b"NO [PRIVACYREQUIRED] ")
        wire.starttls(showing(pki, pki.clients["san.email"]))
        assert "EXTERNAL" in offered(wire)
        assert external(wire).startswith(b"OK ")


# --- certificates that TLS refuses ---

# Which certificate, by which listener, and what the log says of it.
REFUSED = [
    ("foreign", "imaps", "certificate verify failed: unable to get issuer cert locally"),
    ("foreign", "starttls", "certificate verify failed: unable to get issuer cert locally"),
    ("expired", "imaps", "certificate verify failed: cert has expired"),
    ("foreign", "required", "certificate verify failed: unable to get issuer cert locally"),
    (None, "required", "peer did not return a certificate"),
]


def shake_hands(wire: Wire, context: ssl.SSLContext) -> None:
    """TLS, and a command: in TLS 1.3 a client hears after its handshake what became of its certificate."""
    if wire.greeting:
        wire.starttls(context)
    else:
        wire.socket = context.wrap_socket(wire.socket, server_hostname="localhost")
    wire.command(b"NOOP")


@pytest.mark.parametrize(("which", "way", "detail"), REFUSED)
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_handshake_that_fails(
    porter: Porter,
    pki: Pki,
    extra_ports: dict[str, int],
    version: ssl.TLSVersion,
    which: str | None,
    way: str,
    detail: str,
) -> None:
    context = showing(pki, pki.clients[which] if which else None, version)
    failures, before = "porter_tls_handshake_failures_total", porter.metrics()
    connection = socket.create_connection(
        (LOOPBACK, {**extra_ports, "imaps": porter.imaps_port, "starttls": porter.starttls_port}[way]), timeout=20
    )
    with Wire(connection, read_greeting=way == "starttls") as wire:
        address = wire.address
        with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
            shake_hands(wire, context)
    (line,) = porter.wait_for_log("tls.failed", client=address)
    (session,) = porter.wait_for_log("session.closed", client=address)
    assert detail in line["detail"]
    assert (session["outcome"], session["name"], session["secure"]) == ("tls_failed", "", False)
    after = porter.metrics()
    assert after.total(failures, reason="certificate") - before.total(failures, reason="certificate") == 1
    assert after.total(failures) - before.total(failures) == 1


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_who_has_the_certificate_that_is_required(
    porter: Porter, pki: Pki, extra_ports: dict[str, int], version: ssl.TLSVersion
) -> None:
    for which in ("san.email", "intermediate"):
        with Wire.connect(extra_ports["required"], showing(pki, pki.clients[which], version)) as wire:
            assert external(wire).startswith(b"OK ")
            assert messages(wire) == 100
    with Wire.connect(extra_ports["required"], showing(pki, pki.clients["none"], version)) as wire:
        assert external(wire) == FAILED
        assert wire.login("alice", USERS["alice"]).startswith(b"OK")


# --- mail clients ---


def fetched_by_curl(door: Door, pair: KeyPair, folder: Path) -> int:
    """curl, which names whom it acts as."""
    shown = ["--cert", pair.certificate, "--key", pair.private_key]
    return len(curl_fetch(door, [*shown, "--login-options", "AUTH=EXTERNAL", "-u", f"{EMAIL}:"], folder, 3))


def fetched_by_curl_without_a_name(door: Door, pair: KeyPair, folder: Path) -> int:
    shown = ["--cert", pair.certificate, "--key", pair.private_key]
    return len(curl_fetch(door, [*shown, "--login-options", "AUTH=EXTERNAL"], folder, 3))


def fetched_by_mutt(door: Door, pair: KeyPair, folder: Path) -> int:
    """mutt, which names whom it acts as, and wants certificate and key in one file."""
    both = folder / "both.pem"
    both.write_bytes(pair.certificate.read_bytes() + pair.private_key.read_bytes())
    return len(mutt_fetch(door, f"set imap_user=alice ssl_client_cert={both} imap_authenticators=external", folder))


def fetched_by_mbsync(door: Door, pair: KeyPair, folder: Path) -> int:
    """mbsync, which names whom it acts as."""
    shown = f"ClientCertificate {pair.certificate}\nClientKey {pair.private_key}"
    return len(mbsync_fetch(door, f"User {EMAIL}\n{shown}\nAuthMechs EXTERNAL", folder))


def fetched_by_imaplib(door: Door, pair: KeyPair, folder: Path) -> int:
    """Python's own client, without an initial response."""
    context = showing(door.pki, pair)
    client: imaplib.IMAP4
    if door.starttls:
        client = imaplib.IMAP4("localhost", door.port, timeout=20)
        client.starttls(context)
    else:
        client = imaplib.IMAP4_SSL("localhost", door.port, ssl_context=context, timeout=20)
    with client:
        client.authenticate("EXTERNAL", lambda _: b"")
        client.select("INBOX", readonly=True)
        _, parts = client.fetch("1:*", "(BODY.PEEK[])")
    return sum(isinstance(part, tuple) for part in parts)


CLIENTS = [
    (fetched_by_curl, 3),
    (fetched_by_curl_without_a_name, 3),
    (fetched_by_mutt, 100),
    (fetched_by_mbsync, 100),
    (fetched_by_imaplib, 100),
]


@pytest.mark.parametrize(
    ("fetched", "count"), CLIENTS, ids=[row[0].__name__.removeprefix("fetched_by_") for row in CLIENTS]
)
def test_a_mail_client(
    porter: Porter,
    door: Door,
    pki: Pki,
    short_folder: Path,
    fetched: Callable[[Door, KeyPair, Path], int],
    count: int,
) -> None:
    attempts, before = "porter_login_attempts_total", porter.metrics()
    assert fetched(door, pki.clients["san.email"], short_folder) == count
    after = porter.metrics()
    good = {"mechanism": "EXTERNAL", "outcome": "ok"}
    grown = after.total(attempts, **good) - before.total(attempts, **good)
    assert grown >= 1
    assert after.total(attempts) - before.total(attempts) == grown, "nothing else was tried"


def test_clients_without_a_certificate_log_in_as_ever(door: Door, short_folder: Path) -> None:
    assert len(clients.curl_fetch(door, "alice", USERS["alice"], short_folder, 3)) == 3
    assert len(clients.imaplib_fetch(door, "alice", USERS["alice"])) == 100


# --- when the sources can't say ---


def test_an_outage_is_no_unknown_name(
    porter: Porter, slapd: Slapd, pki: Pki, extra_ports: dict[str, int], tmp_path: Path
) -> None:
    bob = pki.client_authority.issue(tmp_path / "bob", subject={"cn": "bob"})
    slapd.stop()
    try:
        for pair in (pki.clients["san.email"], pki.clients["none"]):
            with enter(porter.doors["starttls"], showing(pki, pair)) as wire:
                assert external(wire) == (FAILED if pair == pki.clients["none"] else UNAVAILABLE)
        with Wire.connect(extra_ports["subject"], showing(pki, bob)) as wire:
            assert external(wire).startswith(b"OK "), "the users file knows him"
    finally:
        slapd.start()

    def good_again() -> bool:
        with enter(porter.doors["imaps"], showing(pki, pki.clients["san.email"])) as wire:
            return external(wire).startswith(b"OK ")

    assert wait_for(good_again)
