"""One AUTHENTICATE: the exchange of a mechanism, carried over lines (RFC 9051 §6.2.2)."""

from __future__ import annotations

from collections.abc import Generator
from typing import cast

from proxy.imap import responses
from proxy.imap.grammar import decode_base64
from proxy.imap.reader import Reader
from proxy.model import Account, AccountWanted, Challenge, Credentials, KeyedMechanism, Mechanism


class Exchange:
    """Challenges and responses, base64 around each.

    Where the mechanism wants an account, run() yields AccountWanted; before it goes on that has to be in `account`,
    or the exchange is over.
    """

    def __init__(self, mechanism: Mechanism, reader: Reader, out: bytearray, max_line_bytes: int) -> None:
        self.mechanism = mechanism
        self.account: Account | None = None
        self.account_told = False  # the client has seen something of it
        self.cancelled = False  # by the client
        self._reader = reader
        self._out = out
        self._max_line_bytes = max_line_bytes

    def run(self, response: bytes | None) -> Generator[AccountWanted | None, None, Credentials | None]:
        """Carry it to its end; None: there are no credentials, since the client cancelled or no account was given.

        Args:
            response: The initial response, decoded; None: there was none.
        Raises:
            BadSyntax: A response is no base64.
            MalformedResponse: A response doesn't fit the mechanism.
        """
        while not isinstance(result := self.mechanism.step(response), Credentials):
            challenge = result if isinstance(result, Challenge) else (yield from self._go_on_with_account(result))
            if challenge is None:
                return None
            self._out += responses.continuation(challenge.data)
            line = yield from self._reader.line(self._max_line_bytes)
            if line == b"*":
                self.cancelled = True
                return None
            response = decode_base64(line)
        return result

    def _go_on_with_account(self, wanted: AccountWanted) -> Generator[AccountWanted | None, None, Challenge | None]:
        yield wanted
        if self.account is None:
            return None
        self.account_told = True
        return cast("KeyedMechanism", self.mechanism).supply(self.account)
