"""Listeners that ask for certificates: there is no way around the check, and other listeners don't notice."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL
from OpenSSL.crypto import X509

from proxy.model import Endpoint
from proxy.settings.backend_models import BackendTls
from proxy.settings.client_models import ClientCertificates, Listener
from proxy.transport import tls
from proxy.transport.door import Door
from proxy.transport.tls import (
    ClientAuthorities,
    ServerCertificates,
    accept_tls,
)
from proxy.transport.tls_client import TlsClient, client_context
from tests.servers.pki import ClientAuthority, KeyPair, Pki
from tests.transport.visits import assert_refused, client, visit

ALICE = "alice@test.example"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
SERVER_NAMES = ["localhost", "unknown.example", None]
every_version = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
every_name = pytest.mark.parametrize("name", SERVER_NAMES)


# --- what passes, and what not ---


@every_name
@every_version
async def test_a_certificate_names_its_owner_at_once_and_in_a_resumed_session(
    certificates: ServerCertificates, strict: SSL.Context, pki: Pki, version: ssl.TLSVersion, name: str | None
) -> None:
    context = client(pki.clients["san.email"], version)
    first = await visit(strict, context, name=name)
    assert (first.failure, first.names, first.reused) == (None, (ALICE,), False)
    second = await visit(strict, context, name=name, session=first.session)
    assert (second.failure, second.names, second.reused) == (None, (ALICE,), True)
    certificates.swap([(pki.certificate, pki.private_key)])
    third = await visit(strict, context, name=name, session=second.session)
    assert (third.failure, third.names, third.reused) == (None, (ALICE,), True)
    fourth = await visit(strict, context, name=name)
    assert (fourth.failure, fourth.names, fourth.reused) == (None, (ALICE,), False)


REFUSED = [
    ("foreign", "unable to get issuer cert locally", "ALERT_UNKNOWN_CA"),
    ("expired", "cert has expired", "ALERT_CERTIFICATE_EXPIRED"),
]


@pytest.mark.parametrize(("which", "detail", "alert"), REFUSED)
@every_name
@every_version
async def test_a_certificate_that_does_not_verify_never_passes(
    certificates: ServerCertificates,
    base: SSL.Context,
    strict: SSL.Context,
    pki: Pki,
    version: ssl.TLSVersion,
    name: str | None,
    which: str,
    detail: str,
    alert: str,
) -> None:
    context = client(pki.clients[which], version)
    for listening in (base, strict):
        visited = await visit(listening, context, name=name)
        assert_refused(visited, f"certificate verify failed: {detail}")
        assert alert in visited.alert
    certificates.swap([(pki.certificate, pki.private_key)])
    for listening in (base, strict):
        assert_refused(await visit(listening, context, name=name), detail)


@every_name
@every_version
async def test_no_certificate_is_fine_unless_it_is_required(
    base: SSL.Context, strict: SSL.Context, version: ssl.TLSVersion, name: str | None
) -> None:
    context = client(None, version)
    free = await visit(base, context, name=name)
    assert (free.failure, free.certificate) == (None, None)
    again = await visit(base, context, name=name, session=free.session)
    assert (again.failure, again.certificate, again.reused) == (None, None, True)
    assert_refused(await visit(strict, context, name=name), "peer did not return a certificate")


@every_version
async def test_a_certificate_for_servers_is_none_for_clients(
    base: SSL.Context, pki: Pki, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    purpose = ExtendedKeyUsageOID.SERVER_AUTH
    wrong = pki.client_authority.issue(tmp_path / "server", subject={"cn": "alice"}, purpose=purpose)
    assert_refused(await visit(base, client(wrong, version)), "invalid purpose")


@every_version
async def test_nobody_else_is_trusted(
    certificates: ServerCertificates, pki: Pki, monkeypatch: pytest.MonkeyPatch, version: ssl.TLSVersion
) -> None:
    """Neither the authority of our own certificate, nor the system's."""
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.foreign_ca))
    listening = certificates.base_context(ClientAuthorities(pki.client_ca, required=False))
    ours = KeyPair(pki.certificate, pki.private_key)
    for pair in (ours, pki.clients["foreign"]):
        assert_refused(await visit(listening, client(pair, version)), "certificate verify failed")


