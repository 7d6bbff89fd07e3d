"""What the tests of the token source share: an issuer without a network, its keys, and its claims."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import trio

from proxy.auth.names import NameRules
from proxy.auth.oauth.source import OAuthSource
from proxy.auth.source import Answer
from proxy.auth.web import Web, WebAnswer, WebFailed
from proxy.model import Credentials, Endpoint, Origin
from proxy.settings.identity_models import OAuthIdentity
from proxy.settings.models import Names
from proxy.settings.secret import Secret
from tests.servers.openid import SigningKey, new_ec_key, new_rsa_key

ISSUER = "https://id.example.org/realms/mail"
DISCOVERY = f"{ISSUER}/.well-known/openid-configuration"
KEYS = "https://id.example.org/keys"
INTROSPECTION = "https://id.example.org/introspect"
NOW = 1_700_000_000.0

Reply = WebAnswer | WebFailed | Mapping[str, Any] | bytes | int


@cache
def rsa_key(kid: str | None = "rsa1", algorithm: str = "RS256", bits: int = 2048) -> SigningKey:
    """One key for all tests that name it alike: making one takes a while."""
    return new_rsa_key(kid, algorithm, bits)


@cache
def ec_key(kid: str | None = "ec1") -> SigningKey:
    return new_ec_key(kid)


def key_set(*keys: SigningKey | Mapping[str, Any]) -> dict[str, Any]:
    return {"keys": [key.jwk() if isinstance(key, SigningKey) else key for key in keys]}


def claims(**changes: Any) -> dict[str, Any]:
    """What a good token says, and anything else; None takes a claim away."""
    usual = {"iss": ISSUER, "sub": "alice", "aud": "imap", "scope": "openid imap", "exp": NOW + 300, "iat": NOW}
    return {key: value for key, value in (usual | changes).items() if value is not None}


class FakeWeb(Web):
    """Answers out of a table of URLs, and remembers what it was asked."""

    def __init__(self, **pages: Reply) -> None:
        self.pages: dict[str, Reply] = dict(pages)
        self.asked: list[str] = []
        self.forms: list[tuple[Mapping[str, str], tuple[str, str] | None]] = []
        self.seconds = 0.0  # each answer takes
        self.under_way = self.most_under_way = 0

    async def get(self, url: str, *, max_bytes: int, headers: Mapping[str, str] | None = None) -> WebAnswer:
        return await self._reply(url, max_bytes)

    async def post_form(
        self, url: str, form: Mapping[str, str], *, max_bytes: int, basic: tuple[str, str] | None = None
    ) -> WebAnswer:
        self.forms.append((form, basic))
        return await self._reply(url, max_bytes)

    async def close(self) -> None:
        return

    async def _reply(self, url: str, max_bytes: int) -> WebAnswer:
        self.asked.append(url)
        reply = self.pages.get(url, 404)  # as it is when the question arrives
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await trio.sleep(self.seconds)
        finally:
            self.under_way -= 1
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, WebAnswer):
            return reply
        if isinstance(reply, int):
            return WebAnswer(reply, (), b"")
        body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        if len(body) > max_bytes:
            raise WebFailed("too large")
        return WebAnswer(200, (), body)


def issuer_web(*keys: SigningKey | Mapping[str, Any]) -> FakeWeb:
    """An issuer with these keys, and the two that most tests use."""
    web = FakeWeb()
    web.pages = {DISCOVERY: {"issuer": ISSUER, "jwks_uri": KEYS}, KEYS: key_set(rsa_key(), ec_key(), *keys)}
    return web


def make_source(web: Web, *, now: Callable[[], float] = lambda: NOW, **changes: Any) -> OAuthSource:
    """A source with the issuer above. Keyword arguments are settings; None takes one away."""
    given = {"issuer": ISSUER, "audience": "imap", **changes}
    settings = OAuthIdentity.model_validate({key: value for key, value in given.items() if value is not None})
    return OAuthSource(settings, NameRules(Names(default_domain="example.org")), web=web, now=now)


def introspection(method: str = "basic") -> dict[str, Any]:
    secret = Secret("env", "PORTER", b"its secret+1:%")
    return {"url": INTROSPECTION, "client_id": "imap porter", "client_secret": secret, "method": method}


async def ask(source: OAuthSource, token: str | bytes, name: str = "") -> Answer:
    """Log in with a token."""
    secret = token if isinstance(token, bytes) else token.encode()
    credentials = Credentials("OAUTHBEARER", name, "", secret)
    return await source.authenticate(credentials, name, Origin(Endpoint("192.0.2.1", 50000), secure=True))
