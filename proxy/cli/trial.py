"""One login tried as `serve` would do it, with an eye on every step: what `imap-porter test-login` shows.

The story is told by those who tell it in service: the authenticator asks the sources, the cluster places the identity,
the pool logs in at the backend. Only the sources have somebody standing before them who notes what they answered. What
a service remembers or counts has no part in it: no cache, no limits, no metrics.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

import trio

from proxy.auth.authenticator import Authenticator
from proxy.auth.names import NameRules
from proxy.auth.scram_keys import verify_password
from proxy.auth.source import (
    SCRAM_MECHANISMS,
    TOKEN_MECHANISMS,
    AccountSource,
    Answer,
    IdentitySource,
    NotMine,
    Probe,
)
from proxy.backends.backend import SAMPLE_VISITOR
from proxy.backends.discovery import look_once
from proxy.backends.login import take_leave
from proxy.backends.pool import Pool
from proxy.model import Account, Credentials, Endpoint, Identity, KeyShape, Origin, Placement
from proxy.outcome import Outcome, Refused
from proxy.routing.cluster import Cluster
from proxy.settings.models import Settings
from proxy.settings.units import duration_text

NO_SECRET_MECHANISMS = frozenset({"EXTERNAL"})
_LOOKING_UP = SCRAM_MECHANISMS | {"EXTERNAL"}  # sources are asked for an account, and are shown no secret
# A decoy's salt is told to nobody here, so it need not be a secret.
_DECOY_KEY = bytes(32)

_Found = TypeVar("_Found", Answer, Account | None)


class Said(StrEnum):
    """What a source can say."""

    YES = "yes"
    NO = "no"
    NOT_MINE = "not mine"
    UNAVAILABLE = "can't say now"
    NOT_ASKED = "not asked"


@dataclass(frozen=True, slots=True)
class Asked:
    """One source and its answer."""

    source: str
    said: Said
    why: str
    seconds: float | None = None
    identity: Identity | None = None
    counts: bool = True  # False: a login would have stopped before it


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is tried."""

    name: str
    mechanism: str
    secret: bytes = field(repr=False)
    client_address: str
    ask_all: bool = False


@dataclass(frozen=True, slots=True)
class BackendReply:
    """What a backend answered to the login."""

    backend: str
    refusal: Refused | None
    seconds: float
    capability: tuple[bytes, ...] = ()
    notes: tuple[bytes, ...] = ()  # what it says to the user beside


@dataclass(slots=True)
class Trial:
    """How far a login came."""

    attempt: Attempt
    canonical: str = ""  # "": there is none
    asked: list[Asked] = field(default_factory=list)
    identity: Identity | None = None
    placement: Placement | None = None
    reply: BackendReply | None = None
    refusal: Refused | None = None  # None: the login works

    @property
    def outcome(self) -> Outcome:
        return Outcome.OK if self.refusal is None else self.refusal.outcome


