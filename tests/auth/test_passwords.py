"""Hashes: made, checked for what they cost, and verified off the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing

from proxy.auth import passwords
from proxy.auth.passwords import (
    DEFAULT_PARAMETERS,
    Parameters,
    PasswordVerifier,
    UnusableHash,
    hash_password,
    parameters,
    unmatchable_hash,
    verify,
)
from proxy.auth.scram_keys import make_scram_keys
from proxy.outcome import Outcome, Refused

SALT, DIGEST = "c29tZXNhbHQ", "AAAAAAAAAAAAAAAAAAAAAA"


def test_defaults_are_those_of_rfc_9106() -> None:
    encoded = hash_password(b"secret")
    assert encoded.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert parameters(encoded) == DEFAULT_PARAMETERS == Parameters(65536, 3, 4)
    assert verify(encoded, b"secret")
    assert not verify(encoded, b"Secret")


def test_every_hash_has_a_salt_of_its_own(cheap_hash: Callable[[bytes], str]) -> None:
    assert cheap_hash(b"secret") != cheap_hash(b"secret")


@pytest.mark.parametrize("secret", [b"x", "pässwörd".encode(), b"\xff\xfe", b"p" * 8192])
def test_secrets_are_octets(cheap_hash: Callable[[bytes], str], secret: bytes) -> None:
    encoded = cheap_hash(secret)
    assert verify(encoded, secret)
    assert not verify(encoded, secret + b"x")


def test_a_hash_made_elsewhere() -> None:
    # A test vector of the reference implementation (phc-winner-argon2: src/test.c).
    encoded = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"
    assert parameters(encoded) == Parameters(65536, 2, 1)
    assert verify(encoded, b"password")
    assert not verify(encoded, b"passwore")


UNUSABLE = [
    ("empty", "", "not an argon2id hash"),
    ("password in clear", "hunter2", "not an argon2id hash"),
    ("crypt", "$6$salt$abc", "not an argon2id hash"),
    ("argon2i", f"$argon2i$v=19$m=64,t=1,p=1${SALT}${DIGEST}", "not an argon2id hash"),
    ("argon2d", f"$argon2d$v=19$m=64,t=1,p=1${SALT}${DIGEST}", "not an argon2id hash"),
    ("old version", f"$argon2id$v=16$m=64,t=1,p=1${SALT}${DIGEST}", "damaged"),
    ("no version", f"$argon2id$m=64,t=1,p=1${SALT}${DIGEST}", "damaged"),
    ("cut off", f"$argon2id$v=19$m=64,t=1,p=1${SALT}", "damaged"),
    ("space behind", f"$argon2id$v=19$m=64,t=1,p=1${SALT}${DIGEST} ", "damaged"),
    ("line end", f"$argon2id$v=19$m=64,t=1,p=1${SALT}${DIGEST}\n", "damaged"),
    ("more fields", f"$argon2id$v=19$m=64,t=1,p=1,data=x${SALT}${DIGEST}", "damaged"),
    ("other digits", f"$argon2id$v=19$m=٦٤,t=1,p=1${SALT}${DIGEST}", "damaged"),
    ("leading zero", f"$argon2id$v=19$m=064,t=1,p=1${SALT}${DIGEST}", "damaged"),
    ("no time", f"$argon2id$v=19$m=64,t=0,p=1${SALT}${DIGEST}", "damaged"),
    ("too much memory", f"$argon2id$v=19$m=1048577,t=1,p=1${SALT}${DIGEST}", "1048577 KiB"),
    ("far too much memory", f"$argon2id$v=19$m=4294967295,t=1,p=1${SALT}${DIGEST}", "damaged"),
    ("too many passes", f"$argon2id$v=19$m=64,t=21,p=1${SALT}${DIGEST}", "21 passes"),
    ("too many lanes", f"$argon2id$v=19$m=1024,t=1,p=17${SALT}${DIGEST}", "17 lanes"),
    ("too little memory", f"$argon2id$v=19$m=15,t=1,p=2${SALT}${DIGEST}", "15 KiB"),
    ("salt too short", f"$argon2id$v=19$m=64,t=1,p=1$c2FsdA${DIGEST}", "salt"),
    ("salt no base64", f"$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQAA${DIGEST}", "salt"),
    ("salt with loose bits", f"$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHR${DIGEST}", "salt"),
    ("digest too short", f"$argon2id$v=19$m=64,t=1,p=1${SALT}$AAAAAAAAAAA", "end"),
    ("digest too long", f"$argon2id$v=19$m=64,t=1,p=1${SALT}${'A' * 88}", "end"),
]


@pytest.mark.parametrize(("name", "encoded", "problem"), UNUSABLE, ids=[row[0] for row in UNUSABLE])
def test_unusable(name: str, encoded: str, problem: str) -> None:
    with pytest.raises(UnusableHash, match=problem) as error:
        parameters(encoded)
    assert SALT not in str(error.value)
    assert DIGEST not in str(error.value)


def test_the_dearest_hash_that_is_allowed() -> None:
    encoded = f"$argon2id$v=19$m=1048576,t=20,p=16${SALT}${DIGEST}"
    assert parameters(encoded) == Parameters(1048576, 20, 16)


def test_an_unmatchable_hash_costs_what_it_is_told() -> None:
    cost = Parameters(64, 2, 1)
    first, second = unmatchable_hash(cost), unmatchable_hash(cost)
    assert first != second
    assert parameters(first) == cost
    assert not verify(first, b"secret")


def test_what_cannot_be_verified_is_no_wrong_password() -> None:
    with pytest.raises(Refused) as refusal:
        verify("$argon2id$v=19$m=64,t=1,p=1$!$!", b"secret")
    assert refusal.value.outcome is Outcome.UNAVAILABLE


async def test_scram_keys_verify_a_password_that_is_shown() -> None:
    keys, verifier = make_scram_keys(b"secret", 4096), PasswordVerifier()
    assert await verifier.verify(keys, b"secret")
    assert not await verifier.verify(keys, b"Secret")
    assert not await verifier.verify(keys, b"\xff")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[bytes]]]:
    """Verifications that wait until they are let go, and the secrets of those that have begun."""
    let_go, begun = threading.Event(), list[bytes]()

    def verify_held(encoded: str, secret: bytes) -> bool:
        begun.append(secret)
        assert let_go.wait(5), "nobody let go"
        return secret == b"right"

    monkeypatch.setattr(passwords, "verify", verify_held)
    yield let_go, begun
    let_go.set()


async def test_the_queue_has_an_end(held: tuple[threading.Event, list[bytes]]) -> None:
    let_go, begun = held
    verifier = PasswordVerifier(concurrent=1, max_waiting=2)
    answers: list[bool] = []

    async def ask(secret: bytes) -> None:
        answers.append(await verifier.verify("", secret))

    async with trio.open_nursery() as nursery:
        for secret in (b"right", b"wrong", b"right"):
            nursery.start_soon(ask, secret)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Refused) as refusal:
            await verifier.verify("", b"right")
        assert refusal.value.outcome is Outcome.UNAVAILABLE
        assert len(begun) <= 1
        let_go.set()
    assert sorted(answers) == [False, True, True]
    assert await verifier.verify("", b"right")  # the queue is empty again


async def test_a_client_that_is_gone_gives_its_place_back(held: tuple[threading.Event, list[bytes]]) -> None:
    let_go, _begun = held
    verifier = PasswordVerifier(concurrent=1, max_waiting=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(verifier.verify, "", b"one")
        nursery.start_soon(verifier.verify, "", b"two")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with trio.move_on_after(0):
        await verifier.verify("", b"three")  # waits for the abandoned thread, but is not refused
    let_go.set()
    assert await verifier.verify("", b"right")
