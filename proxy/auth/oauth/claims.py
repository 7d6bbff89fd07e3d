"""From claims to an identity: whose token it is, what for, and until when.

The claims of a JWT and the answer of an introspection have the same names (RFC 7519 §4.1, RFC 7662 §2.2) and are held
to the same rules, with two differences, since the issuer has just said that the token is active: `exp` may be missing,
and so may `aud` where the settings ask for scopes, which then say what the token is for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from proxy.auth.names import NameRules
from proxy.auth.oauth.strict_json import shown
from proxy.auth.oauth.tokens import refused
from proxy.model import NO_ATTRIBUTES, Identity
from proxy.outcome import Outcome, Refused
from proxy.settings.identity_models import OAuthIdentity

MAX_TIME = 2.0**53  # seconds; more than that, an integer does not fit a float
MAX_ATTRIBUTE_CHARACTERS = 1024

# What Keycloak signs beside access tokens, and what others call such tokens.
_OTHER_TYPES = frozenset({"id", "refresh", "offline", "logout"})
_OTHER_USES = frozenset({"id", "id_token", "refresh", "refresh_token"})
# RFC 7662 §2.2, RFC 6749 §7.1.
_BEARER = frozenset({"bearer", "access_token"})


class ClaimRules:
    """What claims have to say, and whom they make."""

    def __init__(self, settings: OAuthIdentity, rules: NameRules, source: str, now: Callable[[], float]) -> None:
        self._settings = settings
        self._rules = rules
        self._source = source
        self._now = now
        self._attributes = {key: claim for key, claim in settings.attributes.items() if key != "backend"}

    def identity(self, claims: Mapping[str, Any], *, introspected: bool) -> Identity:
        """Whom the token stands for.

        Args:
            claims: Of a JWT whose issuer and signature are right, or of an active token's introspection.
            introspected: Which of the two.
        Raises:
            Refused: AUTHENTICATION_FAILED, AUTHORIZATION_FAILED for a scope that is missing, EXPIRED.
        """
        _check_kind(claims)
        self._check_issuer(claims)
        self._check_audience(claims, introspected)
        expires_at = self._check_times(claims, introspected)
        self._check_scopes(claims)
        backend = self._settings.attributes.get("backend")
        return Identity(
            self._name(claims),
            self._source,
            None if backend is None else _attribute(claims, backend),
            self._kept(claims),
            expires_at=expires_at,
        )

    def _check_issuer(self, claims: Mapping[str, Any]) -> None:
        """For introspection, whose answer need not name it; of a JWT it is known to be right."""
        issuer = self._settings.issuer
        if issuer is not None and claims.get("iss", issuer) != issuer:
            raise refused(f"issued by {shown(claims['iss'])}, not by {shown(issuer)}")

    def _check_audience(self, claims: Mapping[str, Any], introspected: bool) -> None:
        """One of the token's audiences has to be one of ours. Source: RFC 7519 §4.1.3, RFC 9068 §4."""
        wanted, given = self._settings.audience, claims.get("aud")
        audiences = given if isinstance(given, list) else [given]
        if given is None and introspected:
            if not self._settings.scopes:
                raise refused("introspection names no audience, and no scopes are set that would tell what it is for")
        elif not any(audience in audiences for audience in wanted):
            raise refused(f"for the audience {shown(given)}, not for {' or '.join(wanted)} (audience)")

    def _check_times(self, claims: Mapping[str, Any], introspected: bool) -> float | None:
        """When it expires. Source: RFC 7519 §4.1.4 to §4.1.6."""
        now, leeway = self._now(), self._settings.leeway
        expires, begins, _ = _time(claims, "exp"), _time(claims, "nbf"), _time(claims, "iat")
        if expires is None:
            if not introspected:
                raise refused("exp is missing")
        elif now >= expires + leeway:
            raise Refused(Outcome.EXPIRED, f"the token: expired {now - expires:.0f} s ago")
        if begins is not None and now < begins - leeway:
            raise refused(f"it begins to count in {begins - now:.0f} s (nbf)")
        return expires

    def _check_scopes(self, claims: Mapping[str, Any]) -> None:
        """RFC 8693 §4.2 writes `scope` as text; others a list, some of them as `scp`."""
        if self._settings.scopes:
            granted = _words(claims, "scope") + _words(claims, "scp")
            for scope in self._settings.scopes:
                if scope not in granted:
                    raise Refused(Outcome.AUTHORIZATION_FAILED, f"the token lacks scope {scope}")

    def _name(self, claims: Mapping[str, Any]) -> str:
        claim = self._settings.name_claim
        name = claims.get(claim)
        if not isinstance(name, str) or not name:
            raise refused(f"there is no claim {claim} with a name in it (name_claim)")
        # Whoever may type an address into a form at the issuer would be the one it belongs to.
        if claim.lower() == "email" and claims.get("email_verified") is not True:
            raise refused("email is not verified")
        # RFC 9068 §5: the subject of a client's own token is the client, which may be called like a person.
        if claims.get("sub", "") == claims.get("client_id"):
            raise refused("it was issued to a client, not to a person")
        return self._rules.asserted(name)

    def _kept(self, claims: Mapping[str, Any]) -> Mapping[str, str]:
        if not self._attributes:
            return NO_ATTRIBUTES
        found = {key: _attribute(claims, claim) for key, claim in self._attributes.items()}
        return MappingProxyType({key: value for key, value in found.items() if value is not None})


def _check_kind(claims: Mapping[str, Any]) -> None:
    """Refuse what is no bearer token for access, though the same issuer vouches for it."""
    for name, others in (("typ", _OTHER_TYPES), ("token_use", _OTHER_USES)):
        kind = claims.get(name)
        if isinstance(kind, str) and kind.lower() in others:
            raise refused(f"{name} is {shown(kind)}: not an access token")
    kind = claims.get("token_type", "bearer")
    if not isinstance(kind, str) or kind.lower() not in _BEARER:
        raise refused(f"token_type is {shown(kind)}")
    # RFC 9449 §7.1 (DPoP), RFC 8705 §3.1 (mTLS): whoever found it would have it without the key's proof.
    if "cnf" in claims:
        raise refused("it is bound to a key (cnf), and a bearer shows no proof of that")


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519 §2)."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_TIME:
        raise refused(f"{name} is no time")
    return float(value)


def _words(claims: Mapping[str, Any], name: str) -> list[str]:
    value = claims.get(name, "")
    words = value.split(" ") if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise refused(f"{name} is no list of scopes")
    return words


def _attribute(claims: Mapping[str, Any], name: str) -> str | None:
    """A claim as an attribute: text as it is, numbers and booleans as JSON has them. None: it isn't there."""
    value = claims.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, int | float) and math.isfinite(value):
        value = json.dumps(value)
    if not isinstance(value, str) or not value.isprintable() or len(value) > MAX_ATTRIBUTE_CHARACTERS:
        raise refused(f"{name} is no short text")
    return value
