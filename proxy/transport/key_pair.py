"""A certificate with its chain and its key, from what their files hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

PrivateKey = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey  # what TLS servers have


@dataclass(frozen=True, slots=True)
class KeyPair:
    """They fit together."""

    chain: tuple[x509.Certificate, ...]  # the owner's own comes first
    private_key: PrivateKey = field(repr=False)
    names: tuple[bytes, ...]  # the DNS names that it is for, in lower case

    @property
    def not_after(self) -> datetime:
        """When the owner's certificate ends."""
        return self.chain[0].not_valid_after_utc


def read_key_pair(certificate: bytes, private_key: bytes) -> KeyPair:
    """Read both, in PEM form.

    Raises:
        ValueError: Its text says what is wrong, and nothing of what the files hold.
    """
    # A chain that breaks off would be read as far as it goes.
    if any(content.count(b"-----BEGIN ") != content.count(b"-----END ") for content in (certificate, private_key)):
        raise ValueError("a PEM block without its end")
    try:
        chain = tuple(x509.load_pem_x509_certificates(certificate))
    except (ValueError, x509.InvalidVersion):
        raise ValueError("no certificate in PEM form") from None
    try:
        key = load_pem_private_key(private_key, None)
    except TypeError:
        raise ValueError("the key is encrypted, and nobody is there to type its passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("no private key in PEM form") from None
    if not isinstance(key, PrivateKey):
        raise ValueError("the key is of a kind that is not used in TLS")
    try:
        fits = _octets(chain[0].public_key()) == _octets(key.public_key())
        names = tuple(_names(chain[0]))
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise ValueError("the certificate breaks the rules of its format") from None
    if not fits:
        raise ValueError("the key does not fit the certificate, the first one of its file")
    return KeyPair(chain, key, names)


def _octets(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _names(certificate: x509.Certificate) -> list[bytes]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [name.lower().encode("ascii", "replace") for name in extension.value.get_values_for_type(x509.DNSName)]
