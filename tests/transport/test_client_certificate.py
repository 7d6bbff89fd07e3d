"""Names in certificates: found where the setting says, and no trouble from strange ones."""

from __future__ import annotations

from typing import get_args

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier
from hypothesis import given
from hypothesis import strategies as st

from proxy.settings.client_models import ClientCertificates
from proxy.transport.client_certificate import ClientCertificate, read_client_certificate
from tests.servers.pki import UPN, ClientAuthority, principal_name

AUTHORITY = ClientAuthority("Clients")
KEY = ec.generate_private_key(ec.SECP256R1())
FIELDS = get_args(ClientCertificates.model_fields["name"].annotation)
SMTP_UTF8_MAILBOX = ObjectIdentifier("1.3.6.1.5.5.7.8.9")
LONG = "a" * 300


def subject(oid: ObjectIdentifier, *values: str) -> list[x509.NameAttribute[str]]:
    return [x509.NameAttribute(oid, value) for value in values]


def der(
    alternatives: list[x509.GeneralName] | None = None, attributes: list[x509.NameAttribute[str]] | None = None
) -> bytes:
    certificate = AUTHORITY.certify(KEY, subject=attributes or (), alternatives=alternatives or ())
    return certificate.public_bytes(Encoding.DER)


EVERYTHING = der(
    [
        x509.RFC822Name("mail@test.example"),
        x509.DNSName("host.test.example"),
        principal_name("principal@test.example"),
        x509.UniformResourceIdentifier("https://test.example/"),
    ],
    [
        *subject(NameOID.COMMON_NAME, "Common Name"),
        *subject(NameOID.EMAIL_ADDRESS, "subject@test.example"),
        *subject(NameOID.USER_ID, "uid-1"),
        *subject(NameOID.ORGANIZATION_NAME, "Organization"),
    ],
)

ONE_OF_EACH = [
    ("san.email", "mail@test.example"),
    ("san.dns", "host.test.example"),
    ("san.upn", "principal@test.example"),
    ("subject.email", "subject@test.example"),
    ("subject.cn", "Common Name"),
    ("subject.uid", "uid-1"),
]


@pytest.mark.parametrize(("field", "name"), ONE_OF_EACH)
def test_each_field_gives_its_own_name(field: str, name: str) -> None:
    certificate = read_client_certificate(EVERYTHING, field)
    assert certificate.names == (name,)
    assert certificate.the_name() == name
    assert certificate.expires_at == x509.load_der_x509_certificate(EVERYTHING).not_valid_after_utc.timestamp()


def test_every_field_of_the_setting_is_known() -> None:
    assert sorted(FIELDS) == sorted(field for field, _ in ONE_OF_EACH)


@pytest.mark.parametrize("field", FIELDS)
def test_a_certificate_without_the_field_has_no_name(field: str) -> None:
    certificate = read_client_certificate(der(), field)
    assert certificate.names == ()
    assert certificate.the_name() is None
    assert certificate.expires_at > 0


def other(oid: ObjectIdentifier, text: str, header: bytes) -> x509.OtherName:
    return x509.OtherName(oid, header + text.encode())


SEVERAL = [
    ("two addresses", "san.email", [x509.RFC822Name("a@x.example"), x509.RFC822Name("b@x.example")], 2, None),
    ("one twice", "san.email", [x509.RFC822Name("a@x.example"), x509.RFC822Name("a@x.example")], 1, "a@x.example"),
    ("two hosts", "san.dns", [x509.DNSName("a.example"), x509.DNSName("b.example")], 2, None),
    ("two principals", "san.upn", [principal_name("a"), principal_name("b")], 2, None),
    ("another alphabet", "san.email", [other(SMTP_UTF8_MAILBOX, "ü@x.example", b"\x0c\x0c")], 1, "ü@x.example"),
    ("one in each", "san.email", [x509.RFC822Name("u@x.example"),
        other(SMTP_UTF8_MAILBOX, "ü@x.example", b"\x0c\x0c")], 2, None),
    ("a principal is no address", "san.email", [principal_name("a@x.example")], 0, None),
    ("an address is no principal", "san.upn", [x509.RFC822Name("a@x.example")], 0, None),
    ("an empty one", "san.upn", [principal_name("")], 1, None),
    ("an octet of length", "san.upn", [other(UPN, "a" * 200, b"\x0c\x81\xc8")], 1, "a" * 200),
    ("two octets of length", "san.upn", [other(UPN, LONG, b"\x0c\x82\x01\x2c")], 1, LONG),
]  # fmt: skip


@pytest.mark.parametrize(("why", "field", "alternatives", "count", "name"), SEVERAL)
def test_only_one_distinct_name_is_a_name(
    why: str, field: str, alternatives: list[x509.GeneralName], count: int, name: str | None
) -> None:
    certificate = read_client_certificate(der(alternatives), field)
    assert len(certificate.names) == count
    assert certificate.the_name() == name


@pytest.mark.parametrize(
    ("field", "oid"),
    [
        ("subject.cn", NameOID.COMMON_NAME),
        ("subject.uid", NameOID.USER_ID),
        ("subject.email", NameOID.EMAIL_ADDRESS),
    ],
)
def test_two_of_a_subject_are_none(field: str, oid: ObjectIdentifier) -> None:
    certificate = read_client_certificate(der(None, subject(oid, "ann", "bob")), field)
    assert certificate.names == ("ann", "bob")
    assert certificate.the_name() is None


MALFORMED = [
    ("no text at all", b"\x05\x00"),
    ("another kind of string", b"\x16\x03ann"),
    ("wrapped once more", b"\xa0\x05\x0c\x03ann"),
    ("two in a sequence", b"\x30\x0a\x0c\x03ann\x0c\x03bob"),
    ("no UTF-8", b"\x0c\x03a\xffb"),
]


@pytest.mark.parametrize(("why", "value"), MALFORMED)
def test_a_malformed_name_spoils_the_others(why: str, value: bytes) -> None:
    """It is not for us to say which of them the authority has looked at."""
    certificate = read_client_certificate(der([principal_name("ann"), x509.OtherName(UPN, value)]), "san.upn")
    assert certificate.the_name() is None
    assert certificate.names == ()


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    "octets", [b"", b"\x30\x00", EVERYTHING[:-1], EVERYTHING + b"\x00", b"\x30\x84\xff\xff\xff\xff"]
)
def test_what_is_no_certificate_has_no_names_and_has_expired(octets: bytes, field: str) -> None:
    assert read_client_certificate(octets, field) == ClientCertificate((), 0.0)


@given(st.integers(0, len(EVERYTHING) - 1), st.integers(0, 255), st.sampled_from(FIELDS))
def test_a_changed_octet_raises_nothing(at: int, octet: int, field: str) -> None:
    changed = EVERYTHING[:at] + bytes((octet,)) + EVERYTHING[at + 1 :]
    read_client_certificate(changed, field).the_name()


@given(st.binary(max_size=127))
def test_octets_that_are_no_text_are_no_name(value: bytes) -> None:
    alternatives = x509.OtherName(UPN, bytes((0x0C, len(value))) + value)
    certificate = read_client_certificate(der([alternatives]), "san.upn")
    try:
        assert certificate.names == (value.decode(),)
    except UnicodeDecodeError:
        assert certificate.names == ()
