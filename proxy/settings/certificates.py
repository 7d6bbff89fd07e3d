"""A look at certificates and keys before anything is started with them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What an administrator recognises a certificate by."""

    names: tuple[str, ...]
    not_after: datetime


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Every certificate of a PEM file, at least one.

    Raises:
        ValueError: Its text says what is wrong with the file.
    """
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as exc:
        raise ValueError(f'cannot be read: "{path}": {exc.strerror}') from None
    except ValueError:
        raise ValueError(f'no certificate in PEM form: "{path}"') from None


def pair_problem(certificate: Path, private_key: Path) -> tuple[Literal["certificate", "private_key"], str] | None:
    """Why this certificate and key don't work together: which of the two is to blame, and the problem."""
    try:
        chain = read_certificates(certificate)
    except ValueError as exc:
        return "certificate", str(exc)
    try:
        key = _public_part(private_key)
    except ValueError as exc:
        return "private_key", str(exc)
    fitting = [index for index, each in enumerate(chain) if _spki(each) == key]
    if not fitting:
        return "private_key", f'does not fit the certificate: "{private_key}" is not the key of "{certificate}"'
    if fitting[0] != 0:
        # RFC 8446 §4.4.2: the sender's certificate comes first
        return (
            "certificate",
            f'the server\'s own certificate comes first; in "{certificate}" it is number {fitting[0] + 1}',
        )
    return None


def facts(path: Path) -> CertificateFacts:
    """Names and end date of a file's first certificate.

    Raises:
        ValueError: Its text says what is wrong with the file.
    """
    certificate = read_certificates(path)[0]
    return CertificateFacts(_names(certificate), certificate.not_valid_after_utc)


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return (certificate.subject.rfc4514_string(),)
    return (
        *alternatives.get_values_for_type(x509.DNSName),
        *map(str, alternatives.get_values_for_type(x509.IPAddress)),
    )


def _public_part(private_key: Path) -> bytes:
    try:
        key = load_pem_private_key(private_key.read_bytes(), None)
    except OSError as exc:
        raise ValueError(f'cannot be read: "{private_key}": {exc.strerror}') from None
    except TypeError:
        raise ValueError(f'the key is encrypted, and nobody is there to type its passphrase: "{private_key}"') from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f'no private key in PEM form: "{private_key}"') from None
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
