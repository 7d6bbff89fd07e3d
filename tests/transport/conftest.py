"""Listeners that ask for certificates."""

from __future__ import annotations

import pytest
from OpenSSL import SSL

from proxy.transport.tls import ClientAuthorities, ServerCertificates
from tests.servers.pki import Pki, write_pki


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return write_pki(tmp_path_factory.mktemp("client-certificates") / "pki")


@pytest.fixture
def certificates(pki: Pki) -> ServerCertificates:
    return ServerCertificates([(pki.certificate, pki.private_key)], "1.2")


@pytest.fixture
def base(certificates: ServerCertificates, pki: Pki) -> SSL.Context:
    """A listener that takes certificates, but does without."""
    return certificates.base_context(ClientAuthorities(pki.client_ca, required=False))


@pytest.fixture
def strict(certificates: ServerCertificates, pki: Pki) -> SSL.Context:
    """A listener that needs a certificate."""
    return certificates.base_context(ClientAuthorities(pki.client_ca, required=True))
