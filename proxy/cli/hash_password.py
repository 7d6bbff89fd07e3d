"""`imap-porter hash-password`: from a password to the line that users.yaml wants; or a new token and its hash."""

from __future__ import annotations

import secrets
import sys

from proxy.auth.passwords import Parameters
from proxy.auth.passwords import hash_password as make_hash
from proxy.auth.scram_keys import make_scram_keys, scram_text
from proxy.cli.secret_input import UnusableSecret, read_secret

EXIT_REFUSED = 1
EXIT_INTERRUPTED = 130  # as shells count a SIGINT
_TOKEN_OCTETS = 32


def hash_password(*, scram: bool = False) -> int:
    """Ask twice at a terminal, else read the first line of standard input; print the hash alone.

    Args:
        scram: Print SCRAM keys in its place, as RFC 5803 spells them.
    """
    try:
        secret = read_secret(twice=True)
        made = _make_keys(secret) if scram else make_hash(secret)
    except UnusableSecret as exc:
        print(exc, file=sys.stderr)
        return EXIT_REFUSED
    except (KeyboardInterrupt, EOFError):
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    print(made)
    return 0


def make_token() -> int:
    """Print a new token for the administrators' API, and its hash on the next line."""
    token = secrets.token_urlsafe(_TOKEN_OCTETS)
    print(token)
    # What nobody can guess needs no costly hash, and whoever guesses costs nothing either.
    print(make_hash(token.encode("ascii"), Parameters(memory_kib=8, time=1, parallelism=1)))
    return 0


def _make_keys(secret: bytes) -> str:
    try:
        return scram_text(make_scram_keys(secret))
    except ValueError as exc:
        raise UnusableSecret(f"No SCRAM keys can be made: {exc}.") from None
