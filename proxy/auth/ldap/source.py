"""The directory as an identity source: `ldap` of the settings.

A login is one question to one server, asked in one thread: with `search`, the entry of the name is looked for and then
bound as; with `user_dn`, the bind comes first and the entry is read only if something of it is mapped. Servers are
asked in the order of the settings. One that does not answer passes the question on to the next, with a share of the
time for each that is thought to be up; a server's "no" is final.

What an entry says is looked at once the password was right, so that only its owner learns that it is at odds with the
settings. That a name has two entries shows before; it is UNAVAILABLE and not a no: whose password would be judged is
open, and a client that is told of a wrong one asks its owner for another. Nor is it an outage, though: the directory
has answered, so the refusal says that it concerns this person alone.

Where an entry is found by the local part of a name and does not tell whose it is, only names of the default domain are
known here: by her own password alice@a.example would else become alice@b.example.
"""

from __future__ import annotations

import ssl
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import TypeVar

import trio

from proxy.auth.ldap.connection import Connector, Found, check_filter
from proxy.auth.ldap.connections import Connections
from proxy.auth.ldap.entries import Entry, EntryReader, Misfit
from proxy.auth.ldap.server import LdapServer, Question
from proxy.auth.ldap.template import Template, common_ancestor
from proxy.auth.ldap.verdicts import (
    NO_SUCH_OBJECT,
    SIZE_LIMIT_EXCEEDED,
    SUCCESS,
    ServerFailed,
    raise_failure,
    raise_unless_bound,
)
from proxy.auth.names import NameRules
from proxy.auth.source import PASSWORD_MECHANISMS, Answer, NotMine, Probe
from proxy.model import Account, Credentials, Identity, KeyShape, Origin
from proxy.outcome import Outcome, Refused
from proxy.settings.identity_models import LdapIdentity

_ANY_ENTRY = "(objectClass=*)"
# Before any keys were seen. RFC 7677 §4: 4096 are the least, and what directories make.
_FIRST_GUESS = KeyShape(iterations=4096, salt_octets=16)
_MOST_SHAPES = 16
_MOST_SHOWN = 200  # characters of a filter in the log; what is filled in is escaped, so all of it can be read
# A name that nobody has, for the filter to be tried with; RFC 2606 §2 keeps the domain from being anybody's.
_NOBODY = "imap-porter-probe@porter.invalid"

T = TypeVar("T")


def ldap_source(settings: LdapIdentity, rules: NameRules, name: str = "ldap") -> LdapSource:
    """The source for these settings: one that can look names up, where they allow it.

    Raises:
        ValueError: `search.filter` is no filter, `ca` holds no certificates, or `bind.password` is not UTF-8. The text
            begins with the key.
    """
    if settings.search is None and settings.bind is None:
        return LdapSource(settings, rules, name)
    return LdapAccountSource(settings, rules, name)


