"""Doors over reloads: tickets stay good, certificates change, and change back where nothing came of it."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from proxy.app.doors import Doors
from proxy.settings.mistakes import SettingsError
from proxy.settings.models import Settings
from proxy.transport.door import Door
from tests.transport.visits import client, visit

Write = Callable[[], Path]
Make = Callable[..., Settings]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Issues a certificate anew, and gives the authority's."""

    def issue() -> Path:
        authority = trustme.CA()
        pair = authority.issue_cert("localhost")
        pair.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
        pair.private_key_pem.write_to_path(tmp_path / "tls.key")
        ca = tmp_path / f"ca-{len(list(tmp_path.iterdir()))}.pem"
        authority.cert_pem.write_to_path(ca)
        return ca

    return issue


@pytest.fixture
def settings(tmp_path: Path) -> Make:
    def make(minimum_version: str = "1.2", clients: str | None = None, port: int = 1993, name: str = "tls") -> Settings:
        listeners: list[dict[str, Any]] = [
            {"address": f"127.0.0.1:{port}", "tls": "implicit"},
            {"address": "127.0.0.1:1143", "tls": "starttls"},
            {"address": "127.0.0.1:1144", "tls": "none", "trusted_networks": ["127.0.0.0/8"]},
        ]
        if clients is not None:
            listeners[0]["client_certificates"] = {"ca": clients}
        value = {
            "version": 1,
            "listeners": listeners,
            "tls": {
                "certificates": [{"certificate": f"{name}.crt", "private_key": f"{name}.key"}],
                "minimum_version": minimum_version,
            },
            "identity": [{"backend": {}}],
            "backends": {"servers": [{"name": "a", "url": "imap://h"}]},
        }
        return Settings.model_validate(value, context={"folder": tmp_path})

    return make


@pytest.fixture
def doors(tmp_path: Path) -> Doors:
    return Doors(tmp_path / "porter.yaml")


async def shows(door: Door, ca: Path) -> bool:
    """Whether a client who trusts this authority gets in."""
    context = client(None)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED
    return (await visit(door.context(), context)).alert == ""


async def test_tickets_outlive_a_reload_and_new_certificates(doors: Doors, write: Write, settings: Make) -> None:
    old = write()
    first = doors.open(settings())
    doors.settle()
    context = client(None)
    session = (await visit(first[0].context(), context)).session
    assert await shows(first[0], old)
    new = write()
    second = doors.open(settings())
    doors.settle()
    assert await shows(second[0], new)
    assert not await shows(second[0], old)
    assert (await visit(second[0].context(), context, session=session)).reused


async def test_what_came_to_nothing_is_undone(doors: Doors, write: Write, settings: Make) -> None:
    old = write()
    first = doors.open(settings())
    doors.settle()
    write()
    doors.open(settings())
    doors.abandon()
    assert await shows(first[0], old)
    assert doors.open(settings())[0] is first[0]


async def test_other_files_that_came_to_nothing(doors: Doors, write: Write, settings: Make, tmp_path: Path) -> None:
    old = write()
    first = doors.open(settings())
    doors.settle()
    for end in ("crt", "key"):
        (tmp_path / f"other.{end}").write_bytes((tmp_path / f"tls.{end}").read_bytes())
    new = write()
    doors.open(settings(name="other"))
    doors.abandon()
    assert await shows(first[0], old)
    assert not await shows(first[0], new)


async def test_a_pair_that_does_not_fit_is_a_mistake(
    doors: Doors, write: Write, settings: Make, tmp_path: Path
) -> None:
    old = write()
    first = doors.open(settings())
    doors.settle()
    (tmp_path / "tls.key").write_text("no key")
    with pytest.raises(SettingsError, match="the certificates cannot be used"):
        doors.open(settings())
    assert await shows(first[0], old)


def test_only_listeners_that_changed_have_new_doors(doors: Doors, write: Write, settings: Make, tmp_path: Path) -> None:
    write()
    authority = tmp_path / "clients.pem"
    trustme.CA().cert_pem.write_to_path(authority)

    def kept(*arguments: Any, **options: Any) -> list[bool]:
        nonlocal before
        now = doors.open(settings(*arguments, **options))
        doors.settle()
        same = [door is other for door, other in zip(now, before, strict=True)]
        before = now
        return same

    before = doors.open(settings())
    doors.settle()
    assert kept() == [True, True, True]
    assert kept(port=2993) == [False, True, True]
    assert kept(port=2993, clients="clients.pem") == [False, True, True]
    assert kept(port=2993, clients="clients.pem") == [True, True, True]
    trustme.CA().cert_pem.write_to_path(authority)  # the same name, another authority
    assert kept(port=2993, clients="clients.pem") == [False, True, True]
    assert kept("1.3", port=2993, clients="clients.pem") == [False, False, False]
