"""A folder with everything that settings can name, and a way to load a file from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from proxy.settings.loader import load
from proxy.settings.mistakes import SettingsError
from proxy.settings.models import Settings

# argon2id of a password that nobody knows
HASH = "$argon2id$v=19$m=65536,t=3,p=4$HkA/zSL2W0qjZNjG7qMXMw$3/9eBlhXj8hzpHI6P6TwKBVfjUyj+v7TJmpMROiHq5Q"

MINIMAL = """\
version: 1
listeners:
  - {address: "[::]:993", tls: implicit}
tls: {certificates: [{certificate: tls.crt, private_key: tls.key}]}
identity:
  - file: {path: users.yaml}
backends:
  servers:
    - {name: dovecot-1, url: "imaps://10.0.0.11"}
"""


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, tls.crt and tls.key, which fit, and other.key, which fits nothing."""
    folder = tmp_path_factory.mktemp("pki")
    ca = trustme.CA()
    server = ca.issue_cert("mail.example.org", "192.0.2.1")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    (folder / "tls.crt").write_bytes(server.cert_chain_pems[0].bytes() + ca.cert_pem.bytes())
    (folder / "reversed.crt").write_bytes(ca.cert_pem.bytes() + server.cert_chain_pems[0].bytes())
    server.private_key_pem.write_to_path(folder / "tls.key")
    ca.issue_cert("other.example.org").private_key_pem.write_to_path(folder / "other.key")
    return folder


@pytest.fixture
def folder(pki: Path, tmp_path: Path) -> Path:
    """A folder of its own for each test."""
    for file in pki.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "users.yaml").write_text(f'ann@example.org: {{hash: "{HASH}"}}\n')
    (tmp_path / "master.password").write_bytes(b"s3cret\r\nsecond line\n")
    return tmp_path


@pytest.fixture
def loaded(folder: Path) -> Callable[[str], Settings]:
    """Settings from text."""

    def load_text(text: str) -> Settings:
        file = folder / "porter.yaml"
        file.write_text(text)
        return load(file)

    return load_text


@pytest.fixture
def mistakes(loaded: Callable[[str], Settings]) -> Callable[[str], list[str]]:
    """What is wrong with a text, as `line: key: problem`."""

    def mistakes_of(text: str) -> list[str]:
        with pytest.raises(SettingsError) as caught:
            loaded(text)
        return [f"{each.line}: {each.key}: {each.problem}" for each in caught.value.mistakes]

    return mistakes_of


@pytest.fixture
def minimal() -> str:
    return MINIMAL