class LdapSource:
    """A directory in which names have passwords."""

    mechanisms = PASSWORD_MECHANISMS

    def __init__(self, settings: LdapIdentity, rules: NameRules, name: str = "ldap") -> None:
        """Make ready; nothing is connected to.

        Raises:
            ValueError: As for ldap_source().
        """
        self.name = name
        self._reader = EntryReader(settings.attributes, rules, name)
        self._search = settings.search
        self._service_reads = settings.bind is not None
        self._timeout_seconds = settings.timeout
        if settings.bind is not None and settings.bind.password is not None:
            _check_utf8(settings.bind.password.value)
        # The only domain whose names are known here; None: any.
        self._domain = rules.canonical("x").partition("@")[2] if settings.found_by_local_part else None
        template = settings.user_dn if settings.search is None else settings.search.filter
        assert template is not None
        self._template = Template(template)
        # Where the entries are that the service account reads; "": it reads none, or any place may be one's.
        if self._search is not None:
            self._base = self._search.base
        else:
            self._base = common_ancestor(template) if self._service_reads else ""
        if self._search is not None:
            try:
                check_filter(self._template.fill(_NOBODY) or "")
            except ValueError as exc:
                raise ValueError(f"search.filter: {exc}") from None
        context = _tls_context(settings)
        self._servers = tuple(
            LdapServer(
                str(url),
                Connector(url, context, settings.start_tls, settings.connect_timeout),
                settings.bind,
                pool=settings.pool,
                operation_seconds=settings.timeout / 2,  # a server that hangs leaves time for the next
            )
            for url in settings.urls
        )

    async def authenticate(self, credentials: Credentials, name: str, origin: Origin) -> Answer:
        """Find the entry of a name and bind as it with the password.

        Raises:
            Refused: AUTHENTICATION_FAILED, EXPIRED; CONTACT_ADMIN: the password is right, but the entry does not say
                what the settings count on; UNAVAILABLE.
        """
        secret = credentials.secret
        # RFC 4513 §5.1.2: a bind with a name and no password may succeed, unauthenticated.
        if not secret:
            raise Refused(Outcome.AUTHENTICATION_FAILED, "the password is empty")
        try:
            # RFC 4511 §4.2: text is sent as UTF-8, so this is nobody's. ldap3 could not send it anyway.
            secret.decode("utf-8")
        except UnicodeDecodeError:
            raise Refused(Outcome.AUTHENTICATION_FAILED, "the password is not UTF-8") from None
        filled = self._fill(name)
        if isinstance(filled, NotMine):
            return filled
        verify = self._bind_by_name if self._search is None else self._search_and_bind
        return await self._ask(partial(verify, filled, name, secret))

    async def probe(self) -> Sequence[Probe]:
        """Connect to each server, bind as the service account, read where entries are, and search for nobody."""
        found: list[Sequence[Probe]] = [()] * len(self._servers)

        async def try_server(number: int, server: LdapServer) -> None:
            rows = await server.try_out(partial(self._try_server, server.url), self._timeout_seconds)
            late = Probe(f"{server.url}: connect", f"no answer within {self._timeout_seconds:g} s")
            found[number] = [late] if rows is None else rows

        async with trio.open_nursery() as nursery:
            for number, server in enumerate(self._servers):
                nursery.start_soon(try_server, number, server)
        return list(chain.from_iterable(found))

    def close(self) -> None:
        """Close connections; the source is not asked again."""
        for server in self._servers:
            server.close()

    def _fill(self, name: str) -> str | NotMine:
        """The filter, or the distinguished name, for a canonical name."""
        if self._domain is not None and name.partition("@")[2] != self._domain:
            return NotMine("the name is not of the default domain, and its entry would be found without")
        return self._template.fill(name) or NotMine("the name has no domain")

    async def _ask(self, question: Question[T]) -> T:
        problems = []
        deadline = trio.current_time() + self._timeout_seconds
        for number, server in enumerate(self._servers, 1):
            left = deadline - trio.current_time()
            if left <= 0:
                break
            others = sum(later.up for later in self._servers[number:])
            try:
                return await server.ask(question, left / (1 + others))
            except ServerFailed as failure:
                problems.append(f"{server.url}: {failure}")
        raise Refused(Outcome.UNAVAILABLE, "; ".join(problems))

    # From here on: questions, in threads.

    def _search_and_bind(self, text: str, name: str, secret: bytes, connections: Connections) -> Answer:
        entry = self._find(connections, text)
        if entry is None:
            return self._not_found(text)
        raise_unless_bound(connections.bind(entry.dn, secret))
        return self._identity(name, entry)

    def _bind_by_name(self, dn: str, name: str, secret: bytes, connections: Connections) -> Answer:
        raise_unless_bound(connections.bind(dn, secret))
        if not self._reader.wanted:
            return Identity(name, self.name)
        entry = self._read(connections, dn, as_user=not self._service_reads)
        if entry is None:
            raise Refused(Outcome.CONTACT_ADMIN, "the bind succeeded, but the entry cannot be read")
        return self._identity(name, entry)

    def _not_found(self, text: str) -> NotMine:
        assert self._search is not None
        shown = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
        return NotMine(f"no entry under {self._search.base} for {shown}")

    def _find(self, connections: Connections, text: str) -> Entry | None:
        """The one entry that a filter finds."""
        assert self._search is not None
        found = connections.search(self._search.base, text, self._search.scope, self._reader.wanted)
        if len(found.entries) > 1 or found.result.code == SIZE_LIMIT_EXCEEDED:
            raise Refused(Outcome.UNAVAILABLE, "the name has more than one entry", person=True)
        # A base that is not there is no unknown name: it would make everybody unknown.
        if found.result.code != SUCCESS:
            raise_failure("search", found.result)
        if not found.entries:
            return None
        (entry,) = found.entries
        if not entry.dn:
            raise Refused(Outcome.UNAVAILABLE, "the entry found has no name that could be bound as", person=True)
        return entry

    def _read(self, connections: Connections, dn: str, *, as_user: bool) -> Entry | None:
        """The entry of a distinguished name, where it exists and may be read."""
        search = connections.search_as_user if as_user else connections.search
        found = search(dn, _ANY_ENTRY, "base", self._reader.wanted)
        if found.result.code not in (SUCCESS, NO_SUCH_OBJECT):
            raise_failure("reading the entry", found.result, person=True)
        return found.entries[0] if found.entries else None

    def _identity(self, name: str, entry: Entry) -> Identity:
        try:
            return self._reader.identity(name, entry)
        except Misfit as misfit:
            raise Refused(Outcome.CONTACT_ADMIN, f"the password is right, but {misfit}") from None

    def _try_server(self, url: str, connections: Connections) -> list[Probe]:
        rows: list[Probe] = []
        what, began = "connect", time.monotonic()

        def works(detail: str) -> None:
            rows.append(Probe(f"{url}: {what}", "", detail, time.monotonic() - began))

        try:
            connection = connections.connect()
            try:
                works(connection.tls_version)
                if self._service_reads:
                    what, began = "bind", time.monotonic()
                    connections.bind_service(connection)
                    works("")
                if self._base:
                    what, began = "search", time.monotonic()
                    _check_base(connection.search(self._base, _ANY_ENTRY, "base", (), connections.until()), self._base)
                    works(self._base)
                if self._search is not None:
                    what, began = "filter", time.monotonic()
                    base, scope, wanted = self._search.base, self._search.scope, self._reader.wanted
                    text = self._template.fill(_NOBODY) or ""
                    _check_nobody(connection.search(base, text, scope, wanted, connections.until()), text)
                    works(text)
            finally:
                connection.close()
        except ServerFailed as failure:
            rows.append(Probe(f"{url}: {what}", str(failure), "", time.monotonic() - began))
        return rows


