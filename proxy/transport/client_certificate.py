"""What a client's certificate says of its owner. That it may be believed, TLS has verified before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID, ObjectIdentifier

_UPN = ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")  # Microsoft's user principal name
_SMTP_UTF8_MAILBOX = ObjectIdentifier("1.3.6.1.5.5.7.8.9")  # RFC 9598 §3
_UTF8_STRING = 0x0C  # X.690's tag


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """The part of a certificate that a login needs."""

    names: tuple[str, ...]  # distinct, as they stand there; for `auth.names` to judge
    expires_at: float  # Unix time

    def the_name(self) -> str | None:
        """The one name that the certificate gives; None: none, or no telling which."""
        return self.names[0] if len(self.names) == 1 and self.names[0] else None


def read_client_certificate(der: bytes, field: str) -> ClientCertificate:
    """Find the names in one field of a certificate. What cannot be read has no names, and has expired long ago.

    Args:
        field: A value of the setting `client_certificates.name`.
    """
    find = _FINDERS[field]
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = tuple(dict.fromkeys(find(certificate)))
        return ClientCertificate(names, certificate.not_valid_after_utc.timestamp())
    except Exception:  # cryptography reads lazily, and raises more than it lists
        return ClientCertificate((), 0.0)


def _alternatives(certificate: x509.Certificate) -> Iterable[x509.GeneralName]:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()


def _emails(certificate: x509.Certificate) -> Iterable[str]:
    for name in _alternatives(certificate):
        if isinstance(name, x509.RFC822Name):
            yield name.value
        elif isinstance(name, x509.OtherName) and name.type_id == _SMTP_UTF8_MAILBOX:
            yield _utf8_string(name.value)


def _dns_names(certificate: x509.Certificate) -> Iterable[str]:
    return (name.value for name in _alternatives(certificate) if isinstance(name, x509.DNSName))


def _principal_names(certificate: x509.Certificate) -> Iterable[str]:
    for name in _alternatives(certificate):
        if isinstance(name, x509.OtherName) and name.type_id == _UPN:
            yield _utf8_string(name.value)


def _utf8_string(der: bytes) -> str:
    """The text of a UTF8String in DER, and nothing else.

    Raises:
        ValueError, IndexError: It isn't one.
    Source: X.690 §8.1.3.
    """
    tag, length, begin = der[0], der[1], 2
    if length & 0x80:  # the long form: how many octets of length follow
        begin += length & 0x7F
        length = int.from_bytes(der[2:begin], "big")
    if tag != _UTF8_STRING or len(der) != begin + length:
        raise ValueError("no UTF8String")
    return der[begin:].decode()


def _subject(oid: ObjectIdentifier) -> Callable[[x509.Certificate], Iterable[str]]:
    def find(certificate: x509.Certificate) -> Iterable[str]:
        for attribute in certificate.subject.get_attributes_for_oid(oid):
            if not isinstance(attribute.value, str):
                raise TypeError("no text")
            yield attribute.value

    return find


_FINDERS: dict[str, Callable[[x509.Certificate], Iterable[str]]] = {
    "san.email": _emails,
    "san.dns": _dns_names,
    "san.upn": _principal_names,
    "subject.email": _subject(NameOID.EMAIL_ADDRESS),
    "subject.cn": _subject(NameOID.COMMON_NAME),
    "subject.uid": _subject(NameOID.USER_ID),
}