async def test_a_check_that_breaks_lets_nobody_in(
    certificates: ServerCertificates, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> bool:
        raise RuntimeError("a bug")

    monkeypatch.setattr(tls, "note_problem", broken)
    listening = certificates.base_context(ClientAuthorities(pki.client_ca, required=False))
    assert_refused(await visit(listening, client(pki.clients["san.email"])), "certificate verify failed")


# --- tickets ---


@pytest.mark.parametrize("issuer", ["asks for none", "trusts others"])
@every_name
@every_version
async def test_a_ticket_of_another_listener_is_no_way_around_the_check(
    certificates: ServerCertificates,
    base: SSL.Context,
    strict: SSL.Context,
    pki: Pki,
    version: ssl.TLSVersion,
    name: str | None,
    issuer: str,
) -> None:
    """Not even where the same files stand behind both listeners."""
    foreign = client(pki.clients["foreign"], version)
    clients = ClientAuthorities(pki.foreign_ca, required=True) if issuer == "trusts others" else None
    elsewhere = certificates.base_context(clients)
    got = await visit(elsewhere, foreign, name=name)
    assert got.names == (None if clients is None else (ALICE,))
    assert (await visit(elsewhere, foreign, name=name, session=got.session)).reused  # it is a good ticket there
    for listening in (base, strict):
        assert_refused(await visit(listening, foreign, name=name, session=got.session), "unable to get issuer")
    certificates.swap([(pki.certificate, pki.private_key)])
    for listening in (base, strict):
        assert_refused(await visit(listening, foreign, name=name, session=got.session), "unable to get issuer")


@every_version
async def test_a_ticket_that_was_had_without_a_certificate_opens_no_listener_that_needs_one(
    certificates: ServerCertificates, base: SSL.Context, strict: SSL.Context, version: ssl.TLSVersion
) -> None:
    context = client(None, version)
    for easy in (base, certificates.base_context()):
        got = await visit(easy, context)
        assert got.session is not None
        refused = await visit(strict, context, session=got.session)
        assert_refused(refused, "peer did not return a certificate")


@every_version
async def test_a_certificate_that_expires_ends_its_tickets(
    base: SSL.Context, pki: Pki, monkeypatch: pytest.MonkeyPatch, version: ssl.TLSVersion
) -> None:
    """Each resumption brings a new ticket: without a look at the date they would follow one another for ever."""
    context = client(pki.clients["san.email"], version)
    first = await visit(base, context)
    second = await visit(base, context, session=first.session)
    assert second.reused
    with monkeypatch.context() as later:
        later.setattr(X509, "has_expired", lambda self: True)
        third = await visit(base, context, session=second.session)
    assert_refused(third, "certificate has expired since the session began")


# --- chains ---


@every_version
async def test_an_intermediate_authority_comes_with_the_client(
    base: SSL.Context, pki: Pki, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    whole = await visit(base, client(pki.clients["intermediate"], version))
    assert (whole.failure, whole.names) == (None, (ALICE,))
    department = ClientAuthority("Department", pki.client_authority)
    alone = department.issue(tmp_path / "alone", subject={"cn": "alice"}, with_chain=False)
    assert_refused(await visit(base, client(alone, version)), "unable to get issuer")


@every_version
async def test_a_client_is_no_authority(base: SSL.Context, pki: Pki, tmp_path: Path, version: ssl.TLSVersion) -> None:
    """Who has a certificate cannot make others."""
    alice = ClientAuthority("alice", pki.client_authority, authority=False)
    made = alice.issue(tmp_path / "made", alternatives=[x509.RFC822Name("bob@test.example")])
    assert_refused(await visit(base, client(made, version)), "invalid ca")


@pytest.mark.parametrize(("length", "passes"), [(8, True), (9, False)])
@every_version
async def test_chains_have_a_bound(
    base: SSL.Context, pki: Pki, tmp_path: Path, version: ssl.TLSVersion, length: int, passes: bool
) -> None:
    authority = pki.client_authority
    for number in range(length):
        authority = ClientAuthority(f"Level {number}", authority)
    visited = await visit(base, client(authority.issue(tmp_path / "deep", subject={"cn": "alice"}), version))
    if passes:
        assert visited.failure is None
    else:
        assert_refused(visited, "cert chain too long")


@every_version
async def test_trust_in_a_department_is_no_trust_in_its_siblings(
    certificates: ServerCertificates, pki: Pki, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    trusted, sibling = ClientAuthority("One", pki.client_authority), ClientAuthority("Two", pki.client_authority)
    listening = certificates.base_context(ClientAuthorities(trusted.write(tmp_path / "one.pem"), required=True))
    good = trusted.issue(tmp_path / "good", alternatives=[x509.RFC822Name(ALICE)], with_chain=False)
    assert (await visit(listening, client(good, version))).names == (ALICE,)
    bad = sibling.issue(tmp_path / "bad", alternatives=[x509.RFC822Name(ALICE)])
    for pair in (bad, pki.clients["san.email"]):
        assert_refused(await visit(listening, client(pair, version)), "certificate verify failed")


async def test_several_authorities_in_one_file(certificates: ServerCertificates, pki: Pki, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(pki.client_ca.read_bytes() + pki.foreign_ca.read_bytes())
    listening = certificates.base_context(ClientAuthorities(both, required=True))
    for which in ("san.email", "foreign"):
        assert (await visit(listening, client(pki.clients[which]))).names == (ALICE,)


async def test_the_authorities_stay_those_that_the_tickets_were_given_for(
    certificates: ServerCertificates, pki: Pki, tmp_path: Path
) -> None:
    """The file is another one at the swap: still the old authorities are asked for, as the settings say."""
    ca = tmp_path / "ca.pem"
    ca.write_bytes(pki.client_ca.read_bytes())
    listening = certificates.base_context(ClientAuthorities(ca, required=True))
    ca.write_bytes(pki.foreign_ca.read_bytes())
    certificates.swap([(pki.certificate, pki.private_key)])
    assert (await visit(listening, client(pki.clients["san.email"]))).names == (ALICE,)
    assert_refused(await visit(listening, client(pki.clients["foreign"])), "unable to get issuer")


def test_a_file_without_certificates_is_told(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing\n")
    with pytest.raises(ValueError, match="no certificate in PEM form"):
        ClientAuthorities(empty, required=True)


# --- what clients are asked ---


async def asked(base: SSL.Context, version: int, name: str) -> list[str]:
    """The authorities that a server names to its clients (RFC 8446 §4.2.4)."""
    context = client_context(BackendTls(verify=False))
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    here, there = socket.socketpair()
    with here, there, trio.fail_after(10):
        here.setblocking(False)
        there.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: accept_tls(there, base, speaks_first=False))
            stream = await TlsClient(context, name).connect(here)
        return [x.rfc4514_string() for x in stream.connection.get_client_ca_list(as_cryptography=True)]


@pytest.mark.parametrize("name", ["localhost", "unknown.example"])
@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
async def test_clients_are_told_which_authorities_would_do(
    certificates: ServerCertificates, base: SSL.Context, version: int, name: str
) -> None:
    assert await asked(base, version, name) == ["O=Clients"]
    assert await asked(certificates.base_context(), version, name) == []


@every_name
@every_version
async def test_a_listener_without_the_setting_asks_for_nothing(
    certificates: ServerCertificates, base: SSL.Context, pki: Pki, version: ssl.TLSVersion, name: str | None
) -> None:
    """Its neighbour does, with the same certificates."""
    plain = certificates.base_context()
    for which in ("san.email", "foreign", "expired"):
        visited = await visit(plain, client(pki.clients[which], version), name=name)
        assert (visited.failure, visited.certificate) == (None, None)
    certificates.swap([(pki.certificate, pki.private_key)])
    visited = await visit(plain, client(pki.clients["foreign"], version), name=name)
    assert (visited.failure, visited.certificate) == (None, None)
    assert (await visit(base, client(pki.clients["san.email"], version), name=name)).names == (ALICE,)


async def test_a_swap_is_all_or_nothing_for_both_kinds_of_listener(
    certificates: ServerCertificates, base: SSL.Context, pki: Pki, tmp_path: Path
) -> None:
    plain = certificates.base_context()
    before = {kind: choice.by_pair for kind, choice in certificates._choices.items()}
    other = pki.client_authority.issue(tmp_path / "other")
    with pytest.raises(ValueError, match="does not fit"):
        certificates.swap([(pki.certificate, pki.private_key), (pki.certificate, other.private_key)])
    assert len(before) == 2
    assert {kind: choice.by_pair for kind, choice in certificates._choices.items()} == before
    assert (await visit(plain, client(None))).failure is None
    assert (await visit(base, client(pki.clients["san.email"]))).names == (ALICE,)


# --- the door ---

DOORS = [
    (None, SSL.VERIFY_NONE),
    (False, SSL.VERIFY_PEER),
    (True, SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT),
]


@pytest.mark.parametrize(("required", "mode"), DOORS)
def test_the_door_brings_the_setting(
    certificates: ServerCertificates, pki: Pki, required: bool | None, mode: int
) -> None:
    setting = None
    if required is not None:
        setting = ClientCertificates.model_validate({"ca": pki.client_ca, "name": "san.dns", "required": required})
    listener = Listener(address=Endpoint("::", 993), tls="implicit", client_certificates=setting)
    door = Door(listener, certificates)
    assert door.client_certificates is setting
    assert door.context().get_verify_mode() == mode
