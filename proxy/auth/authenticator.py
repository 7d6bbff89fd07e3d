"""From credentials to an identity: the sources asked in their order, and what their answers come to.

The first yes or no counts: a source that knows the name has the last word on it, so that a password changed there does
not live on in a later source. Only "not mine" and "can't say now" pass the question on. An outage outweighs a later no:
the source that could not be asked might have said yes, and a client that hears of a wrong password asks its owner for
another.

A failed login costs one password hash, whatever the names: where a source that hashes knew the name it has spent it,
else one pretends to. So the time doesn't tell who is known.

SCRAM and EXTERNAL show no secret. There the sources that know names without one are asked for the account; the
mechanism, or TLS, has the proof.

Deliveries show nothing but a name. The same sources are asked; but there an outage stands, whatever a later source
would say. Mail can wait, and must not go where its owner's sessions don't.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from proxy.auth import answers
from proxy.auth.answers import Answers
from proxy.auth.names import MAX_OCTETS, NameRules
from proxy.auth.scram_keys import decoy_keys
from proxy.auth.source import (
    SCRAM_MECHANISMS,
    TOKEN_MECHANISMS,
    AccountSource,
    FindingSource,
    HashingSource,
    IdentitySource,
    NotMine,
)
from proxy.model import Account, Credentials, Identity, Origin
from proxy.outcome import Outcome, Refused

_SourceType = TypeVar("_SourceType", bound=IdentitySource)
_Found = TypeVar("_Found", Identity, Account)


class Authenticator:
    """The identity sources of a proxy, in the order of the settings."""

    def __init__(
        self,
        sources: Sequence[IdentitySource],
        rules: NameRules,
        *,
        decoy_key: Callable[[], bytes] | None = None,
    ) -> None:
        """Args:
        decoy_key: Tells what the salts of unknown names are made from: secret, and the same in every process and proxy
            of a site. None: nobody logs in without showing a secret, since no backend would let the proxy in then.
        """
        self.sources = tuple(sources)
        self._answers = Answers(source.name for source in sources)
        self._rules = rules
        self._decoy_key = decoy_key
        self._accounts = tuple(source for source in sources if isinstance(source, AccountSource))
        self._finders = tuple((source.name, _finder(source)) for source in self._accounts)
        self._by_mechanism: dict[str, list[IdentitySource]] = {}
        for source in sources:
            for mechanism in sorted(source.mechanisms):
                self._by_mechanism.setdefault(mechanism, []).append(source)
        hashing = [source for source in sources if isinstance(source, HashingSource)]
        self._hashing = frozenset(source.name for source in hashing)
        # The first source that hashes pretends for all.
        self._pretenders = {mechanism: source for source in reversed(hashing) for mechanism in source.mechanisms}
        # The first source that holds SCRAM keys shows how those of unknown names have to look.
        keyed = [source for source in self._accounts if source.knows_scram] if decoy_key is not None else []
        self._pattern = keyed[0] if keyed else None
        # LOGIN stands for the command; EXTERNAL is the listener's to offer.
        self.mechanisms = frozenset(self._by_mechanism) | (SCRAM_MECHANISMS if keyed else frozenset())

    @property
    def usable(self) -> bool:
        """Whether logins can be judged, so far as is known by the last ones."""
        return self._answers.usable

    async def authenticate(self, credentials: Credentials, origin: Origin) -> Identity:
        """Find out who this is, and whether it may act as the one it asks for.

        Raises:
            Refused: AUTHENTICATION_FAILED, AUTHORIZATION_FAILED, UNAVAILABLE, or a source's final answer.
        Source: RFC 4422 §2 and §3.4.1.
        """
        mechanism = credentials.mechanism
        if mechanism in SCRAM_MECHANISMS:
            name, identity = _proven(credentials)
        elif mechanism == "EXTERNAL":
            name, identity = await self._certified(credentials)
        else:
            # RFC 4513 §5.1.2: a bind with a name and no password may succeed, unauthenticated.
            if not credentials.secret:
                what = "no token: the client asks what is needed" if mechanism in TOKEN_MECHANISMS else "no password"
                raise Refused(Outcome.AUTHENTICATION_FAILED, what)
            nameless = not credentials.authentication_identity and mechanism in TOKEN_MECHANISMS
            name = "" if nameless else self._rules.canonical(credentials.authentication_identity)
            identity = await self._ask(credentials, name, origin)
        if credentials.authorization_identity:
            self._authorize(credentials.authorization_identity, name, identity)
        return identity

    def known_as(self, spelled: str) -> str:
        """What limits count a name by: its canonical form, or what there is of it where it is no name."""
        try:
            return self._rules.canonical(spelled)
        except Refused:
            return spelled[:MAX_OCTETS]

    async def account(self, spelled: str) -> Account:
        """The account with SCRAM keys of a name; for a name without one it looks like any other and nobody fits it.

        Raises:
            Refused: AUTHENTICATION_FAILED: this is no name. UNAVAILABLE: it can't be said now.
        Source: RFC 5802 §9 on what unknown names may tell.
        """
        assert self._decoy_key is not None
        assert self._pattern is not None
        name = self._rules.canonical(spelled)
        found = await self._look_up(name)
        if isinstance(found, Account) and found.scram is not None:
            return found
        # An identity is not told: it must never come out of this, whatever is proven.
        return Account(Identity(name, ""), decoy_keys(name, self._decoy_key(), self._pattern.usual_shape))

    async def find(self, spelled: str) -> Identity | None:
        """Whom a name belongs to, as far as it can be told without a secret. It proves nothing about whoever asks.

        Returns:
            None: nobody can have this name here. An identity without a source: there are sources that cannot tell
            before they have seen a secret, so the name has to do.
        Raises:
            Refused: UNAVAILABLE: it can't be said now, or what is known of this name is at odds with the settings.
        """
        try:
            name = self._rules.canonical(spelled)
        except Refused:
            return None
        for source, find in self._finders:
            began = time.monotonic()
            try:
                found = await find(name)
            except Refused as refusal:
                self._answers.heard(source, answers.UNAVAILABLE, time.monotonic() - began)
                # A final no about a person, too: it doesn't say where that person's mail is.
                detail = f"{source}: {refusal.detail}"
                raise Refused(Outcome.UNAVAILABLE, detail, person=refusal.person) from None
            kind = answers.NOT_MINE if found is None else answers.YES
            self._answers.heard(source, kind, time.monotonic() - began)
            if found is not None:
                return found
        all_can_tell = self._accounts and len(self._accounts) == len(self.sources)
        return None if all_can_tell else Identity(name, "")

    async def _ask(self, credentials: Credentials, name: str, origin: Origin) -> Identity:
        mechanism = credentials.mechanism
        hashed = False

        async def ask(source: IdentitySource) -> Identity | NotMine:
            nonlocal hashed
            try:
                return await source.authenticate(credentials, name, origin)
            except Refused:
                hashed = hashed or source.name in self._hashing
                raise

        try:
            found = await self._first(self._by_mechanism.get(mechanism, ()), ask)
        except Refused:
            if not hashed and mechanism in self._pretenders:
                await self._pretenders[mechanism].pretend(credentials, name)
            raise
        return found

    async def _look_up(self, name: str) -> Account | NotMine:
        """What the first source that knows the name says of it."""

        async def ask(source: AccountSource) -> Account | NotMine:
            found = await source.look_up(name)
            return NotMine() if found is None else found

        try:
            return await self._first(self._accounts, ask)
        except Refused as refusal:
            if refusal.outcome is Outcome.UNAVAILABLE:
                raise
            return NotMine(refusal.detail)

    async def _certified(self, credentials: Credentials) -> tuple[str, Identity]:
        """Who a client certificate belongs to. The sources that know names have to know it, where there are any."""
        if not credentials.authentication_identity:
            raise Refused(Outcome.AUTHENTICATION_FAILED, "the certificate does not hold exactly one name where asked")
        name = self._rules.canonical(credentials.authentication_identity)
        identity = Identity(name, "certificate")
        if self._accounts:
            found = await self._look_up(name)
            if isinstance(found, NotMine):
                raise Refused(Outcome.AUTHENTICATION_FAILED, f"no source knows the certificate's name: {found.why}")
            identity = found.identity
        return name, replace(identity, expires_at=credentials.expires_at)

    async def _first(
        self, sources: Sequence[_SourceType], ask: Callable[[_SourceType], Awaitable[_Found | NotMine]]
    ) -> _Found:
        """The first answer that counts.

        Raises:
            Refused: A source's no; UNAVAILABLE, where one of those before it could not say; or nobody's it is.
        """
        unavailable, outage = "", False
        whys: list[str] = []
        for source in sources:
            kind, began = "", time.monotonic()
            try:
                found = await ask(source)
                kind = answers.NOT_MINE if isinstance(found, NotMine) else answers.YES
            except Refused as refusal:
                detail = f"{source.name}: {refusal.detail}"
                if refusal.outcome is Outcome.UNAVAILABLE:
                    kind, unavailable = answers.UNAVAILABLE, unavailable or detail
                    outage = outage or not refusal.person
                    continue
                kind = answers.NO
                if unavailable:
                    break
                self._answers.judged()
                raise Refused(refusal.outcome, detail, limit=refusal.limit, wait_seconds=refusal.wait_seconds) from None
            finally:
                if kind:  # else the client has left
                    self._answers.heard(source.name, kind, time.monotonic() - began)
            if not isinstance(found, NotMine):
                self._answers.judged()
                return found
            whys.append(f"{source.name}: {found.why}")
        if outage:
            self._answers.unjudged()
        if unavailable:
            raise Refused(Outcome.UNAVAILABLE, unavailable)
        self._answers.judged()
        raise Refused(Outcome.AUTHENTICATION_FAILED, "; ".join(whys) or "no source can judge this mechanism")

    def _authorize(self, asked: str, name: str, identity: Identity) -> None:
        """Nobody acts as somebody else here. Told after the password was found right (RFC 5530 §3)."""
        try:
            canonical = self._rules.canonical(asked)
        except Refused as refusal:
            raise Refused(Outcome.AUTHORIZATION_FAILED, f"the authorization identity: {refusal.detail}") from None
        if canonical not in (name, identity.name):
            raise Refused(Outcome.AUTHORIZATION_FAILED, "the authorization identity is somebody else's")


def _finder(source: AccountSource) -> Callable[[str], Awaitable[Identity | None]]:
    """How a source is asked whom a name belongs to: what it remembers, or else the account."""
    if isinstance(source, FindingSource):
        return source.find

    async def find(name: str) -> Identity | None:
        account = await source.look_up(name)
        return None if account is None else account.identity

    return find


def _proven(credentials: Credentials) -> tuple[str, Identity]:
    """Who has shown to know the keys of an account (RFC 5802 §3)."""
    account = credentials.proven
    if account is None or not account.identity.source:  # a decoy's keys cannot be known, and would not count
        raise Refused(Outcome.AUTHENTICATION_FAILED, credentials.problem or "the proof does not fit the name's keys")
    return account.identity.name, account.identity