class LdapAccountSource(LdapSource):
    """A directory in which names can be looked up, no password shown."""

    def __init__(self, settings: LdapIdentity, rules: NameRules, name: str = "ldap") -> None:
        super().__init__(settings, rules, name)
        self.knows_scram = "scram" in settings.attributes
        self._shapes: Counter[KeyShape] = Counter()

    @property
    def usual_shape(self) -> KeyShape:
        """What most of the SCRAM keys that were seen look like."""
        return max(self._shapes, key=self._shapes.__getitem__, default=_FIRST_GUESS)

    async def look_up(self, name: str) -> Account | None:
        """The account of a canonical name.

        Raises:
            Refused: UNAVAILABLE, for a name too whose entry is at odds with the settings.
        """
        filled = self._fill(name)
        if isinstance(filled, NotMine):
            return None
        account = await self._ask(partial(self._account, filled, name))
        if account is not None and account.scram is not None:
            shape = KeyShape(account.scram.iterations, len(account.scram.salt))
            if shape in self._shapes or len(self._shapes) < _MOST_SHAPES:
                self._shapes[shape] += 1
        return account

    def _account(self, filled: str, name: str, connections: Connections) -> Account | None:
        entry = (
            self._read(connections, filled, as_user=False) if self._search is None else self._find(connections, filled)
        )
        if entry is None:
            return None
        try:
            return Account(self._reader.identity(name, entry), self._reader.scram(entry))
        except Misfit as misfit:
            # Nothing has been proved yet: whoever asks may be a stranger.
            raise Refused(Outcome.UNAVAILABLE, str(misfit), person=True) from None


def _check_utf8(password: bytes) -> None:
    try:
        password.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("bind.password: not UTF-8") from None


def _check_base(found: Found, base: str) -> None:
    if found.result.code != SUCCESS:
        raise ServerFailed(f"{base}, where entries are: {found.result}")
    if not found.entries:
        raise ServerFailed(f"{base}, where entries are: not there, or not to be read")


def _check_nobody(found: Found, text: str) -> None:
    if found.entries:
        raise ServerFailed(f"{text} finds an entry, for a name that nobody has: {found.entries[0].dn}")
    if found.result.code != SUCCESS:
        raise ServerFailed(f"{text}: {found.result}")


def _tls_context(settings: LdapIdentity) -> ssl.SSLContext | None:
    """TLS that checks chain and name; None: no server of these settings speaks it."""
    if not settings.start_tls and all(url.scheme != "ldaps" for url in settings.urls):
        return None
    try:
        return ssl.create_default_context(cafile=None if settings.ca is None else str(settings.ca))
    except (OSError, ssl.SSLError) as exc:
        raise ValueError(f"ca: cannot be used: {exc}") from None
