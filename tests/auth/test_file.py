"""users.yaml: what it may hold, what is said about what it may not, and how it answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.auth.authenticator import Authenticator
from proxy.auth.file import FileSource, read_users
from proxy.auth.names import NameRules
from proxy.auth.passwords import Parameters, PasswordVerifier, hash_password, parameters
from proxy.auth.scram_keys import (
    DEFAULT_SHAPE,
    make_scram_keys,
    parse_scram_keys,
    scram_text,
    shape_of,
    verify_password,
)
from proxy.auth.source import AccountSource, HashingSource, NotMine, Probe
from proxy.model import Account, Credentials, Endpoint, Identity, KeyShape, Origin, ScramKeys
from proxy.outcome import Outcome, Refused
from proxy.settings.mistakes import SettingsError

Write = Callable[[str], Path]
HASH = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA"
# The keys behind the example of RFC 7677 §3, whose password is "pencil".
SCRAM = (
    "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:"
    "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
)
ORIGIN = Origin(Endpoint("192.0.2.1", 40000))


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
    assert users.accounts["bob@example.org"].kept == HASH
    assert not users.knows_scram
    assert users.usual_shape == DEFAULT_SHAPE


def test_scram_keys_beside_a_hash_and_alone(users_file: Write, rules: NameRules) -> None:
    path = users_file(f'''
alice: {{hash: "{HASH}", scram: "{SCRAM}"}}
bob: {{scram: "{{SCRAM-SHA-256}}{SCRAM[14:].replace("$", ",").replace(":", ",")}", backend: dovecot-1}}
carol: {{hash: "{HASH}"}}
''')
    users = read_users(path, rules, "file-2")
    keys = parse_scram_keys(SCRAM)
    alice, bob, carol = users.accounts.values()
    assert (alice.kept, alice.scram) == (HASH, keys)
    assert (bob.kept, bob.scram) == (keys, keys)
    assert (carol.kept, carol.scram) == (HASH, None)
    assert bob.identity == Identity("bob@example.org", "file-2", "dovecot-1")
    assert users.knows_scram


def test_what_most_ask_for(users_file: Write, rules: NameRules) -> None:
    few, many = (scram_text(make_scram_keys(b"x", iterations)) for iterations in (4096, 5000))
    entries = {"a": few, "b": many, "c": many}
    users = read_users(users_file("".join(f'{name}: {{scram: "{text}"}}\n' for name, text in entries.items())), rules)
    assert users.usual_shape == KeyShape(5000, 16)
    assert isinstance(users.unmatchable, ScramKeys)
    assert shape_of(users.unmatchable) == KeyShape(5000, 16)
    assert not verify_password(users.unmatchable, b"x")


def test_the_salts_of_most(users_file: Write, rules: NameRules) -> None:
    """Beside a hash, too: what is shown to SCRAM clients is one thing, what a password costs here another."""
    foreign = scram_text(ScramKeys(b"s" * 24, 4096, b"k" * 32, b"K" * 32))
    path = users_file(
        f'''
a: {{hash: "{HASH}", scram: "{foreign}"}}
b: {{hash: "{HASH}", scram: "{foreign}"}}
c: {{scram: "{SCRAM}"}}
'''
    )
    users = read_users(path, rules)
    assert users.usual_shape == KeyShape(4096, 24)
    assert isinstance(users.unmatchable, str)


def test_no_hash_and_no_key_is_in_any_repr(users_file: Write, rules: NameRules) -> None:
    users = read_users(users_file(f'alice: {{hash: "{HASH}", scram: "{SCRAM}"}}\n'), rules)
    shown = repr(users)
    assert "alice@example.org" in shown
    assert "argon2" not in shown
    assert "stored_key" not in shown


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
    ("scram is a number", "alice: {scram: 1}", ["users.yaml:1: alice.scram: expected SCRAM keys in quotes"]),
    ("scram is null", f"alice:\n  hash: {HASH}\n  scram:", ["users.yaml:3: alice.scram: expected SCRAM keys"]),
    ("password as scram", "alice: {scram: hunter2}", ["users.yaml:1: alice.scram: no keys for SCRAM-SHA-256"]),
    ("damaged scram", f'alice: {{scram: "{SCRAM[:-9]}"}}', ["users.yaml:1: alice.scram: its keys are damaged"]),
    (
        "scram that takes minutes",
        f'alice:\n  hash: {HASH}\n  scram: "{SCRAM.replace("4096", "90000000")}"',
        ["users.yaml:3: alice.scram: asks for 90000000 iterations; 4096 to 1000000 are allowed"],
    ),
    (
        "both wrong",
        "alice:\n  scram: x\n  hash: y",
        ["users.yaml:2: alice.scram: no keys", "users.yaml:3: alice.hash: not an argon2id"],
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
        assert SCRAM[-40:-9] not in line
        assert "hunter2" not in line


def test_no_file(tmp_path: Path, rules: NameRules) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        read_users(tmp_path / "users.yaml", rules)


def test_the_unmatchable_hash_costs_what_most_hashes_cost(users_file: Write, rules: NameRules) -> None:
    usual, odd = Parameters(16, 2, 1), Parameters(8, 1, 1)
    hashes = {name: hash_password(b"x", cost) for name, cost in (("a", odd), ("b", usual), ("c", usual))}
    users = read_users(users_file("".join(f'{name}: {{hash: "{hashed}"}}\n' for name, hashed in hashes.items())), rules)
    assert isinstance(users.unmatchable, str)
    assert parameters(users.unmatchable) == usual


class CountingVerifier(PasswordVerifier):
    """The real one, and what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.verified: list[str | ScramKeys] = []

    async def verify(self, kept: str | ScramKeys, secret: bytes) -> bool:
        self.verified.append(kept)
        return await super().verify(kept, secret)


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
    identity = await Authenticator([source], rules).authenticate(plain("ALICE", b"right"), ORIGIN)
    assert identity == Identity("alice@example.org", "file", "dovecot-2")
    assert len(verifier.verified) == 1


