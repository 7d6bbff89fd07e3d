"""What the dialogues tell their drivers. Frozen values; a secret never shows in a repr."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.model import AccountWanted, Credentials
from proxy.outcome import Outcome


class ProtocolViolation(Exception):
    """The peer broke a rule or a bound and the conversation cannot go on. Never holds what was received."""


# --- from the client, before login (imap/server.py) ---


@dataclass(frozen=True, slots=True)
class StartTls:
    """STARTTLS was accepted and its OK is in data_to_send(): send it, then start TLS (RFC 9051 §6.2.1)."""


@dataclass(frozen=True, slots=True)
class LoginOffered:
    """LOGIN or AUTHENTICATE is complete; answer with accept() or reject()."""

    credentials: Credentials


# AccountWanted (model): a mechanism needs to know the account of a name; answer with supply() or reject().


@dataclass(frozen=True, slots=True)
class ExchangeBrokenOff:
    """An exchange that was given an account ended without a login; its command is answered."""


@dataclass(frozen=True, slots=True)
class LoggedOut:
    """LOGOUT was answered: send what is due and close."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The client closed the connection."""


ServerEvent = StartTls | LoginOffered | AccountWanted | ExchangeBrokenOff | LoggedOut | Gone


# --- from a backend, until it has logged the proxy in (imap/client.py) ---


@dataclass(frozen=True, slots=True)
class BackendStartTls:
    """The backend said OK to STARTTLS: do the handshake, then call tls_established()."""


@dataclass(frozen=True, slots=True)
class BackendLoggedIn:
    """The backend's session is ours.

    `capability`: the names that it has after login, () if it did not say. `notes`: untagged lines for
    the client (ALERT), each with its CRLF. `trailing_data`: octets behind the tagged OK, owed to the client.
    """

    capability: tuple[bytes, ...]
    notes: tuple[bytes, ...]
    trailing_data: bytes


@dataclass(frozen=True, slots=True)
class BackendRefused:
    """The login failed there. `step` and `detail` are for the log: printable ASCII, no secret."""

    outcome: Outcome
    step: str  # greeting, starttls, capability, id, login
    detail: str
    closed: bool = False  # it did not say so: it closed the connection


ClientEvent = BackendStartTls | BackendLoggedIn | BackendRefused
