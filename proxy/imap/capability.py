"""Capability names: what a response lists, and what the proxy tells its clients (RFC 9051 §7.2.2)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

# Said to a client that is logged in, these would invite commands that must not pass the proxy: a second
# login (AUTH=, SASL-IR, LOGIN-REFERRALS), TLS inside TLS, or a way back to the state before login (RFC 8437).
_ENDED_BY_LOGIN = frozenset({b"STARTTLS", b"LOGINDISABLED", b"SASL-IR", b"LOGIN-REFERRALS", b"UNAUTHENTICATE"})


def parse(listed: bytes) -> tuple[bytes, ...]:
    """The names of a capability list such as `IMAP4rev1 IDLE`, in their order."""
    return tuple(listed.split())


def before_login(*, secure: bool, starttls: bool, login: bool, mechanisms: Iterable[str]) -> tuple[bytes, ...]:
    """What the proxy itself can do for a client that has not logged in.

    Args:
        secure: TLS protects the connection, or a trusted network does.
        starttls: The listener offers STARTTLS.
        login: The command LOGIN is accepted.
        mechanisms: Those of AUTHENTICATE.
    """
    names = [b"IMAP4rev1", b"SASL-IR", b"LITERAL+", b"ID"]
    if starttls and not secure:
        names.append(b"STARTTLS")
    if secure:
        names += [b"AUTH=" + name.encode("ascii") for name in mechanisms]
    if not (secure and login):
        names.append(b"LOGINDISABLED")
    return tuple(names)


@lru_cache(maxsize=128)  # the backends of a cluster say the same few lists at every login
def after_login(backend: tuple[bytes, ...], *, compress: bool) -> tuple[bytes, ...]:
    """What a client is told after login: the backend's list without what must not pass the proxy."""
    ended = (b"AUTH=",) if compress else (b"AUTH=", b"COMPRESS=")
    return tuple(
        name for name in backend if (upper := name.upper()) not in _ENDED_BY_LOGIN and not upper.startswith(ended)
    )
