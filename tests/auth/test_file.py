"""users.yaml: what it may hold, what is said about what it may not, and how it answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.auth.authenticator import Authenticator
from proxy.auth.file import FileSource, read_users
from proxy.auth.names import NameRules
from proxy.auth.passwords import Parameters, PasswordVerifier, hash_password, parameters
from proxy.auth.source import HashingSource
from proxy.model import Credentials, Identity
from proxy.outcome import Outcome, Refused
from proxy.settings.mistakes import SettingsError

Write = Callable[[str], Path]
HASH = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA"


def test_what_a_file_says(users_file: Write, rules: NameRules) -> None:
    path = users_file(f"""
alice@example.org: {{hash: "{HASH}", backend: dovecot-1, attributes: {{department: sales}}}}
Bob:
  hash: {HASH}
""")
    users = read_users(path, rules)
    assert users.identity("alice@example.org") == Identity(
        "alice@example.org", "file", "dovecot-1", {"department": "sales"}
    )
    assert users.identity("bob@example.org") == Identity("bob@example.org", "file")
    assert users.identity("Bob") is None
    assert users.accounts["bob@example.org"].encoded == HASH


MISTAKES = [
    ("empty file", "", ["users.yaml:1: expected at least one person"]),
    ("nobody", "{}", ["users.yaml:1: expected at least one person"]),
    ("list", "- alice", ["users.yaml:1: expected at least one person"]),
    ("no YAML", 'alice: {hash: "x', ["users.yaml:1: not valid YAML"]),
    ("bare hash", f"alice: {HASH}", ["users.yaml:1: alice: expected keys, e.g."]),
    ("nothing", "alice:", ["users.yaml:1: alice: expected keys, e.g."]),
    ("no hash", "alice: {backend: dovecot-1}", ["users.yaml:1: alice: hash is missing"]),
    ("hash is null", "alice: {hash: }", ["users.yaml:1: alice.hash: expected an argon2id hash"]),
    ("number", "alice: {hash: 12345}", ["users.yaml:1: alice.hash: expected an argon2id hash"]),
    ("password in clear", "alice: {hash: hunter2}", ["users.yaml:1: alice.hash: not an argon2id hash"]),
    (
        "frozen service",
        f"alice:\n  hash: {HASH.replace('m=8', 'm=9000000')}",
        ["users.yaml:2: alice.hash: asks for 9000000 KiB of memory; at most 1048576 are allowed"],
    ),
    ("unknown key", f"alice:\n  hash: {HASH}\n  backnd: x", ["users.yaml:3: alice.backnd: unknown key; did you mean"]),
    ("strange key", f"alice:\n  hash: {HASH}\n  zzz: x", ["users.yaml:3: alice.zzz: unknown key; known here: hash,"]),
    (
        "backend is a number",
        f"alice:\n  hash: {HASH}\n  backend: 1",
        ["users.yaml:3: alice.backend: expected"],
    ),
    ("backend is empty", f'alice:\n  hash: {HASH}\n  backend: ""', ["users.yaml:3: alice.backend: expected"]),
    (
        "attributes are a list",
        f"alice:\n  hash: {HASH}\n  attributes: [x]",
        ["users.yaml:3: alice.attributes: expected"],
    ),
    (
        "attribute is a number",
        f"alice:\n  hash: {HASH}\n  attributes:\n    a: x\n    b: 1",
        ["users.yaml:5: alice.attributes.b: expected text"],
    ),
    ("separator", f'"a*b": {{hash: "{HASH}"}}', ["users.yaml:1: a*b: the name contains the master separator"]),
    ("space", f'"a b": {{hash: "{HASH}"}}', ["users.yaml:1: a b: the name contains U+0020"]),
    ("given twice", f'a: {{hash: "{HASH}"}}\na: {{hash: "{HASH}"}}', ["users.yaml:2: a: given twice"]),
    (
        "twice the same person",
        f'Alice: {{hash: "{HASH}"}}\nbob: {{hash: "{HASH}"}}\nalice@example.org: {{hash: "{HASH}"}}',
        ['users.yaml:3: alice@example.org: the same person as "Alice" on line 1'],
    ),
    (
        "all at once",
        "alice:\n  hash: x\n  backend: 1\n  wrong: 2\nbob: 3\n",
        [
            "users.yaml:2: alice.hash: not an argon2id",
            "users.yaml:3: alice.backend: expected",
            "users.yaml:4: alice.wrong: unknown key",
            "users.yaml:5: bob: expected keys",
        ],
    ),
]


@pytest.mark.parametrize(("name", "text", "mistakes"), MISTAKES, ids=[row[0] for row in MISTAKES])
def test_mistakes(name: str, text: str, mistakes: list[str], users_file: Write, rules: NameRules) -> None:
    path = users_file(text)
    with pytest.raises(SettingsError) as error:
        read_users(path, rules)
    told = [str(mistake).removeprefix(f"{path.parent}/") for mistake in error.value.mistakes]
    assert len(told) == len(mistakes)
    for line, beginning in zip(told, mistakes, strict=True):
        assert line.startswith(beginning)
        assert HASH[-20:] not in line
        assert "hunter2" not in line


def test_no_file(tmp_path: Path, rules: NameRules) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        read_users(tmp_path / "users.yaml", rules)


def test_the_unmatchable_hash_costs_what_most_hashes_cost(users_file: Write, rules: NameRules) -> None:
    usual, odd = Parameters(16, 2, 1), Parameters(8, 1, 1)
    hashes = {name: hash_password(b"x", cost) for name, cost in (("a", odd), ("b", usual), ("c", usual))}
    users = read_users(users_file("".join(f'{name}: {{hash: "{hashed}"}}\n' for name, hashed in hashes.items())), rules)
    assert parameters(users.unmatchable) == usual


class CountingVerifier(PasswordVerifier):
    """The real one, and what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.verified: list[str] = []

    async def verify(self, encoded: str, secret: bytes) -> bool:
        self.verified.append(encoded)
        return await super().verify(encoded, secret)


