"""Certificate authorities for one test run: for servers, for clients, and of each kind one that nobody trusts."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

NAMES = ("localhost", "*.test.example", "127.0.0.1", "::1")
UPN = ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")

SUBJECTS = {"email": NameOID.EMAIL_ADDRESS, "cn": NameOID.COMMON_NAME, "uid": NameOID.USER_ID}


@dataclass(frozen=True)
class KeyPair:
    """PEM files: a certificate, followed by the intermediate ones, and its key."""

    certificate: Path
    private_key: Path

    def show(self, context: ssl.SSLContext) -> ssl.SSLContext:
        """The same context, which shows this certificate from now on."""
        context.load_cert_chain(self.certificate, self.private_key)
        return context


class ClientAuthority:
    """Issues certificates to clients."""

    def __init__(self, organization: str, parent: ClientAuthority | None = None, *, authority: bool = True) -> None:
        """Args:
        authority: False: its own certificate does not allow it what it does here.
        """
        self.parent = parent
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)])
        builder = _builder(self.name, parent.name if parent else self.name, self.key, expired=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        self.certificate = builder.sign(parent.key if parent else self.key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def write(self, path: Path) -> Path:
        """Its own certificate, for those who trust it."""
        path.write_bytes(self.pem)
        return path

    def certify(
        self,
        key: ec.EllipticCurvePrivateKey,
        *,
        subject: Sequence[x509.NameAttribute[str]] = (),
        alternatives: Sequence[x509.GeneralName] = (),
        expired: bool = False,
        purpose: ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
    ) -> x509.Certificate:
        """A certificate for somebody's key."""
        builder = _builder(x509.Name(subject), self.name, key, expired=expired)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=not subject)
        return builder.sign(self.key, hashes.SHA256())

    def issue(
        self,
        stem: Path,
        *,
        subject: Mapping[str, str] | None = None,
        alternatives: Sequence[x509.GeneralName] = (),
        expired: bool = False,
        purpose: ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
        with_chain: bool = True,
    ) -> KeyPair:
        """Make a client's files.

        Args:
            stem: Their path without suffix.
            subject: Fields of the subject by their names in SUBJECTS.
            with_chain: Whether the client sends the intermediate certificates too.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(SUBJECTS[name], value) for name, value in (subject or {}).items()]
        leaf = self.certify(key, subject=attributes, alternatives=alternatives, expired=expired, purpose=purpose)
        chain = leaf.public_bytes(Encoding.PEM)
        authority = self
        while with_chain and authority.parent is not None:
            chain += authority.pem
            authority = authority.parent
        pair = KeyPair(stem.with_suffix(".pem"), stem.with_suffix(".key"))
        pair.certificate.write_bytes(chain)
        pair.private_key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        pair.private_key.chmod(0o600)
        return pair


def principal_name(name: str) -> x509.OtherName:
    """Microsoft's alternative name of a user; short ones only."""
    text = name.encode()
    return x509.OtherName(UPN, bytes((0x0C, len(text))) + text)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, expired: bool
) -> x509.CertificateBuilder:
    end = datetime.now(UTC) + timedelta(days=-1 if expired else 7)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=end - timedelta(days=30),
        not_valid_after=end,
    )


@dataclass(frozen=True)
class Pki:
    """PEM files: the authority, a server certificate for NAMES with its key, and an unrelated authority.

    And for clients: their authority, which is also here to issue more, and certificates of alice by what is special
    about them.
    """

    ca: Path
    certificate: Path
    private_key: Path
    wrong_ca: Path
    client_ca: Path
    foreign_ca: Path  # of other clients; nobody trusts it
    client_authority: ClientAuthority
    clients: Mapping[str, KeyPair]

    def client_context(self) -> ssl.SSLContext:
        """TLS as a client that trusts this authority and checks names."""
        return ssl.create_default_context(cafile=str(self.ca))


def write_pki(folder: Path) -> Pki:
    """Make the files in `folder`."""
    folder.mkdir()
    certificate, private_key = folder / "server.pem", folder / "server.key"
    authority = trustme.CA()
    issued = authority.issue_cert(*NAMES)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for pem in issued.cert_chain_pems:
        pem.write_to_path(str(certificate), append=True)
    issued.private_key_pem.write_to_path(str(private_key))
    private_key.chmod(0o600)
    trustme.CA(organization_name="Somebody else").cert_pem.write_to_path(str(folder / "wrong-ca.pem"))
    clients, foreigners = ClientAuthority("Clients"), ClientAuthority("Foreigners")
    return Pki(
        folder / "ca.pem",
        certificate,
        private_key,
        folder / "wrong-ca.pem",
        clients.write(folder / "client-ca.pem"),
        foreigners.write(folder / "foreign-ca.pem"),
        clients,
        _clients(clients, foreigners, folder),
    )


def _clients(authority: ClientAuthority, foreigners: ClientAuthority, folder: Path) -> Mapping[str, KeyPair]:
    email = x509.RFC822Name("alice@test.example")
    issue = authority.issue
    return {
        "san.email": issue(folder / "san-email", alternatives=[email]),
        "san.dns": issue(folder / "san-dns", alternatives=[x509.DNSName("alice.test.example")]),
        "san.upn": issue(folder / "san-upn", alternatives=[principal_name("alice@test.example")]),
        "subject.email": issue(folder / "subject-email", subject={"email": "alice@test.example"}),
        "subject.cn": issue(folder / "subject-cn", subject={"cn": "alice"}),
        "subject.uid": issue(folder / "subject-uid", subject={"uid": "alice"}),
        "none": issue(folder / "none"),
        "expired": issue(folder / "expired", alternatives=[email], expired=True),
        "foreign": foreigners.issue(folder / "foreign", alternatives=[email]),
        "intermediate": ClientAuthority("Department", authority).issue(folder / "intermediate", alternatives=[email]),
    }
