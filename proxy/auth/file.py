"""Identity from a file: users.yaml holds names, password hashes, and where a person's mail is.

    alice@example.org: {hash: "$argon2id$…", backend: dovecot-1, attributes: {…}}    # all but hash optional

The file is read whole, checked whole, and taken or refused whole. A table never changes; a reload puts another one in
its place, and logins under way go on with the one they started with.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from proxy.auth.names import NameRules
from proxy.auth.passwords import Parameters, PasswordVerifier, UnusableHash, parameters, unmatchable_hash
from proxy.model import NO_ATTRIBUTES, Credentials, Identity
from proxy.outcome import Outcome, Refused
from proxy.settings.mistakes import Mistake, SettingsError, read_with_mistakes
from proxy.settings.yaml_nodes import Document, key_text

MAX_BYTES = 64 * 1024 * 1024  # some 400,000 people
_KEYS = ("hash", "backend", "attributes")
_EXAMPLE = 'alice@example.org: {hash: "$argon2id$…"}'

_Problem = tuple[tuple[str, ...], str]  # where in the file, and what


@dataclass(frozen=True, slots=True)
class Account:
    """One person of the file."""

    identity: Identity
    encoded: str  # the argon2id hash


@dataclass(frozen=True, slots=True)
class Users:
    """What a file said when it was read."""

    accounts: Mapping[str, Account]  # by canonical name
    unmatchable: str  # costs what most hashes of the file cost; no password has it

    def identity(self, name: str) -> Identity | None:
        """Whom a canonical name belongs to, no password asked."""
        account = self.accounts.get(name)
        return None if account is None else account.identity


class FileSource:
    """`file: {path: users.yaml}`."""

    name = "file"
    mechanisms = frozenset({"LOGIN", "PLAIN"})

    def __init__(self, path: Path, rules: NameRules, verifier: PasswordVerifier) -> None:
        """Read the file.

        Raises:
            SettingsError: With every mistake of the file.
        """
        self._path = path
        self._rules = rules
        self._verifier = verifier
        self.users = read_users(path, rules)

    def reload(self) -> None:
        """Read the file again: all of it, or nothing changes. It may run in a thread.

        Raises:
            SettingsError: With every mistake of the file.
        """
        self.users = read_users(self._path, self._rules)

    async def authenticate(self, credentials: Credentials, name: str) -> Identity | None:
        """Verify the password of a name that the file knows; others are not ours to judge.

        Raises:
            Refused: AUTHENTICATION_FAILED or UNAVAILABLE.
        """
        account = self.users.accounts.get(name)
        if account is None:
            return None
        if not await self._verifier.verify(account.encoded, credentials.secret):
            raise Refused(Outcome.AUTHENTICATION_FAILED, "wrong password")
        return account.identity

    async def pretend(self, credentials: Credentials) -> None:
        """Spend what a wrong password costs.

        Raises:
            Refused: UNAVAILABLE.
        """
        await self._verifier.verify(self.users.unmatchable, credentials.secret)


def read_users(path: Path, rules: NameRules) -> Users:
    """Read a users file.

    Raises:
        SettingsError: With every mistake, in the order of the file.
    """
    document, mistakes = read_with_mistakes(path, MAX_BYTES)
    reading = _Reading(document, rules)
    mistakes += [Mistake(path, document.line(keys), key_text(keys), problem) for keys, problem in reading.problems()]
    if mistakes:
        raise SettingsError(sorted(mistakes, key=lambda mistake: mistake.line))
    (usual, _), *_ = reading.costs.most_common(1)
    return Users(reading.accounts, unmatchable_hash(usual))


class _Reading:
    """A document on its way to a table."""

    def __init__(self, document: Document, rules: NameRules) -> None:
        self._document = document
        self._rules = rules
        self._spelled: dict[str, str] = {}  # canonical name: as the file spells it
        self.accounts: dict[str, Account] = {}
        self.costs: Counter[Parameters] = Counter()

    def problems(self) -> Iterator[_Problem]:
        """Fill the table and tell what is wrong on the way."""
        value = self._document.value
        # An editor or a script that is still writing leaves an empty file: it must not lock everybody out.
        if not isinstance(value, dict) or not value:
            yield (), f"expected at least one person, e.g. {_EXAMPLE}"
            return
        for spelled, entry in value.items():
            problems = [*self._name_problems(spelled), *_entry_problems(spelled, entry)]
            if problems:
                yield from problems
            else:
                self._take(self._rules.canonical(spelled), entry)

    def _name_problems(self, spelled: str) -> Iterator[_Problem]:
        try:
            name = self._rules.canonical(spelled)
        except Refused as refusal:
            yield (spelled,), refusal.detail
            return
        first = self._spelled.setdefault(name, spelled)
        if first != spelled:
            line = self._document.line((first,))
            yield (spelled,), f'the same person as "{first}" on line {line}: the canonical name of both is "{name}"'

    def _take(self, name: str, entry: dict[str, Any]) -> None:
        encoded, attributes = entry["hash"], entry.get("attributes")
        shown = MappingProxyType(attributes) if attributes else NO_ATTRIBUTES
        self.accounts[name] = Account(Identity(name, "file", entry.get("backend"), shown), encoded)
        self.costs[parameters(encoded)] += 1


def _entry_problems(spelled: str, entry: Any) -> Iterator[_Problem]:
    if not isinstance(entry, dict):
        yield (spelled,), f"expected keys, e.g. {_EXAMPLE}"
        return
    for key in entry:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            hint = f'did you mean "{near[0]}"?' if near else f"known here: {', '.join(_KEYS)}"
            yield (spelled, key), f"unknown key; {hint}"
    if "hash" not in entry:
        yield (spelled,), "hash is missing; `imap-porter hash-password` makes one"
    else:
        yield from _hash_problems(spelled, entry["hash"])
    if "backend" in entry and not (isinstance(entry["backend"], str) and entry["backend"]):
        yield (spelled, "backend"), "expected the name of a backend, e.g. dovecot-1"
    attributes = entry.get("attributes", {})
    if not isinstance(attributes, dict):
        yield (spelled, "attributes"), "expected keys, e.g. {department: sales}"
        return
    for key, value in attributes.items():
        if not isinstance(value, str):
            yield (spelled, "attributes", key), "expected text; put the value in quotes"


def _hash_problems(spelled: str, encoded: Any) -> Iterator[_Problem]:
    if not isinstance(encoded, str):
        yield (spelled, "hash"), "expected an argon2id hash in quotes"
        return
    try:
        parameters(encoded)
    except UnusableHash as exc:
        yield (spelled, "hash"), str(exc)
