"""Tokens: who has which, without keeping any.

The settings hold argon2id hashes. To verify one takes tens of milliseconds and MiB, so what was found out is kept, by a
keyed digest: whoever asks every second pays once, and whoever guesses pays for each guess, two at a time at most.
"""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import trio

from proxy.auth.passwords import verify
from proxy.outcome import Outcome, Refused
from proxy.settings.models import AdminToken

MAX_TOKEN_CHARACTERS = 512
MAX_KNOWN_WRONG = 1000
MAX_WRONG = 20  # of one address, in a minute
_MOST_ADDRESSES = 10_000
_AT_ONCE = 2
_MOST_WAITING = 50


class _LastMinute:
    """How often something was done by each address, in the minute that goes on."""

    def __init__(self) -> None:
        self._began = trio.current_time()
        self._counts: Counter[str] = Counter()

    def count(self, address: str) -> int:
        if trio.current_time() - self._began >= 60.0:
            self._began = trio.current_time()
            self._counts.clear()
        return self._counts[address]

    def add(self, address: str) -> None:
        if address in self._counts or len(self._counts) < _MOST_ADDRESSES:
            self._counts[address] += 1


class Tokens:
    """Those of the settings."""

    def __init__(self, tokens: Sequence[AdminToken]) -> None:
        self._tokens = tokens
        self._key = secrets.token_bytes(32)
        self._right: dict[bytes, AdminToken] = {}  # at most one for each
        self._wrong: OrderedDict[bytes, None] = OrderedDict()
        self._wrong_by = _LastMinute()
        self._limiter = trio.CapacityLimiter(_AT_ONCE)
        self._turns = trio.Semaphore(_AT_ONCE)

    async def find(self, token: str, address: str = "") -> AdminToken | None:
        """Whose token this is; None: nobody's.

        Args:
            address: Who shows it: after MAX_WRONG of one address in a minute no more of that address are verified.
        Raises:
            Refused: LIMIT, too many were wrong. UNAVAILABLE, too many wait to be told, or it could not be found out.
        """
        if not token or len(token) > MAX_TOKEN_CHARACTERS or not self._tokens:
            return None
        digest = blake2b(token.encode(errors="surrogatepass"), key=self._key, digest_size=32).digest()
        if (known := self._remembered(digest)) is not _UNKNOWN:
            return known
        if self._wrong_by.count(address) >= MAX_WRONG:
            raise Refused(Outcome.LIMIT, "too many wrong tokens from this address; wait a minute")
        if self._turns.statistics().tasks_waiting >= _MOST_WAITING:
            raise Refused(Outcome.UNAVAILABLE, "too many tokens are waiting to be verified")
        async with self._turns:
            if (known := self._remembered(digest)) is not _UNKNOWN:  # by whoever came with it at the same time
                return known
            found = await self._search(token)
            if found is not None:
                self._right[digest] = found
            else:
                self._wrong_by.add(address)
                self._wrong[digest] = None
                if len(self._wrong) > MAX_KNOWN_WRONG:
                    self._wrong.popitem(last=False)
            return found

    def _remembered(self, digest: bytes) -> AdminToken | None:
        if (right := self._right.get(digest)) is not None:
            return right
        if digest in self._wrong:
            self._wrong.move_to_end(digest)
            return None
        return _UNKNOWN

    async def _search(self, token: str) -> AdminToken | None:
        secret = token.encode(errors="surrogatepass")
        for each in self._tokens:
            # A caller who is gone frees his place; a thread keeps its slot until it has finished.
            if await trio.to_thread.run_sync(verify, each.hash, secret, limiter=self._limiter, abandon_on_cancel=True):
                return each
        return None


_UNKNOWN = AdminToken.model_construct(name="", role="viewer", hash="")  # nothing was found out yet
