"""Secrets are looked at when they are used: what their files hold may have changed since the start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.auth.authenticator import Authenticator
from proxy.auth.http import HttpSource
from proxy.auth.names import NameRules
from proxy.auth.oauth.introspection import Introspector
from proxy.auth.scram_keys import make_scram_keys, scram_text
from proxy.auth.web import WebAnswer
from proxy.settings.identity_models import HttpIdentity, Introspection
from proxy.settings.models import Settings
from proxy.settings.secret import refresh


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(b"old\n")
    return path


class FakeWeb:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def post_form(self, url: str, form: Mapping[str, str], *, max_bytes: int, basic: Any) -> WebAnswer:
        self.asked.append((basic, form.get("client_secret")))
        return WebAnswer(200, [(b"content-type", b"application/json")], b'{"active": false}')

    async def get(self, url: str, *, max_bytes: int, headers: Mapping[str, Any]) -> WebAnswer:
        self.asked.append(headers["X-Auth-Key"])
        return WebAnswer(200, [(b"auth-status", b"OK")], b"")


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        ("basic", [(("porter", "old"), None), (("porter", "n%25w"), None)]),
        ("post", [(None, "old"), (None, "n%w")]),
    ],
)
async def test_introspection(secret: Path, method: str, asked: list[Any]) -> None:
    value = {
        "url": "https://id.example/introspect",
        "client_id": "porter",
        "client_secret": {"file": "secret"},
        "method": method,
    }
    web: Any = FakeWeb()
    introspector = Introspector(
        Introspection.model_validate(value, context={"folder": secret.parent}), web, 5.0, "oauth"
    )
    await introspector.ask("opaque")
    refresh({secret: b"n%w\n"})
    await introspector.ask("opaque")
    assert web.asked == asked


async def test_header_fields(secret: Path, rules: NameRules, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"url": "http://127.0.0.1:9000/auth", "headers": {"X-Auth-Key": {"file": "secret"}}}
    source = HttpSource(HttpIdentity.model_validate(value, context={"folder": secret.parent}), rules)
    web = FakeWeb()
    monkeypatch.setattr(source, "_web", web)
    await source.probe()
    refresh({secret: b"new\n"})
    await source.probe()
    assert web.asked == ["old", "new"]


async def test_salts_of_unknown_names(secret: Path) -> None:
    """They are alike in all processes, whether these began before or after the password changed."""
    from proxy.app.sources import authenticator_for, sources_for

    scram = scram_text(make_scram_keys(b"x", 4096))
    (secret.parent / "users.yaml").write_text(f'ann: {{scram: "{scram}"}}\n')
    value = {
        "version": 1,
        "listeners": [{"address": "127.0.0.1:1143", "tls": "none", "trusted_networks": ["127.0.0.0/8"]}],
        "identity": [{"file": {"path": "users.yaml"}}],
        "backends": {
            "servers": [{"name": "dovecot-1", "url": "imap://127.0.0.1"}],
            "login": {"method": "master", "name": "porter", "password": {"file": "secret"}},
        },
    }

    async def salt(authenticator: Authenticator) -> bytes:
        keys = (await authenticator.account("nobody")).scram
        assert keys is not None
        return keys.salt

    def process() -> Authenticator:
        settings = Settings.model_validate(value, context={"folder": secret.parent})
        rules = NameRules(settings.names)
        return authenticator_for(settings, rules, sources_for(settings, rules))

    early = process()
    before = await salt(early)
    refresh({secret: b"new\n"})
    await trio.Path(secret).write_bytes(b"new\n")
    after = await salt(early)
    assert await salt(early) == after != before
    assert await salt(process()) == after
