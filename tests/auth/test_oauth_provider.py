"""The token source on a real OpenID provider: oidc-provider from npm."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from proxy.auth.names import NameRules
from proxy.auth.oauth import keys as keys_module
from proxy.auth.oauth.source import OAuthSource
from proxy.auth.source import NotMine
from proxy.model import Identity
from proxy.outcome import Outcome, Refused
from proxy.settings.identity_models import OAuthIdentity
from proxy.settings.models import Names
from proxy.settings.secret import Secret
from tests.auth.oauth_stage import ask
from tests.servers.openid import AUDIENCE, INTROSPECTOR, OpenIdProvider, new_rsa_key
from tests.servers.pki import Pki, write_pki
from tests.servers.ports import Ports

pytestmark = pytest.mark.server

NO, EXPIRED, SCOPE, OUT = (
    Outcome.AUTHENTICATION_FAILED,
    Outcome.EXPIRED,
    Outcome.AUTHORIZATION_FAILED,
    Outcome.UNAVAILABLE,
)
ALICE = "alice@test.example"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return write_pki(tmp_path_factory.mktemp("openid") / "pki")


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[OpenIdProvider]:
    ports = Ports()
    running = OpenIdProvider(tmp_path_factory.mktemp("openid") / "provider", ports.take(), pki)
    running.start()
    yield running
    running.stop()
    ports.close()


@pytest.fixture
def running(provider: OpenIdProvider) -> Iterator[OpenIdProvider]:
    """The provider, for tests that stop it."""
    yield provider
    provider.stop()
    provider.start()


@pytest.fixture
async def source(provider: OpenIdProvider, pki: Pki) -> AsyncIterator[OAuthSource]:
    made = make_source(provider, pki)
    yield made
    await made.close()


def make_source(provider: OpenIdProvider, pki: Pki, **changes: Any) -> OAuthSource:
    given: dict[str, Any] = {
        "issuer": provider.issuer,
        "audience": AUDIENCE,
        "scopes": ("imap",),
        "name_claim": "email",
        "attributes": {"backend": "mail_host"},
        "introspection": introspection_settings(provider),
        "ca": pki.ca,
    }
    settings = OAuthIdentity.model_validate({**given, **changes})
    return OAuthSource(settings, NameRules(Names(default_domain="test.example")))


def introspection_settings(provider: OpenIdProvider, secret: str = INTROSPECTOR[1]) -> dict[str, Any]:
    given = Secret("env", "PORTER", secret.encode())
    return {"url": provider.introspection, "client_id": INTROSPECTOR[0], "client_secret": given}


async def outcome(source: OAuthSource, token: str) -> Outcome:
    try:
        answer = await ask(source, token)
    except Refused as refusal:
        return refusal.outcome
    assert isinstance(answer, Identity)
    return Outcome.OK


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        ("rs256", {"alg": "RS256", "typ": "at+jwt"}),
        ("es256", {"alg": "ES256", "typ": "at+jwt"}),
        ("plain-typ", {"alg": "RS256", "typ": "JWT"}),
        ("opaque", None),
    ],
)
async def test_tokens(provider: OpenIdProvider, source: OAuthSource, kind: str, header: dict[str, str] | None) -> None:
    token = provider.token("alice", kind)
    if header is None:
        assert "." not in token
    else:
        part = token.partition(".")[0]
        found = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        assert header.items() <= found.items(), "the provider issued another kind"
    answer = await ask(source, token, ALICE)
    assert isinstance(answer, Identity)
    assert (answer.name, answer.backend) == (ALICE, "d2")
    assert answer.expires_at == pytest.approx(time.time() + 300, abs=30)
    with pytest.raises(Refused, match="it is for") as caught:
        await ask(source, token, "bob@test.example")
    assert caught.value.outcome is NO


@pytest.mark.parametrize("kind", ["rs256", "opaque"])
async def test_tokens_that_do_not_count(provider: OpenIdProvider, source: OAuthSource, pki: Pki, kind: str) -> None:
    with pytest.raises(Refused, match="email is not verified"):
        await ask(source, provider.token("bob", kind))
    with pytest.raises(Refused, match="no claim email with a name"):
        await ask(source, provider.client_token(kind))
    by_subject = make_source(provider, pki, name_claim="sub")
    with pytest.raises(Refused, match=r"no claim sub with a name|it was issued to a client"):
        await ask(by_subject, provider.client_token(kind))
    await by_subject.close()
    strict = make_source(provider, pki, scopes=("imap", "mail"))
    assert await outcome(strict, provider.token("alice", kind)) is SCOPE
    await strict.close()
    if kind == "rs256":
        assert await outcome(source, provider.token("alice", "other")) is NO


async def test_tokens_signed_with_the_providers_keys(provider: OpenIdProvider, source: OAuthSource) -> None:
    now = int(time.time())
    good = provider.claims("alice")
    for key in (provider.rsa, provider.ec):
        assert await outcome(source, key.mint(good)) is Outcome.OK
        assert await outcome(source, key.mint(provider.claims("alice", exp=now - 60))) is EXPIRED
        assert await outcome(source, key.mint(provider.claims("alice", nbf=now + 60))) is NO
        assert await outcome(source, key.mint(provider.claims("alice", aud="smtp"))) is NO
        assert await outcome(source, key.mint(good, alg="none")) is NO
        assert await outcome(source, new_rsa_key(key.kid).mint(good)) is NO
    another = provider.rsa.mint(provider.claims("alice", iss="https://x.example"))
    assert await ask(source, another) == NotMine(f"issued by 'https://x.example', not by '{provider.issuer}'")


async def test_revoked(provider: OpenIdProvider, source: OAuthSource) -> None:
    token = provider.token("alice", "opaque")
    assert await outcome(source, token) is Outcome.OK
    provider.revoke(token)
    assert await ask(source, token) == NotMine("not active")
    assert await ask(source, "made-up") == NotMine("not active")


@pytest.mark.parametrize("method", ["basic", "post"])
async def test_introspection_alone(provider: OpenIdProvider, pki: Pki, method: str) -> None:
    introspection = {**introspection_settings(provider), "method": method}
    source = make_source(provider, pki, issuer=None, introspection=introspection)
    opaque = await outcome(source, provider.token("alice", "opaque"))
    jwt = await ask(source, provider.token("alice"))
    await source.close()
    assert opaque is Outcome.OK
    assert jwt == NotMine("introspection does not judge tokens of this kind")


async def test_rotation_without_a_restart(
    running: OpenIdProvider, source: OAuthSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "FETCH_SECONDS", 0.2)
    old_key, old_token = running.rsa, running.token("alice")
    assert await outcome(source, old_token) is Outcome.OK
    running.rotate()
    assert running.rsa.kid != old_key.kid
    assert await outcome(source, running.token("alice")) is Outcome.OK
    assert await outcome(source, running.token("alice", "es256")) is Outcome.OK
    assert await outcome(source, old_token) is NO, "its key was withdrawn"


async def test_provider_down(running: OpenIdProvider, source: OAuthSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "FETCH_SECONDS", 0.2)
    token, opaque = running.token("alice"), running.token("alice", "opaque")
    assert await outcome(source, token) is Outcome.OK
    running.stop()
    for _ in range(3):
        assert await outcome(source, token) is Outcome.OK
    assert await outcome(source, opaque) is OUT
    assert await outcome(source, new_rsa_key("unknown").mint(running.claims("alice"))) is OUT
    assert await outcome(source, token) is Outcome.OK
    running.start()
    assert await outcome(source, running.token("alice", "opaque")) is Outcome.OK


async def test_down_before_the_first_token(
    running: OpenIdProvider, source: OAuthSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "FETCH_SECONDS", 0.0)
    token = running.token("alice")
    running.stop()
    assert await outcome(source, token) is OUT
    running.start()
    assert await outcome(source, token) is Outcome.OK


async def test_probes(provider: OpenIdProvider, source: OAuthSource, pki: Pki) -> None:
    discovery, keys, introspection = await source.probe()
    assert [probe.problem for probe in (discovery, keys, introspection)] == ["", "", ""]
    assert discovery.what == f"{provider.issuer}: discovery"
    assert keys.detail == f"'{provider.rsa.kid}', '{provider.ec.kid}'"
    wrong = make_source(provider, pki, introspection=introspection_settings(provider, "wrong"))
    assert "401" in (await wrong.probe())[2].problem
    await wrong.close()
    untrusting = make_source(provider, pki, ca=pki.wrong_ca)
    assert "CERTIFICATE_VERIFY_FAILED" in (await untrusting.probe())[0].problem
    await untrusting.close()
