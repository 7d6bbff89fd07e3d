"""Identity from a file: users.yaml holds names, what their passwords are verified with, and where a person's mail is.

    alice@example.org: {hash: "$argon2id$…", scram: "SCRAM-SHA-256$…", backend: dovecot-1, attributes: {…}}

At least one of hash and scram stands there, the rest where it is wanted. Without scram nobody logs in by a SCRAM
mechanism; without hash the SCRAM keys verify a password that is shown.

The file is read whole, checked whole, and taken or refused whole. A table never changes; a reload puts another one in
its place, and logins under way go on with the one they started with.
"""

from __future__ import annotations

import difflib
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from proxy.auth.names import NameRules
from proxy.auth.passwords import Parameters, PasswordVerifier, UnusableHash, parameters, unmatchable_hash
from proxy.auth.scram_keys import DEFAULT_SHAPE, UnusableKeys, decoy_keys, parse_scram_keys, shape_of
from proxy.auth.source import PASSWORD_MECHANISMS, NotMine, Probe
from proxy.model import NO_ATTRIBUTES, Account, Credentials, Identity, KeyShape, Origin, ScramKeys
from proxy.outcome import Outcome, Refused
from proxy.settings.mistakes import Mistake, SettingsError, read_with_mistakes
from proxy.settings.yaml_nodes import Document, key_text

MAX_BYTES = 64 * 1024 * 1024  # some 400,000 people
_KEYS = ("hash", "scram", "backend", "attributes")
_EXAMPLE = 'alice@example.org: {hash: "$argon2id$…"}'

_Cost = Parameters | KeyShape  # of a hash, or of SCRAM keys


@dataclass(frozen=True, slots=True)
class Person:
    """One person of the file."""

    identity: Identity
    kept: str | ScramKeys = field(repr=False)  # what verifies a password: the argon2id hash, else the SCRAM keys
    scram: ScramKeys | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Users:
    """What a file said when it was read."""

    accounts: Mapping[str, Person]  # by canonical name
    unmatchable: str | ScramKeys = field(repr=False)  # costs what most of the file cost; no password has it
    knows_scram: bool
    usual_shape: KeyShape  # of SCRAM keys

    def identity(self, name: str) -> Identity | None:
        """Whom a canonical name belongs to, no password asked."""
        person = self.accounts.get(name)
        return None if person is None else person.identity


class FileSource:
    """`file: {path: users.yaml}`."""

    mechanisms = PASSWORD_MECHANISMS

    def __init__(
        self,
        path: Path,
        rules: NameRules,
        verifier: PasswordVerifier,
        name: str = "file",
        content: bytes | None = None,
    ) -> None:
        """Read the file.

        Args:
            name: Of the source: file, or file-2 for the second.
            content: What it holds, or held when it was without mistakes; None: what stands there now.
        Raises:
            SettingsError: With every mistake of the file.
        """
        self.name = name
        self.path = path
        self._rules = rules
        self._verifier = verifier
        self.users = read_users(path, rules, name, content)

    @property
    def knows_scram(self) -> bool:
        """Whether anybody in the file has SCRAM keys."""
        return self.users.knows_scram

    @property
    def usual_shape(self) -> KeyShape:
        """How most SCRAM keys of the file look."""
        return self.users.usual_shape

    def reload(self, content: bytes) -> None:
        """Take what the file holds now: all of it, or nothing changes. It may run in a thread.

        Whether the file knows SCRAM keys at all has been said at the start, to those who offer mechanisms.

        Args:
            content: This process may have no right to read it.
        Raises:
            SettingsError: With every mistake of the file.
        """
        self.users = read_users(self.path, self._rules, self.name, content)

    async def authenticate(self, credentials: Credentials, name: str, origin: Origin) -> Identity | NotMine:
        """Verify the password of a name that the file knows; others are not ours to judge.

        Raises:
            Refused: AUTHENTICATION_FAILED or UNAVAILABLE.
        """
        person = self.users.accounts.get(name)
        if person is None:
            return NotMine()
        if not await self._verifier.verify(person.kept, credentials.secret):
            raise Refused(Outcome.AUTHENTICATION_FAILED, "wrong password")
        return person.identity

    async def pretend(self, credentials: Credentials, name: str) -> None:
        """Spend what a wrong password costs.

        Raises:
            Refused: UNAVAILABLE.
        """
        await self._verifier.verify(self.users.unmatchable, credentials.secret)

    async def look_up(self, name: str) -> Account | None:
        """Whom the file knows by a canonical name, with the SCRAM keys where there are any."""
        person = self.users.accounts.get(name)
        return None if person is None else Account(person.identity, person.scram)

    async def probe(self) -> Sequence[Probe]:
        """How many people there are; that they could be read is known since the start."""
        count = len(self.users.accounts)
        return [Probe(str(self.path), "", f"{count} {'person' if count == 1 else 'people'}")]


