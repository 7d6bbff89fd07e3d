"""Real servers behind the pool: whom they take the client for, whose certificates count, which sessions are resumed."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.backends.backend import Backend
from proxy.backends.login import BackendSession
from proxy.backends.pool import Pool
from proxy.model import Credentials, Endpoint, Identity, TlsFacts, Visitor
from proxy.outcome import Outcome, Refused
from proxy.settings.discovery_models import ProbeLogin
from proxy.settings.models import Backends, Timeouts
from proxy.settings.secret import Secret
from proxy.transport.tls import TlsStream
from proxy.transport.tls_client import resumed
from tests.servers.accounts import MASTER, MASTER_PASSWORD, USERS
from tests.servers.cyrus import Cyrus, require_cyrus, write_cyrus
from tests.servers.dovecot import Dovecot, write_dovecot
from tests.servers.pki import Pki, write_pki
from tests.servers.ports import Ports
from tests.servers.programs import require

pytestmark = pytest.mark.server

ALICE = Identity("alice", "backend")
OFFERED = Credentials("LOGIN", "alice", "", USERS["alice"].encode())
SECURE = TlsFacts("TLSv1.3", "TLS_AES_128_GCM_SHA256", "mail.test.example")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that the servers' users may enter; short, for Unix sockets are in it."""
    path = Path(tempfile.mkdtemp(prefix="imap-porter-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def ports() -> Iterator[Ports]:
    taken = Ports()
    yield taken
    taken.close()


@pytest.fixture(scope="module")
def pki(folder: Path) -> Pki:
    return write_pki(folder / "pki")


def running(server: Dovecot | Cyrus) -> Iterator[Any]:
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def dovecot(folder: Path, pki: Pki, ports: Ports) -> Iterator[Dovecot]:
    require("dovecot")
    yield from running(write_dovecot("d1", folder / "d1", pki, ports, proxied=True, telling=True))


@pytest.fixture(scope="module")
def strict_dovecot(folder: Path, pki: Pki, ports: Ports) -> Iterator[Dovecot]:
    """It lets in only those who show a certificate."""
    require("dovecot")
    yield from running(write_dovecot("d2", folder / "d2", pki, ports, client_certificates=True))


@pytest.fixture(scope="module")
def cyrus(folder: Path, pki: Pki, ports: Ports) -> Iterator[Cyrus]:
    require_cyrus()
    yield from running(write_cyrus("c1", folder / "c1", pki, ports))


def backend(
    url: str,
    pki: Pki,
    *,
    login: dict[str, Any] | None = None,
    tls: dict[str, str] | None = None,
    server: dict[str, Any] | None = None,
) -> Backend:
    settings = {
        "servers": [{"name": "d1", "url": url, **(server or {})}],
        "tls": {"ca": str(pki.ca), **(tls or {})},
        "login": login or {},
    }
    return Pool(Backends.model_validate(settings), Timeouts())["d1"]


def port(dovecot: Dovecot, scheme: str, client_address: str) -> int:
    if client_address.startswith("proxy_"):
        return dovecot.proxied_imaps_port if scheme == "imaps" else dovecot.proxied_imap_port
    return dovecot.imaps_port if scheme == "imaps" else dovecot.imap_port


async def opened(made: Backend, visitor: Visitor | None = None) -> BackendSession:
    with trio.fail_after(20):
        if visitor is None:
            return await made.open(ALICE, OFFERED)
        return await made.open(ALICE, OFFERED, lambda: visitor)


async def was_resumed(made: Backend) -> bool:
    session = await opened(made)
    assert isinstance(session.stream, TlsStream)
    session.stream.close()
    return resumed(session.stream)


async def logged(dovecot: Dovecot, pattern: str) -> str:
    """The line of the log, which may come a moment after the answer to the client."""
    with trio.fail_after(10):
        while not (found := re.search(pattern, dovecot.log())):  # noqa: ASYNC110 - nothing here says when
            await trio.sleep(0.02)
    return found[0]


# --- the client's address ---

SCHEMES = ("imap", "imaps", "imap+starttls")
WAYS = [(way, scheme) for way in ("id", "proxy_v1", "proxy_v2") for scheme in SCHEMES]


@pytest.mark.parametrize(("way", "scheme"), WAYS)
@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
async def test_dovecots_log_names_the_client(dovecot: Dovecot, pki: Pki, way: str, scheme: str, family: str) -> None:
    number = 10 * WAYS.index((way, scheme)) + 1
    host = f"192.0.2.{number}" if family == "IPv4" else f"2001:db8::{number}"
    local = "198.51.100.1" if family == "IPv4" else "2001:db8:1::1"
    visitor = Visitor(Endpoint(host, 40000 + number), Endpoint(local, 993), f"session-{family}-{number}", SECURE)
    made = backend(f"{scheme}://localhost:{port(dovecot, scheme, way)}", pki, server={"client_address": way})
    if (way, scheme) == ("proxy_v1", "imap"):
        # Dovecot takes no password in clear from others than its login_trusted_networks; v2 tells of the client's TLS.
        with pytest.raises(Refused, match="LOGINDISABLED"):
            await opened(made, visitor)
        await logged(dovecot, rf"user=<>, rip={re.escape(host)}, ")
        return
    session = await opened(made, visitor)
    session.stream.close()
    line = await logged(dovecot, rf".*Login: user=<alice>.*rip={re.escape(host)}, .*")
    assert f"lip={local}, " in line
    assert (f"session=<{visitor.session_id}>" in line) is (way == "id")


async def test_without_it_the_log_names_the_proxy(dovecot: Dovecot, pki: Pki) -> None:
    made = backend(f"imaps://localhost:{dovecot.imaps_port}", pki)
    with trio.fail_after(20):
        session = await made.open(Identity("u01", "backend"), Credentials("LOGIN", "u01", "", USERS["u01"].encode()))
    session.stream.close()
    await logged(dovecot, r"Login: user=<u01>, method=PLAIN, rip=127\.0\.0\.1, lip=127\.0\.0\.1, ")


async def test_dovecot_refuses_a_connection_without_the_header(dovecot: Dovecot, pki: Pki) -> None:
    made = backend(f"imaps://localhost:{dovecot.proxied_imaps_port}", pki)
    with pytest.raises(Refused) as caught:
        await opened(made)
    assert (caught.value.outcome, caught.value.step) == (Outcome.UNAVAILABLE, "tls")


@pytest.mark.parametrize(("way", "scheme"), WAYS)
async def test_a_check_comes_from_the_proxy_itself(dovecot: Dovecot, pki: Pki, way: str, scheme: str) -> None:
    made = backend(f"{scheme}://localhost:{port(dovecot, scheme, way)}", pki, server={"client_address": way})
    with trio.fail_after(20):
        told = await made.check().run()
        assert told.greeting == "Dovecot ready for 127.0.0.1."
        await made.check(ProbeLogin(name="bob", password=Secret("env", "BOB", USERS["bob"].encode()))).run()
    assert (told.certificate is not None) is (scheme != "imap")


@pytest.mark.parametrize(
    ("way", "saw"), [("none", "127.0.0.1"), ("id", "127.0.0.1"), ("proxy_v1", "192.0.2.1"), ("proxy_v2", "192.0.2.1")]
)
async def test_a_probe_hears_whom_the_backend_saw(dovecot: Dovecot, pki: Pki, way: str, saw: str) -> None:
    """With ID the greeting comes too early to tell."""
    made = backend(f"imaps://localhost:{port(dovecot, 'imaps', way)}", pki, server={"client_address": way})
    with trio.fail_after(20):
        told = await made.probe()
    assert told.named(("192.0.2.1", told.own_address)) == saw
    assert told.certificate is not None
    assert told.certificate.names == ("localhost", "*.test.example", "127.0.0.1", "::1")


async def test_a_check_whose_login_is_wrong(dovecot: Dovecot, pki: Pki) -> None:
    wrong = ProbeLogin(name="bob", password=Secret("env", "BOB", b"wr0ng"))
    with trio.fail_after(20), pytest.raises(Refused) as caught:
        await backend(f"imaps://localhost:{dovecot.imaps_port}", pki).check(wrong).run()
    assert (caught.value.step, "wr0ng" in caught.value.detail) == ("login", False)


# --- TLS ---


@pytest.mark.parametrize("scheme", ["imaps", "imap+starttls"])
async def test_dovecot_takes_sessions_up(dovecot: Dovecot, pki: Pki, scheme: str) -> None:
    made = backend(f"{scheme}://localhost:{port(dovecot, scheme, 'none')}", pki)
    assert [await was_resumed(made) for _ in range(4)] == [False, True, True, True]


@pytest.mark.parametrize("scheme", ["imaps", "imap+starttls"])
async def test_another_name_is_refused(dovecot: Dovecot, pki: Pki, scheme: str) -> None:
    url = f"{scheme}://localhost:{port(dovecot, scheme, 'none')}"
    with pytest.raises(Refused) as caught:
        await opened(backend(url, pki, tls={"name": "imap.example.org"}))
    assert (caught.value.outcome, caught.value.step) == (Outcome.UNAVAILABLE, "tls")
    told = "certificate is not for imap.example.org: it names localhost, *.test.example, 127.0.0.1, ::1"
    assert told in caught.value.detail
    assert await was_resumed(backend(url, pki, tls={"name": "a.test.example"})) is False
    # A server's own word wins over that for all.
    assert (
        await was_resumed(backend(url, pki, tls={"name": "b.example"}, server={"tls": {"name": "localhost"}})) is False
    )


async def test_an_authority_that_nobody_trusts(dovecot: Dovecot, pki: Pki) -> None:
    made = backend(f"imaps://localhost:{dovecot.imaps_port}", pki, tls={"ca": str(pki.wrong_ca)})
    with pytest.raises(Refused, match=r"certificate verify failed: .*it names localhost, ") as caught:
        await opened(made)
    assert caught.value.step == "tls"


@pytest.mark.parametrize("scheme", ["imaps", "imap+starttls"])
async def test_a_backend_that_wants_a_certificate(strict_dovecot: Dovecot, pki: Pki, scheme: str) -> None:
    """This one can't take sessions up, and ends handshakes that try: each login gets in all the same."""
    url = f"{scheme}://localhost:{port(strict_dovecot, scheme, 'none')}"
    pair = pki.clients["san.email"]
    showing = {"certificate": str(pair.certificate), "private_key": str(pair.private_key)}
    made = backend(url, pki, tls=showing)
    assert [await was_resumed(made) for _ in range(4)] == [False] * 4
    with pytest.raises(Refused):
        await opened(backend(url, pki))


# --- Cyrus ---


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("way", ["none", "id"])
async def test_cyrus_by_authzid(cyrus: Cyrus, pki: Pki, monkeypatch: pytest.MonkeyPatch, scheme: str, way: str) -> None:
    monkeypatch.setenv("MASTER", MASTER_PASSWORD)
    number = cyrus.imaps_port if scheme == "imaps" else cyrus.imap_port
    login = {"method": "authzid", "name": MASTER, "password": {"env": "MASTER"}}
    made = backend(f"{scheme}://localhost:{number}", pki, login=login, server={"client_address": way})
    visitor = Visitor(Endpoint("192.0.2.77", 40001), Endpoint("192.0.2.1", 993), "s1")
    for _ in range(3):
        session = await opened(made, visitor)
        assert b"IDLE" in session.capability
        session.stream.close()
    with trio.fail_after(20):
        told = await made.probe()
    assert "Cyrus IMAP" in told.greeting
    assert bool(told.identification) is (way == "id")
