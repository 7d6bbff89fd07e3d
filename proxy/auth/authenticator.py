"""From credentials to an identity: the sources asked in their order, and what their answers come to.

The first yes or no counts: a source that knows the name has the last word on it, so that a password changed there does
not live on in a later source. Only "not mine" and "can't say now" pass the question on. An outage outweighs a later no:
the source that could not be asked might have said yes, and a client that hears of a wrong password asks its owner for
another.

A failed login costs one password hash, whatever the names: where a source that hashes knew the name it has spent it,
else one pretends to. So the time doesn't tell who is known.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.auth.names import NameRules
from proxy.auth.source import HashingSource, IdentitySource
from proxy.model import Credentials, Identity
from proxy.outcome import Outcome, Refused


class Authenticator:
    """The identity sources of a proxy, in the order of the settings."""

    def __init__(self, sources: Sequence[IdentitySource], rules: NameRules) -> None:
        self._rules = rules
        self._sources: dict[str, list[IdentitySource]] = {}
        for source in sources:
            for mechanism in sorted(source.mechanisms):
                self._sources.setdefault(mechanism, []).append(source)
        # The first source that hashes pretends for all.
        self._pretenders = {
            mechanism: hashing[0]
            for mechanism, able in self._sources.items()
            if (hashing := [source for source in able if isinstance(source, HashingSource)])
        }
        self.mechanisms = tuple(mechanism for mechanism in self._sources if mechanism != "LOGIN")  # for AUTH=

    async def authenticate(self, credentials: Credentials) -> Identity:
        """Find out who this is, and whether it may act as the one it asks for.

        Raises:
            Refused: AUTHENTICATION_FAILED, AUTHORIZATION_FAILED, UNAVAILABLE, or a source's final answer.
        Source: RFC 4422 §2 and §3.4.1.
        """
        # RFC 4513 §5.1.2: a bind with a name and no password may succeed, unauthenticated.
        if not credentials.secret:
            raise Refused(Outcome.AUTHENTICATION_FAILED, "the password is empty")
        name = self._rules.canonical(credentials.authentication_identity)
        identity = await self._ask(credentials, name)
        if credentials.authorization_identity:
            self._authorize(credentials.authorization_identity, name, identity)
        return identity

    async def _ask(self, credentials: Credentials, name: str) -> Identity:
        mechanism = credentials.mechanism
        unavailable = ""
        no: Refused | None = None
        hashed = False
        for source in self._sources.get(mechanism, ()):
            try:
                identity = await source.authenticate(credentials, name)
            except Refused as refusal:
                hashed = hashed or isinstance(source, HashingSource)
                if refusal.outcome is Outcome.UNAVAILABLE:
                    unavailable = unavailable or f"{source.name}: {refusal.detail}"
                    continue
                no = Refused(refusal.outcome, f"{source.name}: {refusal.detail}")
                break
            if identity is not None:
                return identity
        if not hashed and mechanism in self._pretenders:
            await self._pretenders[mechanism].pretend(credentials)
        if unavailable:
            raise Refused(Outcome.UNAVAILABLE, unavailable)
        raise no or Refused(Outcome.AUTHENTICATION_FAILED, "no source knows the name")

    def _authorize(self, asked: str, name: str, identity: Identity) -> None:
        """Nobody acts as somebody else here. Told after the password was found right (RFC 5530 §3)."""
        try:
            canonical = self._rules.canonical(asked)
        except Refused as refusal:
            raise Refused(Outcome.AUTHORIZATION_FAILED, f"the authorization identity: {refusal.detail}") from None
        if canonical not in (name, identity.name):
            raise Refused(Outcome.AUTHORIZATION_FAILED, "the authorization identity is somebody else's")
