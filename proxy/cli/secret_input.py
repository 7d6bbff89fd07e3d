"""A secret from whoever runs a command: asked for at a terminal, else the first line of standard input."""

from __future__ import annotations

import getpass
import sys

MAX_PASSWORD_OCTETS = 8192  # no longer password passes a client's command
MAX_TOKEN_OCTETS = 65536


class UnusableSecret(Exception):
    """A secret that nobody could log in with, or that was not typed twice alike. The text never holds it."""


def read_secret(what: str = "password", *, max_octets: int = MAX_PASSWORD_OCTETS, twice: bool = False) -> bytes:
    """Read a secret without showing it.

    Args:
        what: What it is called: "password", "token".
        twice: Whether a terminal asks once more; where a mistyped one would be kept.
    Raises:
        UnusableSecret: It is empty, too long, holds a NUL, or was typed differently the second time.
        EOFError, KeyboardInterrupt: Whoever was asked doesn't want to answer.
    """
    if not sys.stdin.isatty():
        line = sys.stdin.buffer.readline(max_octets + 2)
        return _checked(line.removesuffix(b"\n").removesuffix(b"\r"), what, max_octets)
    typed = getpass.getpass(f"{what.capitalize()}: ")
    # Before the second question: there is nothing to repeat.
    octets = _checked(typed.encode("utf-8", "surrogateescape"), what, max_octets)
    if twice and getpass.getpass("Once more: ") != typed:
        raise UnusableSecret(f"The two {what}s differ.")
    return octets


def _checked(secret: bytes, what: str, max_octets: int) -> bytes:
    if not secret:
        raise UnusableSecret(f"The {what} is empty.")
    if len(secret) > max_octets:
        raise UnusableSecret(f"The {what} is longer than {max_octets} octets.")
    if b"\0" in secret:
        raise UnusableSecret(f"The {what} holds a NUL, which no IMAP login can carry.")  # RFC 9051 §9, RFC 4616 §2
    return secret
