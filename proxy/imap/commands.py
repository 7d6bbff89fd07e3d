"""The commands that an established session knows: a bounded table of names, and how a command line begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

# These two stand in observe/tally.py as well: the floors forbid one to import the other.
OTHER = "OTHER"  # every command that the table does not name
IDLE = "IDLE"
COMPRESS = "COMPRESS"
UID = "UID"  # only a prefix: the names are "UID FETCH", "UID COPY", ...

# Whoever logged in stays who he is, over the TLS that he came by (RFC 9051 §6.2: only before login).
# UNAUTHENTICATE (RFC 8437) would let a client log in a second time, past the proxy.
REFUSED_AFTER_LOGIN = frozenset({b"LOGIN", b"AUTHENTICATE", b"STARTTLS", b"UNAUTHENTICATE"})

_AFTER_UID = ("COPY", "EXPUNGE", "FETCH", "MOVE", "REPLACE", "SEARCH", "SORT", "STORE", "THREAD")

# RFC 9051 §6 and RFC 3501 §6, then what Dovecot and Cyrus add and clients use.
COMMANDS = frozenset(
    (
        *("CAPABILITY", "NOOP", "LOGOUT", "STARTTLS", "AUTHENTICATE", "LOGIN", "ENABLE", "SELECT", "EXAMINE", "CREATE"),
        *("DELETE", "RENAME", "SUBSCRIBE", "UNSUBSCRIBE", "LIST", "LSUB", "NAMESPACE", "STATUS", "APPEND", "IDLE"),
        *("CHECK", "CLOSE", "UNSELECT", "EXPUNGE", "SEARCH", "FETCH", "STORE", "COPY", "MOVE"),
        *("COMPRESS", "DELETEACL", "ESEARCH", "GETACL", "GETMETADATA", "GETQUOTA", "GETQUOTAROOT", "ID", "LISTRIGHTS"),
        *("MYRIGHTS", "NOTIFY", "REPLACE", "SETACL", "SETMETADATA", "SETQUOTA", "SORT", "THREAD", "UNAUTHENTICATE"),
        *(f"{UID} {name}" for name in _AFTER_UID),
        OTHER,
    )
)

# What a tag may not hold: atom-specials and quoted-specials (RFC 9051 §9). A "+" is let pass inside one, as
# Cyrus does; in front it would make the answer look like a continuation request.
_NOT_IN_TAGS = bytes([*range(0x21), *b'(){%*"\\', *range(0x7F, 0x100)])


def _spellings(names: Iterable[str]) -> dict[bytes, str]:
    return {spelling.encode("ascii"): name for name in names for spelling in (name, name.lower(), name.capitalize())}


AFTER_UID: Mapping[bytes, str] = {spelling: f"{UID} {name}" for spelling, name in _spellings(_AFTER_UID).items()}


@lru_cache(maxsize=8)
def plain_names(refused: frozenset[bytes]) -> Mapping[bytes, str]:
    """Names by the spellings that clients use, for commands whose line and answer ask for no special care.

    Left out: what is refused, IDLE and COMPRESS. In it, though no command: UID, to be followed up in AFTER_UID.
    """
    special = {IDLE, COMPRESS, OTHER}
    names = {name for name in COMMANDS - special if " " not in name and name.encode("ascii") not in refused}
    return _spellings(names | {UID})


@lru_cache(maxsize=8)
def lines_without_arguments(refused: frozenset[bytes]) -> Mapping[bytes, str]:
    """The same names by what stands behind the tag where nothing follows the name."""
    return {word + b"\r\n": name for word, name in plain_names(refused).items() if name != UID}


def command_name(words: list[bytes]) -> str:
    """The name in the table of a command line that was split into words: tag, command, ..."""
    if len(words) < 2:
        return OTHER
    name = words[1].upper()
    if name == b"UID" and len(words) > 2:
        name += b" " + words[2].upper()
    known = name.decode("ascii", "replace")
    return known if known in COMMANDS else OTHER


def valid_tag(tag: bytes) -> bool:
    """Whether a server would answer with this tag, rather than with an untagged BAD."""
    return bool(tag) and tag[0] != 0x2B and len(tag.translate(None, _NOT_IN_TAGS)) == len(tag)
