"""`oauth: {issuer: …, audience: …}`: bearer tokens of one issuer, for XOAUTH2 and OAUTHBEARER.

A JWT is judged here, by the issuer's keys; any other token by asking the issuer, where introspection is set. Without
`issuer` every token is asked about.

Several issuers are several sources. What belongs to another issuer, or may, is "not mine": a JWT that names another,
an opaque token that introspection doesn't know or that there is no introspection for. What this issuer has made and is
no good is a no.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from proxy.auth.names import NameRules
from proxy.auth.oauth.claims import ClaimRules
from proxy.auth.oauth.introspection import Introspector
from proxy.auth.oauth.keys import Issuer, KeyRing
from proxy.auth.oauth.strict_json import shown
from proxy.auth.oauth.tokens import Jwt, read_jwt, refused, token_text
from proxy.auth.source import TOKEN_MECHANISMS, Answer, NotMine, Probe
from proxy.auth.web import Web
from proxy.model import Credentials, Identity, Origin
from proxy.settings.identity_models import OAuthIdentity


class OAuthSource:
    """One issuer of tokens."""

    mechanisms = TOKEN_MECHANISMS

    def __init__(
        self,
        settings: OAuthIdentity,
        rules: NameRules,
        name: str = "oauth",
        *,
        web: Web | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Make ready; nothing is asked before the first token.

        Args:
            name: For the log and metrics; the second source of a kind has another.
            web: Given only by tests, as is `now`, the time of `exp`.
        """
        self.name = name
        self.scopes = settings.scopes
        self._issuer = settings.issuer
        self._web = web or Web(settings.ca, settings.timeout)
        self._claims = ClaimRules(settings, rules, name, now)
        self._keys: KeyRing | None = None
        self._introspector: Introspector | None = None
        # For RFC 7628's failure challenge: where a client finds out how to get a token.
        self.openid_configuration: str | None = None
        if settings.issuer is not None:
            issuer = Issuer(settings.issuer, settings.jwks_url)
            self._keys = KeyRing(issuer, self._web, name)
            if settings.jwks_url is None:
                self.openid_configuration = issuer.discovery_urls[0]
        if settings.introspection is not None:
            self._introspector = Introspector(settings.introspection, self._web, settings.timeout, name)

    async def authenticate(self, credentials: Credentials, name: str, origin: Origin) -> Answer:
        """Judge a token, and compare whom it names with whom the client named.

        Raises:
            Refused: AUTHENTICATION_FAILED, AUTHORIZATION_FAILED (a scope is missing), EXPIRED, UNAVAILABLE.
        """
        token = token_text(credentials.secret)
        jwt = None if self._keys is None else read_jwt(token)
        answer = await (self._introspect(token) if jwt is None else self._verify(jwt))
        if isinstance(answer, Identity) and name and name != answer.name:
            raise refused(f"it is for {shown(answer.name)}")
        return answer

    async def _verify(self, jwt: Jwt) -> Answer:
        assert self._keys is not None
        # Before anything is said against it: the source it belongs to comes later.
        issuer = jwt.claims.get("iss")
        if issuer != self._issuer:
            if "iss" not in jwt.claims:
                return NotMine("it names no issuer")
            return NotMine(f"issued by {shown(issuer)}, not by {shown(self._issuer)}")
        jwt.check_header()
        if not await self._keys.verify(jwt):
            raise refused("the signature is not the issuer's")
        return self._claims.identity(jwt.claims, introspected=False)

    async def _introspect(self, token: str) -> Answer:
        if self._introspector is None:
            return NotMine("not a JWT, and there is no introspection")
        claims = await self._introspector.ask(token)
        if isinstance(claims, NotMine):
            return claims
        return self._claims.identity(claims, introspected=True)

    async def probe(self) -> Sequence[Probe]:
        """Discovery, keys and introspection, all asked now."""
        probes: list[Probe] = []
        if self._keys is not None:
            probes += await self._keys.probe()
        if self._introspector is not None:
            probes.append(await self._introspector.probe())
        return probes

    async def close(self) -> None:
        """Give connections back."""
        await self._web.close()
