"""What the result codes of a directory come to: a no, an outage of one server, or an outage of the whole directory."""

from __future__ import annotations

import re
from dataclasses import dataclass

from proxy.outcome import Outcome, Refused

# RFC 4511 appendix A
SUCCESS = 0
SIZE_LIMIT_EXCEEDED = 4
NO_SUCH_OBJECT = 32
INVALID_CREDENTIALS = 49
_OPERATIONS_ERROR, _PROTOCOL_ERROR, _TIME_LIMIT_EXCEEDED, _REFERRAL, _ADMIN_LIMIT_EXCEEDED = 1, 2, 3, 10, 11
_CONSTRAINT_VIOLATION, _INVALID_DN_SYNTAX, _INAPPROPRIATE_AUTHENTICATION = 19, 34, 48
_AUTH_METHOD_NOT_SUPPORTED, _STRONGER_AUTH_REQUIRED, _CONFIDENTIALITY_REQUIRED = 7, 8, 13
_BUSY, _UNAVAILABLE, _UNWILLING_TO_PERFORM, _OTHER = 51, 52, 53, 80

# The server has nothing to say now, to anybody.
_DOWN = frozenset({_BUSY, _UNAVAILABLE})
# This server could not answer this question; another one may.
_ELSEWHERE = frozenset({_OPERATIONS_ERROR, _PROTOCOL_ERROR, _TIME_LIMIT_EXCEEDED, _ADMIN_LIMIT_EXCEEDED, _OTHER})

# What a server says to a bind of anybody, as it is set up.
_OF_EVERYBODY = frozenset({_AUTH_METHOD_NOT_SUPPORTED, _STRONGER_AUTH_REQUIRED, _CONFIDENTIALITY_REQUIRED})

# Verdicts about the one who binds. Besides a wrong password: there is no such entry (with `user_dn`), or it has no
# password (48); 389 Directory Server says 53 of an inactivated account and 19 of one locked for wrong passwords. Those
# must be a no: taken for an outage, a cache would go on letting that account in.
_NO = frozenset(
    {
        INVALID_CREDENTIALS,
        NO_SUCH_OBJECT,
        _INVALID_DN_SYNTAX,
        _INAPPROPRIATE_AUTHENTICATION,
        _UNWILLING_TO_PERFORM,
        _CONSTRAINT_VIOLATION,
    }
)

# Active Directory: 532 the password has expired, 773 it must be changed first. 389 Directory Server says it in words.
# Both say so only to those who know the password.
_EXPIRED_MESSAGE = re.compile(r"\bdata (532|773)\b|\bpassword (has )?expired\b", re.IGNORECASE)
# draft-behera-ldap-password-policy-11 §6.2
_PASSWORD_EXPIRED, _CHANGE_AFTER_RESET = 0, 2
_EXPIRED_POLICY = frozenset({_PASSWORD_EXPIRED, _CHANGE_AFTER_RESET})


class ServerFailed(Exception):
    """This server has not answered; another may. The text is for the log and holds nothing secret."""

    def __init__(self, detail: str, *, down: bool = True, gone: bool = False) -> None:
        super().__init__(detail)
        self.down = down  # it would not have answered others either
        self.gone = gone  # it had closed the connection, perhaps long ago


@dataclass(frozen=True, slots=True)
class Result:
    """How an operation ended (RFC 4511 §4.1.9)."""

    code: int
    name: str  # of the code
    message: str = ""  # the server's diagnostic message
    policy_error: int | None = None  # of the password policy control, where the server speaks it

    @property
    def must_be_changed(self) -> bool:
        """Whether the password is good for nothing but to be changed, although the bind succeeded.

        Source: draft-behera-ldap-password-policy-11 §8.1.2.2.
        """
        return self.code == SUCCESS and self.policy_error == _CHANGE_AFTER_RESET

    def __str__(self) -> str:
        text = f"{self.name} ({self.code})"
        return f"{text}: {self.message[:200]}" if self.message else text


def raise_unless_bound(result: Result) -> None:
    """Return if somebody's bind succeeded.

    Raises:
        Refused: AUTHENTICATION_FAILED, EXPIRED, or UNAVAILABLE.
        ServerFailed: It says nothing about the one who binds.
    """
    if result.must_be_changed:
        raise Refused(Outcome.EXPIRED, "bind: the password is right, but has to be changed first")
    if result.code == SUCCESS:
        return
    if result.code in _NO:
        if result.policy_error in _EXPIRED_POLICY or (
            result.code == INVALID_CREDENTIALS and _EXPIRED_MESSAGE.search(result.message)
        ):
            raise Refused(Outcome.EXPIRED, f"bind: {result}")
        raise Refused(Outcome.AUTHENTICATION_FAILED, f"bind: {result}")
    raise_failure("bind", result, person=result.code not in _OF_EVERYBODY)


def raise_failure(what: str, result: Result, *, person: bool = False) -> None:
    """Say what it means that something did not succeed.

    Args:
        what: What it was.
        result: How it ended.
        person: Whether one account was asked about, so that others may fare better.
    Raises:
        Refused: UNAVAILABLE: no server of this directory would do it, as it is set up.
        ServerFailed: Another may.
    """
    detail = f"{what}: {result}"
    if result.code in _DOWN:
        raise ServerFailed(detail)
    if result.code in _ELSEWHERE:
        raise ServerFailed(detail, down=False)
    if result.code == _REFERRAL:
        detail += "; referrals are not followed"
    raise Refused(Outcome.UNAVAILABLE, detail, person=person)