def read_users(path: Path, rules: NameRules, source: str = "file", content: bytes | None = None) -> Users:
    """Read a users file.

    Args:
        source: What the identities name as their source.
        content: What the file holds, where somebody else has read it.
    Raises:
        SettingsError: With every mistake, in the order of the file.
    """
    document, mistakes = read_with_mistakes(path, MAX_BYTES, content)
    reading = _Reading(document, rules, source)
    reading.read()
    mistakes += [Mistake(path, document.line(keys), key_text(keys), problem) for keys, problem in reading.problems]
    if mistakes:
        raise SettingsError(sorted(mistakes, key=lambda mistake: mistake.line))
    (cost, _), *_ = reading.costs.most_common(1)
    shapes = [usual for usual, _ in reading.shapes.most_common(1)]
    return Users(
        accounts=reading.accounts,
        unmatchable=_unmatchable(cost),
        knows_scram=bool(shapes),
        usual_shape=shapes[0] if shapes else DEFAULT_SHAPE,
    )


def _unmatchable(cost: _Cost) -> str | ScramKeys:
    return unmatchable_hash(cost) if isinstance(cost, Parameters) else decoy_keys("", secrets.token_bytes(32), cost)


class _Reading:
    """A document on its way to a table."""

    def __init__(self, document: Document, rules: NameRules, source: str) -> None:
        self._document = document
        self._rules = rules
        self._source = source
        self._spelled: dict[str, str] = {}  # canonical name: as the file spells it
        self.problems: list[tuple[tuple[str, ...], str]] = []  # where in the file, and what
        self.accounts: dict[str, Person] = {}
        self.costs: Counter[_Cost] = Counter()  # of verifying a password
        self.shapes: Counter[KeyShape] = Counter()  # of SCRAM keys, whether or not a hash stands beside them

    def read(self) -> None:
        """Fill the table, and tell what is wrong on the way."""
        value = self._document.value
        # An editor or a script that is still writing leaves an empty file: it must not lock everybody out.
        if not isinstance(value, dict) or not value:
            self._tell((), f"expected at least one person, e.g. {_EXAMPLE}")
            return
        for spelled, entry in value.items():
            name = self._name(spelled)
            if isinstance(entry, dict):
                self._entry(spelled, name, entry)
            else:
                self._tell((spelled,), f"expected keys, e.g. {_EXAMPLE}")

    def _tell(self, keys: tuple[str, ...], problem: str) -> None:
        self.problems.append((keys, problem))

    def _name(self, spelled: str) -> str:
        try:
            name = self._rules.canonical(spelled)
        except Refused as refusal:
            self._tell((spelled,), refusal.detail)
            return ""
        first = self._spelled.setdefault(name, spelled)
        if first != spelled:
            line = self._document.line((first,))
            problem = f'the same person as "{first}" on line {line}: the canonical name of both is "{name}"'
            self._tell((spelled,), problem)
        return name

    def _entry(self, spelled: str, name: str, entry: dict[str, Any]) -> None:
        told = len(self.problems)
        cost = self._hash(spelled, entry["hash"]) if "hash" in entry else None
        keys = self._scram(spelled, entry["scram"]) if "scram" in entry else None
        if "hash" not in entry and "scram" not in entry:
            self._tell((spelled,), "hash is missing; `imap-porter hash-password` makes one")
        self._facts(spelled, entry)
        if len(self.problems) > told:
            return
        attributes = entry.get("attributes")
        shown = MappingProxyType(attributes) if attributes else NO_ATTRIBUTES
        identity = Identity(name, self._source, entry.get("backend"), shown)
        if keys is not None:
            self.shapes[shape_of(keys)] += 1
        if cost is not None:
            self.costs[cost] += 1
            self.accounts[name] = Person(identity, entry["hash"], keys)
        elif keys is not None:
            self.costs[shape_of(keys)] += 1
            self.accounts[name] = Person(identity, keys, keys)

    def _hash(self, spelled: str, encoded: Any) -> Parameters | None:
        try:
            if isinstance(encoded, str):
                return parameters(encoded)
            self._tell((spelled, "hash"), "expected an argon2id hash in quotes")
        except UnusableHash as exc:
            self._tell((spelled, "hash"), str(exc))
        return None

    def _scram(self, spelled: str, text: Any) -> ScramKeys | None:
        try:
            if isinstance(text, str):
                return parse_scram_keys(text)
            self._tell((spelled, "scram"), "expected SCRAM keys in quotes")
        except UnusableKeys as exc:
            self._tell((spelled, "scram"), str(exc))
        return None

    def _facts(self, spelled: str, entry: dict[str, Any]) -> None:
        for key in entry:
            if key not in _KEYS:
                near = difflib.get_close_matches(key, _KEYS, 1)
                hint = f'did you mean "{near[0]}"?' if near else f"known here: {', '.join(_KEYS)}"
                self._tell((spelled, key), f"unknown key; {hint}")
        if "backend" in entry and not (isinstance(entry["backend"], str) and entry["backend"]):
            self._tell((spelled, "backend"), "expected the name of a backend, e.g. dovecot-1")
        attributes = entry.get("attributes", {})
        if not isinstance(attributes, dict):
            self._tell((spelled, "attributes"), "expected keys, e.g. {department: sales}")
            return
        for key, value in attributes.items():
            if not isinstance(value, str):
                self._tell((spelled, "attributes", key), "expected text; put the value in quotes")