class Trier:
    """The rooms that one login needs. It belongs to one trio loop, and may be made before that runs."""

    def __init__(self, settings: Settings, sources: Sequence[IdentitySource]) -> None:
        self._settings = settings
        self._rules = NameRules(settings.names)
        self._notes: list[Asked] = []
        self._witnesses = [_witness(source, self._notes) for source in sources]
        keyed = settings.backends.login.method in ("master", "authzid")
        self._authenticator = Authenticator(
            self._witnesses, self._rules, decoy_key=(lambda: _DECOY_KEY) if keyed else None
        )
        self._cluster = Cluster(settings.backends, settings.routing, 0.0)
        self._backends = Pool(settings.backends, settings.timeouts, limits=settings.limits.logins_per_backend)

    def why_not_offered(self, mechanism: str) -> str:
        """Why no client may use a mechanism here; "": it may."""
        if mechanism == "LOGIN" or mechanism in self._authenticator.mechanisms:
            return ""
        if mechanism == "EXTERNAL":
            certified = any(listener.client_certificates is not None for listener in self._settings.listeners)
            return "" if certified else "no listener has client_certificates"
        if mechanism in SCRAM_MECHANISMS:
            return "it needs SCRAM keys in a file or ldap source, and backends.login.method master or authzid"
        return "no identity source can judge it"

    async def log_in(self, attempt: Attempt) -> Trial:
        """Try it, within `timeouts.login`. Nothing stays open."""
        trial = Trial(attempt)
        seconds = self._settings.timeouts.login
        with trio.move_on_after(seconds) as scope:
            try:
                await self._go(trial)
            except Refused as refusal:
                trial.refusal = refusal
        if scope.cancelled_caught:
            trial.refusal = Refused(Outcome.LOGIN_TIMEOUT, f"not done within timeouts.login, {duration_text(seconds)}")
        if attempt.ask_all:
            with trio.move_on_after(seconds):
                await self._ask_the_others(trial)
        trial.asked = [self._row(witness, attempt.mechanism) for witness in self._witnesses]
        return trial

    async def _go(self, trial: Trial) -> None:
        """As session.login does it."""
        attempt = trial.attempt
        if attempt.name or attempt.mechanism not in TOKEN_MECHANISMS:
            trial.canonical = self._rules.canonical(attempt.name)
        credentials = await self._credentials(attempt)
        trial.identity = await self._authenticator.authenticate(credentials, _origin(attempt))
        await self._discover()
        placement = self._cluster.place(trial.identity)
        if not placement.home:
            raise Refused(Outcome.UNAVAILABLE, placement.problem)
        trial.placement = placement
        trial.reply = await self._log_in_at(placement.home, trial.identity, credentials)
        if trial.reply.refusal is not None:
            raise trial.reply.refusal

    async def _discover(self) -> None:
        """Ask DNS for the backends that it names."""
        settings = self._settings.backends.discovery
        if settings is not None:
            found = await look_once(settings, pinned=self._settings.backends.pins_names)
            self._cluster.discovered([each.server for each in found], 0.0)
            own = {server.name for server in self._settings.backends.servers}
            addresses = {each.server.name: each.addresses for each in found if each.server.name not in own}
            self._backends.update(self._cluster.servers(), addresses)

    async def _credentials(self, attempt: Attempt) -> Credentials:
        if attempt.mechanism not in SCRAM_MECHANISMS:
            return _credentials(attempt)
        account = await self._authenticator.account(attempt.name)
        assert account.scram is not None
        fits = verify_password(account.scram, attempt.secret)
        last = self._notes[-1]
        if last.said is Said.YES and not account.identity.source:
            self._notes[-1] = replace(last, said=Said.NO, why="it knows the name and has no SCRAM keys for it")
        elif last.said is Said.YES and not fits:
            self._notes[-1] = replace(last, said=Said.NO, why="the password does not fit its SCRAM keys")
        # The refusal then says what the table says: whose no it is, or why it is nobody's name.
        telling = self._notes[-1:] if self._notes[-1].said is Said.NO else self._notes
        problem = "" if fits else "; ".join(f"{note.source}: {note.why}" for note in telling)
        return replace(_credentials(attempt), secret=b"", proven=account if fits else None, problem=problem)

    async def _log_in_at(self, backend: str, identity: Identity, credentials: Credentials) -> BackendReply:
        began = trio.current_time()
        try:
            session = await self._backends[backend].open(identity, credentials, lambda: SAMPLE_VISITOR)
        except Refused as refusal:
            return BackendReply(backend, refusal, trio.current_time() - began)
        seconds = trio.current_time() - began
        await take_leave(session.stream)
        session.stream.close()
        return BackendReply(backend, None, seconds, session.capability, session.notes)

    async def _ask_the_others(self, trial: Trial) -> None:
        """Those that a login didn't come to. Their answers are shown and change nothing."""
        attempt = trial.attempt
        asked = {note.source for note in self._notes}
        # No source is ever shown an empty secret, or a name that is none.
        nameless = not trial.canonical and (attempt.name or attempt.mechanism not in TOKEN_MECHANISMS)
        if nameless or not (attempt.secret or attempt.mechanism in NO_SECRET_MECHANISMS):
            return
        for witness in self._witnesses:
            if witness.name in asked or _why_never(witness, attempt.mechanism):
                continue
            witness.counts = False
            try:
                if isinstance(witness, AccountSource) and attempt.mechanism in _LOOKING_UP:
                    await witness.look_up(trial.canonical)
                else:
                    await witness.authenticate(_credentials(attempt), trial.canonical, _origin(attempt))
            except Refused:
                pass  # noted

    def _row(self, witness: _Witness, mechanism: str) -> Asked:
        for note in self._notes:
            if note.source == witness.name:
                return note
        why = _why_never(witness, mechanism)
        if not why:
            counting = [note for note in self._notes if note.counts]
            why = f"{counting[-1].source} has answered" if counting else "the login ended before"
        return Asked(witness.name, Said.NOT_ASKED, why)


