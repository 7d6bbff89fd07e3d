"""A certificate authority for one test run, and one that nobody trusts."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme

NAMES = ("localhost", "*.test.example", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Pki:
    """PEM files: the authority, a server certificate for NAMES with its key, and an unrelated authority."""

    ca: Path
    certificate: Path
    private_key: Path
    wrong_ca: Path

    def client_context(self) -> ssl.SSLContext:
        """TLS as a client that trusts this authority and checks names."""
        return ssl.create_default_context(cafile=str(self.ca))


def write_pki(folder: Path) -> Pki:
    """Make the files in `folder`."""
    folder.mkdir()
    pki = Pki(folder / "ca.pem", folder / "server.pem", folder / "server.key", folder / "wrong-ca.pem")
    authority = trustme.CA()
    issued = authority.issue_cert(*NAMES)
    authority.cert_pem.write_to_path(str(pki.ca))
    for pem in issued.cert_chain_pems:
        pem.write_to_path(str(pki.certificate), append=True)
    issued.private_key_pem.write_to_path(str(pki.private_key))
    pki.private_key.chmod(0o600)
    trustme.CA(organization_name="Somebody else").cert_pem.write_to_path(str(pki.wrong_ca))
    return pki
