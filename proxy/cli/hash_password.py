"""`imap-porter hash-password`: from a password to the line that users.yaml wants."""

from __future__ import annotations

import getpass
import sys

from proxy.auth.passwords import hash_password as make_hash

EXIT_REFUSED = 1
EXIT_INTERRUPTED = 130  # as shells count a SIGINT
_MAX_OCTETS = 8192  # no longer password passes a client's command


class _Unusable(Exception):
    """A password that nobody could log in with, or that was not typed twice alike."""


def hash_password() -> int:
    """Ask twice at a terminal, else read the first line of standard input; print the hash alone."""
    try:
        secret = _ask() if sys.stdin.isatty() else _read()
    except _Unusable as exc:
        print(exc, file=sys.stderr)
        return EXIT_REFUSED
    except (KeyboardInterrupt, EOFError):
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    print(make_hash(secret))
    return 0


def _ask() -> bytes:
    secret = getpass.getpass("Password: ")
    # Before the second question: there is nothing to repeat.
    octets = _checked(secret.encode("utf-8", "surrogateescape"))
    if getpass.getpass("Once more: ") != secret:
        raise _Unusable("The two passwords differ.")
    return octets


def _read() -> bytes:
    line = sys.stdin.buffer.readline(_MAX_OCTETS + 2)
    return _checked(line.removesuffix(b"\n").removesuffix(b"\r"))


def _checked(secret: bytes) -> bytes:
    if not secret:
        raise _Unusable("The password is empty.")
    if len(secret) > _MAX_OCTETS:
        raise _Unusable(f"The password is longer than {_MAX_OCTETS} octets.")
    if b"\0" in secret:
        raise _Unusable("The password holds a NUL, which no IMAP login can carry.")  # RFC 9051 §9, RFC 4616 §2
    return secret
