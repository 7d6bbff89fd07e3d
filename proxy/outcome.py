"""How things end: one word that chooses the reply, the log's `outcome` and the metric's label."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How a login or a session ended."""

    # a login
    OK = "ok"
    AUTHENTICATION_FAILED = "authentication_failed"
    AUTHORIZATION_FAILED = "authorization_failed"
    EXPIRED = "expired"
    PRIVACY_REQUIRED = "privacy_required"
    UNAVAILABLE = "unavailable"
    LIMIT = "limit"
    IN_USE = "in_use"
    CONTACT_ADMIN = "contact_admin"
    SERVER_BUG = "server_bug"
    CANCELLED = "cancelled"
    # a session
    LOGGED_OUT = "logged_out"
    CLIENT_CLOSED = "client_closed"
    BACKEND_CLOSED = "backend_closed"
    PROTOCOL_VIOLATION = "protocol_violation"
    TLS_FAILED = "tls_failed"
    LOGIN_TIMEOUT = "login_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    TRY_LIMIT = "try_limit"
    DRAINED = "drained"
    MOVED = "moved"
    KICKED = "kicked"
    WORKER_LOST = "worker_lost"  # its process is gone, which cannot tell any more


@dataclass(frozen=True, slots=True)
class Reply:
    """A tagged status response without its tag: `NO [CODE] text` (RFC 9051 §7.1, codes of RFC 5530)."""

    status: str
    code: str | None
    text: str

    def __bytes__(self) -> bytes:
        code = f"[{self.code}] " if self.code else ""
        return f"{self.status} {code}{self.text}".encode("ascii")


# What a client is told when a login is refused. Unknown account, wrong password and a backend's own
# refusal send the same bytes; an outage never reads like a wrong password, for which clients ask anew.
REPLIES: dict[Outcome, Reply] = {
    Outcome.AUTHENTICATION_FAILED: Reply("NO", "AUTHENTICATIONFAILED", "Authentication failed."),
    Outcome.AUTHORIZATION_FAILED: Reply("NO", "AUTHORIZATIONFAILED", "Authorization failed."),
    Outcome.EXPIRED: Reply("NO", "EXPIRED", "The password or token has expired."),
    Outcome.PRIVACY_REQUIRED: Reply("NO", "PRIVACYREQUIRED", "TLS is required to authenticate."),
    Outcome.UNAVAILABLE: Reply("NO", "UNAVAILABLE", "Account is temporarily unavailable."),
    Outcome.LIMIT: Reply("NO", "LIMIT", "Too many connections or attempts; try again later."),
    Outcome.IN_USE: Reply("NO", "INUSE", "Account is in use."),
    Outcome.CONTACT_ADMIN: Reply("NO", "CONTACTADMIN", "Contact your administrator."),
    Outcome.SERVER_BUG: Reply("NO", "SERVERBUG", "Internal error."),
    Outcome.CANCELLED: Reply("BAD", None, "Authentication cancelled."),
}

# The untagged BYE that ends a connection, where a protocol allows to say it (RFC 9051 §7.1.5).
FAREWELLS: dict[Outcome, bytes] = {
    Outcome.PROTOCOL_VIOLATION: b"* BYE Too many or too large invalid commands.\r\n",
    Outcome.LOGIN_TIMEOUT: b"* BYE Not logged in within the time allowed.\r\n",
    Outcome.IDLE_TIMEOUT: b"* BYE Disconnected for inactivity.\r\n",
    Outcome.TRY_LIMIT: b"* BYE Too many failed logins.\r\n",
    Outcome.EXPIRED: b"* BYE The token or certificate has expired; please log in again.\r\n",
    Outcome.BACKEND_CLOSED: b"* BYE [UNAVAILABLE] Mail server connection lost; please reconnect.\r\n",
    Outcome.DRAINED: b"* BYE Server is going down for maintenance; please reconnect.\r\n",
    Outcome.MOVED: b"* BYE Your mailbox is being moved to another server; please reconnect.\r\n",
    Outcome.KICKED: b"* BYE Disconnected by the administrator.\r\n",
    Outcome.LIMIT: b"* BYE [LIMIT] A limit is reached; try again later.\r\n",
    Outcome.UNAVAILABLE: b"* BYE [UNAVAILABLE] Temporarily unavailable; try again later.\r\n",
    Outcome.SERVER_BUG: b"* BYE [SERVERBUG] Internal error.\r\n",
}


class Refused(Exception):
    """The login cannot go on. `outcome` chooses the reply; `detail` goes to the log only."""

    def __init__(
        self,
        outcome: Outcome,
        detail: str = "",
        *,
        step: str = "",
        limit: str = "",
        wait_seconds: float = 0.0,
        person: bool = False,
        silent: bool = False,
    ) -> None:
        super().__init__(outcome, detail)
        self.outcome = outcome
        self.detail = detail
        self.step = (
            step  # where a backend login stuck: local queue resolve connect tls greeting starttls capability id login
        )
        self.limit = limit  # which limit was reached, for the log and metrics
        self.wait_seconds = wait_seconds  # the client hears of it not before this much time has passed
        self.silent = silent  # whoever was asked did not answer in time, or broke the connection off
        self.person = person  # the trouble is this account's; whoever was asked is well

    def __str__(self) -> str:
        return f"{self.outcome}: {self.detail}" if self.detail else str(self.outcome)