@pytest.fixture
def verifier() -> CountingVerifier:
    return CountingVerifier()


@pytest.fixture
def source(
    users_file: Write, cheap_hash: Callable[[bytes], str], rules: NameRules, verifier: CountingVerifier
) -> FileSource:
    path = users_file(f'alice: {{hash: "{cheap_hash(b"right")}", backend: dovecot-2}}\n')
    return FileSource(path, rules, verifier)


def plain(name: str, secret: bytes) -> Credentials:
    return Credentials("PLAIN", name, "", secret)


async def test_the_right_password(source: FileSource, rules: NameRules, verifier: CountingVerifier) -> None:
    identity = await Authenticator([source], rules).authenticate(plain("ALICE", b"right"))
    assert identity == Identity("alice@example.org", "file", "dovecot-2")
    assert len(verifier.verified) == 1


async def test_unknown_and_wrong_cost_and_say_the_same(
    source: FileSource, rules: NameRules, verifier: CountingVerifier
) -> None:
    authenticator = Authenticator([source], rules)
    outcomes = []
    for name in ("alice", "nobody"):
        with pytest.raises(Refused) as refusal:
            await authenticator.authenticate(plain(name, b"wrong"))
        outcomes.append(refusal.value.outcome)
    assert outcomes == [Outcome.AUTHENTICATION_FAILED] * 2
    known, unknown = verifier.verified
    assert known != unknown
    assert parameters(known) == parameters(unknown)
    assert isinstance(source, HashingSource)


async def test_an_unknown_name_is_left_to_other_sources(source: FileSource, verifier: CountingVerifier) -> None:
    assert await source.authenticate(plain("nobody", b"x"), "nobody@example.org") is None
    assert verifier.verified == []


async def test_a_reload_takes_all_or_nothing(
    source: FileSource, users_file: Write, cheap_hash: Callable[[bytes], str]
) -> None:
    users_file(f'bob: {{hash: "{cheap_hash(b"new")}"}}\ncarol: {{hash: wrong}}\n')
    with pytest.raises(SettingsError):
        source.reload()
    assert source.users.identity("alice@example.org") is not None
    assert source.users.identity("bob@example.org") is None

    users_file(f'bob: {{hash: "{cheap_hash(b"new")}"}}\n')
    source.reload()
    assert source.users.identity("alice@example.org") is None
    assert await source.authenticate(plain("bob", b"new"), "bob@example.org") == Identity("bob@example.org", "file")
