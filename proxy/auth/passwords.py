"""Password hashes: argon2id, made and verified. The one door to argon2-cffi.

A verification takes tens of milliseconds and as many MiB as its hash asks for. It runs in a thread, few at a time,
behind a queue with an end: whoever finds it full is told that the account is unavailable, which no client takes for
a wrong password. Parameters are bounded when a hash is read, so that a file of hashes cannot stop the service. Whoever
has SCRAM keys alone, and shows the password, is verified with these on the same ways.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from dataclasses import dataclass

import argon2
import trio

from proxy.auth.scram_keys import verify_password
from proxy.model import ScramKeys
from proxy.outcome import Outcome, Refused

MAX_MEMORY_KIB = 1024 * 1024
MAX_TIME = 20
MAX_PARALLELISM = 16
MIN_SALT_OCTETS, MAX_SALT_OCTETS = 8, 64
MIN_DIGEST_OCTETS, MAX_DIGEST_OCTETS = 16, 64

# Encoded as the reference implementation does; version 0x13 is the one of RFC 9106.
_ENCODED = re.compile(
    r"\$argon2id\$v=19\$m=([1-9][0-9]{0,8}),t=([1-9][0-9]{0,8}),p=([1-9][0-9]{0,8})\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)"
)


class UnusableHash(ValueError):
    """A hash that is not verified here. The text says why and never holds the hash."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a hash costs. Source: RFC 9106 §3.1."""

    memory_kib: int
    time: int
    parallelism: int


# The second recommended option of RFC 9106 §4: 64 MiB, 3 passes, 4 lanes.
DEFAULT_PARAMETERS = Parameters(
    memory_kib=argon2.profiles.RFC_9106_LOW_MEMORY.memory_cost,
    time=argon2.profiles.RFC_9106_LOW_MEMORY.time_cost,
    parallelism=argon2.profiles.RFC_9106_LOW_MEMORY.parallelism,
)


def hash_password(secret: bytes, parameters: Parameters = DEFAULT_PARAMETERS) -> str:
    """Hash a password with a new salt, for users.yaml."""
    hasher = argon2.PasswordHasher(parameters.time, parameters.memory_kib, parameters.parallelism)
    return hasher.hash(secret)


def parameters(encoded: str) -> Parameters:
    """Check a hash and say what it costs.

    Raises:
        UnusableHash: It is no argon2id hash, is damaged, or asks for more than is allowed.
    """
    if not encoded.startswith("$argon2id$"):
        raise UnusableHash("not an argon2id hash; `imap-porter hash-password` makes one")
    match = _ENCODED.fullmatch(encoded)
    if match is None:
        raise UnusableHash("a damaged argon2id hash; expected $argon2id$v=19$m=…,t=…,p=…$salt$hash")
    memory, time, parallelism = int(match[1]), int(match[2]), int(match[3])
    if memory > MAX_MEMORY_KIB:
        raise UnusableHash(f"asks for {memory} KiB of memory; at most {MAX_MEMORY_KIB} are allowed")
    if time > MAX_TIME:
        raise UnusableHash(f"asks for {time} passes; at most {MAX_TIME} are allowed")
    if parallelism > MAX_PARALLELISM:
        raise UnusableHash(f"asks for {parallelism} lanes; at most {MAX_PARALLELISM} are allowed")
    if memory < 8 * parallelism:  # RFC 9106 §3.1
        raise UnusableHash(f"has {memory} KiB of memory for {parallelism} lanes; each needs 8")
    if not MIN_SALT_OCTETS <= _decoded_octets(match[4]) <= MAX_SALT_OCTETS:
        raise UnusableHash(f"its salt is damaged, or not {MIN_SALT_OCTETS} to {MAX_SALT_OCTETS} octets long")
    if not MIN_DIGEST_OCTETS <= _decoded_octets(match[5]) <= MAX_DIGEST_OCTETS:
        raise UnusableHash(f"its end is damaged, or not {MIN_DIGEST_OCTETS} to {MAX_DIGEST_OCTETS} octets long")
    return Parameters(memory, time, parallelism)


def _decoded_octets(text: str) -> int:
    """How many octets base64 without padding holds; 0 for none that the argon2 library would read."""
    try:
        octets = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return 0
    return len(octets) if base64.b64encode(octets).rstrip(b"=").decode("ascii") == text else 0


def unmatchable_hash(cost: Parameters) -> str:
    """A hash that costs `cost` to verify and that no password has: for names that nobody knows."""
    salt, digest = (base64.b64encode(secrets.token_bytes(size)).rstrip(b"=").decode("ascii") for size in (16, 32))
    return f"$argon2id$v=19$m={cost.memory_kib},t={cost.time},p={cost.parallelism}${salt}${digest}"


def verify(kept: str | ScramKeys, secret: bytes) -> bool:
    """Say whether a password has this hash, or these keys. Takes its time, and the GIL only at its ends.

    Raises:
        Refused: UNAVAILABLE, it could not be found out (no memory, no thread).
    """
    if isinstance(kept, ScramKeys):
        return verify_password(kept, secret)
    try:
        return argon2.low_level.verify_secret(kept.encode("ascii"), secret, argon2.low_level.Type.ID)
    except argon2.exceptions.VerifyMismatchError:
        return False
    except argon2.exceptions.VerificationError as exc:
        raise Refused(Outcome.UNAVAILABLE, f"argon2: {exc}") from exc


class PasswordVerifier:
    """Verifies off the event loop: `concurrent` at a time, at most `max_waiting` behind them.

    One verifier serves all files of a worker, so that its bounds are the worker's.
    """

    def __init__(self, *, concurrent: int = 2, max_waiting: int = 200) -> None:
        # Two: each may fill its hash's memory (64 MiB by default), and more than the cores gain nothing.
        # 200 waiting are some 10 s of work, about what a client waits.
        self._limiter = trio.CapacityLimiter(concurrent)
        self._max_pending = concurrent + max_waiting
        self._pending = 0

    async def verify(self, kept: str | ScramKeys, secret: bytes) -> bool:
        """Say whether a password has this hash, or these keys.

        Raises:
            Refused: UNAVAILABLE, too many wait already or it could not be found out.
        """
        if self._pending >= self._max_pending:
            raise Refused(Outcome.UNAVAILABLE, f"{self._pending} passwords are waiting to be verified")
        self._pending += 1
        try:
            # A client that is gone frees its place in the queue; a thread keeps its slot until it has finished.
            return await trio.to_thread.run_sync(verify, kept, secret, limiter=self._limiter, abandon_on_cancel=True)
        finally:
            self._pending -= 1
