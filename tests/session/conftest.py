"""The stage, furnished anew for each story and looked over when the story is told."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trustme

from proxy.auth.passwords import Parameters, hash_password
from proxy.auth.scram_keys import MIN_ITERATIONS, make_scram_keys, scram_text
from proxy.settings.models import Settings
from proxy.settings.secret import Secret
from proxy.transport.door import Door
from proxy.transport.tls import ServerCertificates
from tests.session.stage import LOOPBACK, Backend, Part, Scene, dovecot


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def certificates(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> ServerCertificates:
    folder = tmp_path_factory.mktemp("certificates")
    leaf = authority.issue_cert("localhost")
    leaf.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    leaf.private_key_pem.write_to_path(folder / "tls.key")
    return ServerCertificates([(folder / "tls.crt", folder / "tls.key")], "1.2")


@pytest.fixture(scope="session")
def trust(authority: trustme.CA) -> ssl.SSLContext:
    """A client's view: whom it trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


@pytest.fixture(scope="session")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """users.yaml: ann and bob, whose password is `right`."""
    cheap = hash_password(b"right", Parameters(memory_kib=8, time=1, parallelism=1))
    path = tmp_path_factory.mktemp("users") / "users.yaml"
    path.write_text(f'ann: {{hash: "{cheap}"}}\nbob: {{hash: "{cheap}"}}\n')
    return path


@pytest.fixture(scope="session")
def scram(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings: ann and bob have SCRAM keys of the password `right`, which is that of the backend's master too."""
    keys = scram_text(make_scram_keys(b"right", MIN_ITERATIONS))
    path = tmp_path_factory.mktemp("scram") / "users.yaml"
    path.write_text(f'ann: {{scram: "{keys}"}}\nbob: {{scram: "{keys}"}}\n')
    login = {"method": "master", "name": "porter", "password": Secret("env", "MASTER", b"right")}
    return {"identity": [{"file": {"path": str(path)}}], "backends": {"login": login}}


@pytest.fixture
def events() -> Iterator[Sequence[MutableMapping[str, Any]]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


Stage = Callable[..., Awaitable[Scene]]


@pytest.fixture
async def stage(
    nursery: trio.Nursery, events: Sequence[MutableMapping[str, Any]], certificates: ServerCertificates
) -> AsyncIterator[Stage]:
    """Sets a scene: parts of the backend, how TLS begins at the door, and settings that differ from the usual ones."""
    scenes: list[Scene] = []

    async def set_scene(*parts: Part, tls: str = "none", listening: bool = True, **changes: Any) -> Scene:
        backend = Backend(parts or (dovecot,))
        port = await backend.bind()
        if listening:
            await nursery.start(backend.serve)
        trusted = [] if tls != "none" else ["127.0.0.0/8"]
        plain: dict[str, Any] = {
            "version": 1,
            "listeners": [{"address": f"{LOOPBACK}:1143", "tls": tls, "trusted_networks": trusted}],
            "identity": [{"backend": {}}],
            "backends": {"servers": [{"name": "d1", "url": f"imap://{LOOPBACK}:{port}"}]},
            "limits": {"failed_login_delay": 0.01},
        }
        for section, values in changes.items():
            plain[section] = {**plain.get(section, {}), **values} if isinstance(values, dict) else values
        settings = Settings.model_validate(plain)
        scenes.append(Scene(nursery, settings, Door(settings.listeners[0], certificates), backend, events))
        return scenes[-1]

    yield set_scene
    for scene in scenes:
        await scene.over()
