"""What is shipped and written about settings agrees with the models: config/*.yaml and docs/settings.md."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import trustme

from proxy.settings.keys import ITEM, Key, walk
from proxy.settings.loader import load
from proxy.settings.reference import default_text, differences, settings_markdown
from proxy.settings.yaml_nodes import Document, read_yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config"
REFERENCE = CONFIG / "porter.reference.yaml"

SAMPLES = ["porter.yaml", "porter.reference.yaml"]
# It cannot stand beside the master login that the reference shows; there it is a comment.
SHOWN_AS_COMMENT = {"identity[].backend"}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config/ with the files an administrator adds."""
    folder = tmp_path_factory.mktemp("etc") / "imap-porter"
    shutil.copytree(CONFIG, folder)
    ca = trustme.CA()
    issued = ca.issue_cert("mail.example.org")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    issued.private_key_pem.write_to_path(folder / "tls.key")
    ca.cert_pem.write_to_path(folder / "clients-ca.pem")
    for name in ("master.password", "ldap.password", "oauth.secret", "probe.password"):
        (folder / name).write_text("s3cret\n")
    return folder


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_loads(installed: Path, name: str) -> None:
    assert load(installed / name).version == 1


def test_the_smallest_fits_on_a_screen() -> None:
    lines = (CONFIG / "porter.yaml").read_text().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 120


def test_the_users_file_is_one(installed: Path) -> None:
    users = read_yaml(installed / "users.yaml", 1 << 20).value
    assert users
    for entry in users.values():
        assert entry.get("hash", "$argon2id$").startswith("$argon2id$")
        assert entry.keys() <= {"hash", "scram", "backend", "attributes"}


def reference() -> Document:
    return read_yaml(REFERENCE, 1 << 20)


def place(document: Document, key: Key) -> tuple[str | int, ...] | None:
    """Where the reference shows a key: in the first item of a list that has it."""
    found: list[tuple[str | int, ...]] = [()]
    for step in key.steps:
        found = [
            (*keys, inner)
            for keys in found
            for inner in (range(len(value_at(document, keys))) if step == ITEM else [step])
            if step == ITEM or step in value_at(document, keys)
        ]
    return found[0] if found else None


def value_at(document: Document, keys: tuple[str | int, ...]) -> Any:
    value: Any = document.value
    for key in keys:
        value = value[key]
    return value


def comment_above(line: int) -> str:
    """The block of comment lines right above a line, as one line."""
    block: list[str] = []
    for text in reversed(REFERENCE.read_text().splitlines()[: line - 1]):
        if not text.strip().startswith("#"):
            break
        block.insert(0, text.strip().removeprefix("#").strip())
    return " ".join(block)


@pytest.mark.parametrize("key", list(walk()), ids=str)
def test_the_reference_shows_and_explains(key: Key) -> None:
    document = reference()
    keys = place(document, key)
    if str(key) in SHOWN_AS_COMMENT:
        assert keys is None
        assert f"# - {key.steps[-1]}: " in REFERENCE.read_text()
        return
    assert keys is not None
    comment = comment_above(document.line(keys))
    assert comment.endswith(f"Takes hold: {key.takes_hold}")
    default = default_text(key.field)
    if default == "required":
        assert "Required." in comment
    elif default.startswith("`"):
        assert f"Default: {default.strip('`')}." in comment.replace('"', "")


def test_the_reference_shows_defaults(installed: Path) -> None:
    """Only what has no default, or none that could be shown, differs."""
    assert {each.key for each in differences(load(installed / REFERENCE.name))} == {
        "listeners[2].trusted_networks",
        "listeners[3].protocol",
        "listeners[3].trusted_networks",
        "listeners[3].websocket.origins",
        "listeners[4].protocol",
        "listeners[4].trusted_networks",
        "listeners[4].domains",
        "identity[1].ldap.bind.dn",
        "identity[1].ldap.bind.password",
        "identity[1].ldap.attributes",
        "identity[2].ldap.bind.external",
        "identity[2].ldap.user_dn",
        "identity[3].oauth.issuer",
        "identity[3].oauth.scopes",
        "routing.overrides",
        "routing.tags.domains",
        "backends.servers[0].tls.name",
        "backends.servers[2].tag",
        "backends.discovery.ordinal_names",
        "backends.tls.ca",
        "backends.login.method",
        "backends.login.name",
        "backends.login.password",
        "limits.commands_per_user",
        "limits.commands_per_session",
        "admin.address",
        "admin.socket",
        "metrics.address",
        "fleet.name",
    }


def test_the_page_is_written_from_the_models() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == settings_markdown(), "write it anew: python -m proxy.settings.reference > docs/settings.md"
