"""What one login at a backend consists of: its words, by what the backend offers, and their absence from any log."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Set
from dataclasses import dataclass, field

from proxy.imap.client_commands import (
    authenticate,
    is_sayable,
    login_command,
    oauthbearer_response,
    plain_response,
    xoauth2_response,
)
from proxy.imap.grammar import is_quotable, quote
from proxy.outcome import Outcome

# What carries a token, and what answers the challenge that tells a failure there: an empty line, a lone ^A
# (RFC 7628 §3.2.3). The tagged NO comes behind that answer.
FAILURE_ANSWERS = {"XOAUTH2": b"", "OAUTHBEARER": b"AQ=="}
TOKEN_MECHANISMS = frozenset(FAILURE_ANSWERS)

# RFC 7628 §3.1: what a value may hold, without the blanks that no token has (RFC 6750 §2.1).
_TOKEN_CHARS = bytes(range(0x21, 0x7F))
# So much of a secret's beginning is recognized in what a backend says: one that quotes a long line may cut it off.
_RECOGNIZED_BYTES = 16
# Dovecot 2.3 closes the connection on more, be it base64 and its CR or LOGIN with its literals; that would look like an
# outage, and anybody could cause it. Some tokens are longer; whoever has one was verified before.
_MAX_PASSWORD_BYTES = 8192


@dataclass(frozen=True, slots=True)
class BackendLogin:
    """What to say at a backend.

    Args:
        authentication_identity: Whose credentials these are.
        secret: The password's octets, or the token's.
        authorization_identity: Whom to act as; if not empty, the login is AUTHENTICATE PLAIN.
        starttls: TLS is required on this connection in clear; a backend without it is a failure.
        id_fields: If not empty, an ID command with these pairs goes before the login (RFC 2971).
        mechanism: XOAUTH2 or OAUTHBEARER: the secret is a token, and goes by this one or, where the backend has
            not got it, by the other. "": it is a password.
    """

    authentication_identity: str
    secret: bytes = field(repr=False)
    authorization_identity: str = ""
    starttls: bool = False
    id_fields: tuple[tuple[str, str], ...] = ()
    mechanism: str = ""


@dataclass(frozen=True, slots=True)
class LoginCommand:
    """A login without its tag.

    `pieces`: each but the first waits for a continuation request. `failure_answer`: what one more continuation request
    gets, which tells a failure; None: there must not be one.
    """

    pieces: list[bytes] = field(repr=False)
    failure_answer: bytes | None = None


class Refusal(Exception):
    """Ends the dialogue with a BackendRefused; `detail` is printable ASCII without the secret."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(outcome, detail)
        self.outcome = outcome
        self.detail = detail


def check_sayable(login: BackendLogin) -> None:
    """Refuse what no backend may be told.

    An empty name or secret is no PLAIN message (RFC 4616 §2), and a backend that binds to a directory might
    take an empty password for an anonymous login (RFC 4513 §5.1.2).

    Raises:
        Refusal: AUTHENTICATION_FAILED.
    """
    name, secret = login.authentication_identity, login.secret
    if not (is_sayable(name) and is_sayable(login.authorization_identity)):
        raise Refusal(Outcome.AUTHENTICATION_FAILED, "a name with CR, LF, NUL or octets that are no UTF-8")
    if not name or not secret or b"\0" in secret:
        raise Refusal(Outcome.AUTHENTICATION_FAILED, "an empty name, an empty secret or one with NUL")
    # Security: ^A ends each part of a token's message, and behind it another name or token could stand.
    if login.mechanism and ("\x01" in name or secret.translate(None, _TOKEN_CHARS)):
        raise Refusal(Outcome.AUTHENTICATION_FAILED, "a name with ^A, or a token with octets that no token has")


def choose_command(login: BackendLogin, offered: Set[bytes]) -> LoginCommand:
    """The login in the way that suits it and that the backend offers.

    Args:
        offered: The backend's capabilities in upper case.
    Raises:
        Refusal: UNAVAILABLE, there is none; or AUTHENTICATION_FAILED, no backend has so long a password.
    """
    initial_response = b"SASL-IR" in offered
    if login.mechanism:
        mechanism = _token_mechanism(login, offered)
        pieces = authenticate(mechanism, _token_response(login, mechanism), initial_response=initial_response)
        return LoginCommand(pieces, FAILURE_ANSWERS[mechanism])
    name = login.authentication_identity.encode()
    plain = b"AUTH=PLAIN" in offered
    disabled = b"LOGINDISABLED" in offered
    only_plain = bool(login.authorization_identity) or disabled
    if only_plain and not plain:
        reason = ", and has LOGINDISABLED" if disabled else ""
        raise Refusal(Outcome.UNAVAILABLE, f"the backend offers no AUTH=PLAIN{reason}")
    if plain and (only_plain or not (is_quotable(name) and is_quotable(login.secret))):
        response = _plain_response(login)
        _check_length(len(response) + len(b"\r"))
        return LoginCommand(authenticate("PLAIN", response, initial_response=initial_response))
    pieces = login_command(name, login.secret, offered)
    _check_length(sum(map(len, pieces)))
    return LoginCommand(pieces)


def _check_length(octets: int) -> None:
    if octets > _MAX_PASSWORD_BYTES:
        detail = f"name and password make {octets} octets, more than {_MAX_PASSWORD_BYTES}"
        raise Refusal(Outcome.AUTHENTICATION_FAILED, detail)


def without_secret(said: bytes, login: BackendLogin) -> bytes:
    """Foreign text with the secret, in each form in which it may have been sent, replaced by `***`."""
    secret = login.secret
    if not secret:
        return said
    encoded = b64encode(secret)
    forms = {secret, quote(secret)[1:-1], encoded, encoded.rstrip(b"=")}
    if login.mechanism:
        forms |= {_token_response(login, mechanism) for mechanism in TOKEN_MECHANISMS}
    else:
        forms.add(_plain_response(login))
    for form in sorted(forms, key=len, reverse=True):
        said = _covered(said, form)
    return said


def _token_mechanism(login: BackendLogin, offered: Set[bytes]) -> str:
    """The mechanism by which the client came, or else the other one: both carry the same token."""
    for mechanism in (login.mechanism, *sorted(TOKEN_MECHANISMS - {login.mechanism})):
        if b"AUTH=" + mechanism.encode() in offered:
            return mechanism
    raise Refusal(Outcome.UNAVAILABLE, "the backend offers neither AUTH=XOAUTH2 nor AUTH=OAUTHBEARER")


def _token_response(login: BackendLogin, mechanism: str) -> bytes:
    response = xoauth2_response if mechanism == "XOAUTH2" else oauthbearer_response
    return response(login.authentication_identity, login.secret)


def _plain_response(login: BackendLogin) -> bytes:
    return plain_response(login.authorization_identity, login.authentication_identity, login.secret)


def _covered(said: bytes, form: bytes) -> bytes:
    """The text with `***` wherever this form of a secret begins in it, as far as it goes on there."""
    head = form[:_RECOGNIZED_BYTES]
    covered, position = b"", 0
    while (start := said.find(head, position)) >= 0:
        covered += said[position:start] + b"***"
        position = start + _common(said[start : start + len(form)], form)
    return covered + said[position:]


def _common(one: bytes, other: bytes) -> int:
    """How many octets at their beginning are the same."""
    for index, (octet, expected) in enumerate(zip(one, other, strict=False)):
        if octet != expected:
            return index
    return min(len(one), len(other))