class _Witness:
    """Stands before a source and notes what it answers.

    It hides that a source hashes: who tries a login here may learn from the time whether a name is known.
    """

    def __init__(self, source: IdentitySource, notes: list[Asked]) -> None:
        self._source = source
        self._notes = notes
        self.counts = True

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def mechanisms(self) -> frozenset[str]:
        return self._source.mechanisms

    async def authenticate(self, credentials: Credentials, name: str, origin: Origin) -> Answer:
        return await self._noted(lambda: self._source.authenticate(credentials, name, origin))

    async def probe(self) -> Sequence[Probe]:
        return await self._source.probe()

    async def _noted(self, ask: Callable[[], Awaitable[_Found]]) -> _Found:
        began = trio.current_time()
        # What stands here if neither an answer nor a refusal comes: the deadline of the whole login.
        said, why, identity = Said.UNAVAILABLE, "no answer before the login's deadline", None
        try:
            found = await ask()
            said, why, identity = _understood(found)
        except Refused as refusal:
            said = Said.UNAVAILABLE if refusal.outcome is Outcome.UNAVAILABLE else Said.NO
            why = refusal.detail or refusal.outcome.value
            raise
        finally:
            seconds = trio.current_time() - began
            self._notes.append(Asked(self.name, said, why, seconds, identity, self.counts))
        return found


class _AccountWitness(_Witness):
    """The same before a source that knows names without being shown their secrets."""

    def __init__(self, source: AccountSource, notes: list[Asked]) -> None:
        super().__init__(source, notes)
        self._accounts = source

    @property
    def knows_scram(self) -> bool:
        return self._accounts.knows_scram

    @property
    def usual_shape(self) -> KeyShape:
        return self._accounts.usual_shape

    async def look_up(self, name: str) -> Account | None:
        return await self._noted(lambda: self._accounts.look_up(name))


def _witness(source: IdentitySource, notes: list[Asked]) -> _Witness:
    return _AccountWitness(source, notes) if isinstance(source, AccountSource) else _Witness(source, notes)


def _understood(found: Answer | Account | None) -> tuple[Said, str, Identity | None]:
    match found:
        case None:
            return Said.NOT_MINE, NotMine().why, None
        case NotMine():
            return Said.NOT_MINE, found.why, None
        case Account():
            return Said.YES, f"it knows {found.identity.name}", found.identity
        case Identity(verified=False):
            return Said.YES, "the backend decides", found
        case Identity():
            return Said.YES, found.name, found


def _why_never(source: IdentitySource, mechanism: str) -> str:
    """Why a source is never asked at a login by this mechanism; "": it may be."""
    if mechanism in _LOOKING_UP:
        return "" if isinstance(source, AccountSource) else "it has to see a secret"
    return "" if mechanism in source.mechanisms else f"it cannot judge {mechanism}"


def _credentials(attempt: Attempt) -> Credentials:
    return Credentials(attempt.mechanism, attempt.name, "", attempt.secret)


def _origin(attempt: Attempt) -> Origin:
    """A first try of a client inside TLS."""
    return Origin(Endpoint(attempt.client_address, 0), secure=True)