async def test_unknown_and_wrong_cost_and_say_the_same(
    source: FileSource, rules: NameRules, verifier: CountingVerifier
) -> None:
    authenticator = Authenticator([source], rules)
    outcomes = []
    for name in ("alice", "nobody"):
        with pytest.raises(Refused) as refusal:
            await authenticator.authenticate(plain(name, b"wrong"), ORIGIN)
        outcomes.append(refusal.value.outcome)
    assert outcomes == [Outcome.AUTHENTICATION_FAILED] * 2
    known, unknown = verifier.verified
    assert isinstance(known, str)
    assert isinstance(unknown, str)
    assert known != unknown
    assert parameters(known) == parameters(unknown)
    assert isinstance(source, HashingSource)


async def test_an_unknown_name_is_left_to_other_sources(source: FileSource, verifier: CountingVerifier) -> None:
    assert isinstance(await source.authenticate(plain("nobody", b"x"), "nobody@example.org", ORIGIN), NotMine)
    assert verifier.verified == []


async def test_a_reload_takes_all_or_nothing(source: FileSource, cheap_hash: Callable[[bytes], str]) -> None:
    bob = f'bob: {{hash: "{cheap_hash(b"new")}"}}\n'
    for bad in (f"{bob}carol: {{hash: wrong}}\n", "", "- bob\n", "bob: {", "bob: \xff", "\0"):
        with pytest.raises(SettingsError):
            source.reload(bad.encode("latin-1"))
    assert source.users.identity("alice@example.org") is not None
    assert source.users.identity("bob@example.org") is None

    source.path.unlink()  # who reloads it may have no right to read it
    source.reload(bob.encode())
    assert source.users.identity("alice@example.org") is None
    identity = await source.authenticate(plain("bob", b"new"), "bob@example.org", ORIGIN)
    assert identity == Identity("bob@example.org", "file")


@pytest.fixture
def keyed(users_file: Write, rules: NameRules, verifier: CountingVerifier) -> FileSource:
    path = users_file(f'alice: {{scram: "{SCRAM}", backend: dovecot-2}}\nbob: {{hash: "{HASH}"}}\n')
    return FileSource(path, rules, verifier, "file-2")


async def test_a_password_shown_to_scram_keys(keyed: FileSource, verifier: CountingVerifier) -> None:
    identity = await keyed.authenticate(plain("alice", b"pencil"), "alice@example.org", ORIGIN)
    assert identity == Identity("alice@example.org", "file-2", "dovecot-2")
    with pytest.raises(Refused) as refusal:
        await keyed.authenticate(plain("alice", b"pen"), "alice@example.org", ORIGIN)
    assert refusal.value.outcome is Outcome.AUTHENTICATION_FAILED
    assert verifier.verified == [parse_scram_keys(SCRAM)] * 2


async def test_what_it_knows_without_a_secret(keyed: FileSource, verifier: CountingVerifier) -> None:
    assert isinstance(keyed, AccountSource)
    assert keyed.name == "file-2"
    assert keyed.knows_scram
    assert keyed.usual_shape == KeyShape(4096, 16)
    alice = Identity("alice@example.org", "file-2", "dovecot-2")
    assert await keyed.look_up("alice@example.org") == Account(alice, parse_scram_keys(SCRAM))
    assert await keyed.look_up("bob@example.org") == Account(Identity("bob@example.org", "file-2"))
    assert await keyed.look_up("nobody@example.org") is None
    assert verifier.verified == []


async def test_a_reload_may_bring_scram_keys(source: FileSource) -> None:
    assert not source.knows_scram
    source.reload(f'alice: {{scram: "{SCRAM}"}}\n'.encode())
    assert source.knows_scram
    assert source.usual_shape == KeyShape(4096, 16)


async def test_a_probe_counts(source: FileSource, keyed: FileSource, tmp_path: Path) -> None:
    path = str(tmp_path / "users.yaml")
    assert await source.probe() == [Probe(path, "", "1 person")]
    assert await keyed.probe() == [Probe(path, "", "2 people")]
