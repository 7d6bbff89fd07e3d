"""Certificates that change while we run: from octets, all or nothing, and tickets stay good."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from proxy.transport.key_pair import read_key_pair
from proxy.transport.tls import IMAP, Pair, ServerCertificates, accept_tls


@dataclass(frozen=True)
class Issued:
    """What the files of a pair hold."""

    certificate: bytes
    private_key: bytes

    def write(self, stem: Path) -> Pair:
        pair = stem.with_suffix(".crt"), stem.with_suffix(".key")
        pair[0].write_bytes(self.certificate)
        pair[1].write_bytes(self.private_key)
        return pair


ROOT = trustme.CA()
INTERMEDIATE = ROOT.create_child_ca()
STRANGER = trustme.CA()


def issue(*names: str, by: trustme.CA = INTERMEDIATE) -> Issued:
    """With the intermediate certificate behind it."""
    leaf = by.issue_cert(*names)
    return Issued(b"".join(blob.bytes() for blob in leaf.cert_chain_pems), leaf.private_key_pem.bytes())


class Site:
    """A listener and its clients, who trust the root alone."""

    def __init__(self, certificates: ServerCertificates) -> None:
        self._base = certificates.base_context()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ROOT.configure_trust(self.client)

    async def visit(self, name: str, session: ssl.SSLSession | None = None) -> tuple[bool, ssl.SSLSession | None]:
        """Whether the session was resumed, and the one for the next visit; the name is verified."""
        visits: list[tuple[bool, ssl.SSLSession | None]] = []

        def connect() -> None:
            with (
                socket.create_connection(self._listener.getsockname(), 10) as sock,
                self.client.wrap_socket(sock, server_hostname=name, session=session) as wrapped,
            ):
                assert wrapped.recv(6) == b"* OK\r\n"  # tickets come before it
                visits.append((bool(wrapped.session_reused), wrapped.session))

        async def serve() -> None:
            await trio.lowlevel.wait_readable(self._listener)
            server, _ = self._listener.accept()
            server.setblocking(False)
            stream = await accept_tls(server, self._base, speaks_first=True)
            await stream.send(b"* OK\r\n")
            stream.close()

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, connect)
                await serve()
        return visits[0]

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return issue("old.example").write(tmp_path / "site")


@pytest.fixture
def certificates(pair: Pair) -> ServerCertificates:
    return ServerCertificates([pair], "1.2")


@pytest.fixture
def site(certificates: ServerCertificates) -> Iterator[Site]:
    site = Site(certificates)
    yield site
    site.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_new_octets_are_shown_and_tickets_stay_good(
    certificates: ServerCertificates, site: Site, pair: Pair, version: ssl.TLSVersion
) -> None:
    site.client.maximum_version = version
    reused, session = await site.visit("old.example")
    assert not reused
    for path in pair:
        path.unlink()  # only somebody else can read them
    new = issue("new.example")
    assert certificates.renew(dict(zip(pair, (new.certificate, new.private_key), strict=True)))
    assert (await site.visit("new.example"))[0] is False  # its chain leads over the intermediate certificate
    site.client.check_hostname = False  # Python looks at the certificate of the first handshake
    assert (await site.visit("new.example", session))[0] is True


async def test_a_certificate_for_the_same_key_comes_alone(
    certificates: ServerCertificates, site: Site, pair: Pair
) -> None:
    key = read_key_pair(*(path.read_bytes() for path in pair)).private_key
    now = datetime.now(UTC)
    renewed = (
        x509.CertificateBuilder(
            issuer_name=x509.load_pem_x509_certificate(ROOT.cert_pem.bytes()).subject,
            subject_name=x509.Name([]),
            public_key=key.public_key(),
            serial_number=1,
            not_valid_before=now - timedelta(days=1),
            not_valid_after=now + timedelta(days=42),
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("renewed.example")]), critical=True)
        .sign(ROOT._private_key, hashes.SHA256())
    )
    assert certificates.renew({pair[0]: renewed.public_bytes(Encoding.PEM)})
    assert certificates.ends == {pair[0]: renewed.not_valid_after_utc}
    await site.visit("renewed.example")


async def test_the_same_makes_no_difference(certificates: ServerCertificates, pair: Pair) -> None:
    assert not certificates.renew({path: path.read_bytes() for path in pair})
    assert not certificates.renew({Path("/another/file"): b"x"})


NEW = issue("new.example")
ENCRYPTED = ec.generate_private_key(ec.SECP256R1()).private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
)
DSA = dsa.generate_private_key(1024).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
BAD = [
    ("half a pair", (NEW.certificate, None), "does not fit"),
    ("the other half", (None, NEW.private_key), "does not fit"),
    ("an empty certificate", (b"", NEW.private_key), "no certificate"),
    ("an empty key", (NEW.certificate, b""), "no private key"),
    ("half a certificate", (NEW.certificate[:300], NEW.private_key), "without its end"),
    ("half a chain", (NEW.certificate[:-100], NEW.private_key), "without its end"),
    ("half a key", (NEW.certificate, NEW.private_key[:100]), "without its end"),
    ("swapped", (NEW.private_key, NEW.certificate), "no certificate"),
    ("an encrypted key", (NEW.certificate, ENCRYPTED), "encrypted"),
    ("a key of another kind", (NEW.certificate, DSA), "not used in TLS"),
    ("octets", (b"\0\xff", b"\0\xff"), "no certificate"),
    ("the chain in front", (INTERMEDIATE.cert_pem.bytes() + NEW.certificate, NEW.private_key), "first one"),
]


@pytest.mark.parametrize(("name", "octets", "problem"), BAD, ids=[row[0] for row in BAD])
async def test_what_cannot_be_used_changes_nothing(
    certificates: ServerCertificates,
    site: Site,
    pair: Pair,
    name: str,
    octets: tuple[bytes | None, bytes | None],
    problem: str,
) -> None:
    ends = certificates.ends
    files = {path: content for path, content in zip(pair, octets, strict=True) if content is not None}
    for _ in range(2):
        with pytest.raises(ValueError, match=problem) as caught:
            certificates.renew(files)
        assert "PRIVATE KEY" not in str(caught.value)
    assert certificates.ends == ends
    await site.visit("old.example")


async def test_one_of_many(tmp_path: Path) -> None:
    """The others' contexts stay what they are; the default and the order stay too."""
    pairs = [issue(f"{name}.example", f"*.{name}.example").write(tmp_path / name) for name in ("one", "two", "three")]
    certificates = ServerCertificates(pairs, "1.2")
    site = Site(certificates)
    try:
        before = dict(certificates._choices[None, IMAP].by_pair)
        new = issue("zwei.example", "one.example")
        assert certificates.renew(dict(zip(pairs[1], (new.certificate, new.private_key), strict=True)))
        after = certificates._choices[None, IMAP].by_pair
        assert [after[pair] is before[pair] for pair in pairs] == [True, False, True]
        for name in ("zwei.example", "one.example", "x.one.example", "three.example"):
            await site.visit(name)
        assert read_key_pair(*(path.read_bytes() for path in pairs[1])).names == (b"two.example", b"*.two.example")
        site.client.check_hostname = False
        await site.visit("two.example")  # nobody's now
        site.client.check_hostname = True
        with pytest.raises(ValueError, match="does not fit"):
            certificates.renew({pairs[0][0]: issue("eins.example").certificate, pairs[2][0]: new.certificate})
        await site.visit("one.example")
    finally:
        site.close()


async def test_a_listener_that_comes_later_shows_what_is_new(certificates: ServerCertificates, pair: Pair) -> None:
    new = issue("new.example")
    certificates.renew(dict(zip(pair, (new.certificate, new.private_key), strict=True)))
    site = Site(certificates)
    try:
        await site.visit("new.example")
    finally:
        site.close()


def test_the_key_is_not_shown() -> None:
    assert "key" not in repr(read_key_pair(NEW.certificate, NEW.private_key)).partition("private_key")[2].lower()
    assert "private_key" not in repr(read_key_pair(NEW.certificate, NEW.private_key))
