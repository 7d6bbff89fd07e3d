"""SCRAM keys: read, made, and used where a client shows the password itself. One of the doors to scramp.

Keys are what a server keeps in a password's place (RFC 5802 §3). They are read in two spellings, that of RFC 5803 and
Dovecot's, and written in the first:

    SCRAM-SHA-256$50000:<salt>$<StoredKey>:<ServerKey>
    {SCRAM-SHA-256}50000,<salt>,<StoredKey>,<ServerKey>

What they ask for is bounded when they are read: a client pays for the iterations, and for PLAIN and LOGIN we do.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets
from stringprep import in_table_b1

from scramp import ScramException, ScramMechanism

from proxy.model import KeyShape, ScramKeys

MIN_ITERATIONS = 4096  # RFC 7677 §4
MAX_ITERATIONS = 1_000_000
MIN_SALT_OCTETS, MAX_SALT_OCTETS = 12, 64  # scramp, as a client too, takes no shorter one
_KEY_OCTETS = 32  # SHA-256

# RFC 7677 §4 asks for 0.1 s on a modern machine, which was 15,000 when it was written. A client pays it for each of its
# connections, and those of Cyrus SASL (mutt, mbsync) refuse more than 65,536.
DEFAULT_ITERATIONS = 50_000
_SALT_OCTETS = 16  # as Dovecot, Cyrus and PostgreSQL make them
DEFAULT_SHAPE = KeyShape(DEFAULT_ITERATIONS, _SALT_OCTETS)

_BASE64 = r"([A-Za-z0-9+/]+={0,2})"
_RFC_5803 = re.compile(rf"SCRAM-SHA-256 *\$ *([0-9]{{1,10}}):{_BASE64} *\$ *{_BASE64}:{_BASE64}", re.IGNORECASE)
_DOVECOT = re.compile(rf"\{{SCRAM-SHA-256\}}([0-9]{{1,10}}),{_BASE64},{_BASE64},{_BASE64}", re.IGNORECASE)

_MECHANISM = ScramMechanism("SCRAM-SHA-256")


def shape_of(keys: ScramKeys) -> KeyShape:
    """What can be told of these keys from outside."""
    return KeyShape(keys.iterations, len(keys.salt))


class UnusableKeys(ValueError):
    """Keys that nobody logs in with here. The text says why and never holds the keys."""


def parse_scram_keys(text: str) -> ScramKeys:
    """Read keys in the spelling of RFC 5803 or in Dovecot's.

    Raises:
        UnusableKeys: They are of another mechanism, damaged, or ask for more or less than is allowed.
    Source: RFC 5803 §2 (with RFC 3112 §2: spaces may stand around each "$"), Dovecot's password schemes.
    """
    match = _RFC_5803.fullmatch(text) or _DOVECOT.fullmatch(text)
    if match is None:
        if re.match(r"\{?SCRAM-SHA-256[$} ]", text, re.IGNORECASE):
            raise UnusableKeys("damaged SCRAM keys; expected SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey")
        raise UnusableKeys("no keys for SCRAM-SHA-256; `imap-porter hash-password --scram` makes them")
    iterations = int(match[1])
    if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
        raise UnusableKeys(f"asks for {iterations} iterations; {MIN_ITERATIONS} to {MAX_ITERATIONS} are allowed")
    salt = _decoded(match[2])
    if not MIN_SALT_OCTETS <= len(salt) <= MAX_SALT_OCTETS:
        raise UnusableKeys(f"its salt is damaged, or not {MIN_SALT_OCTETS} to {MAX_SALT_OCTETS} octets long")
    stored_key, server_key = _decoded(match[3]), _decoded(match[4])
    if len(stored_key) != _KEY_OCTETS or len(server_key) != _KEY_OCTETS:
        raise UnusableKeys(f"its keys are damaged, or not {_KEY_OCTETS} octets long")
    return ScramKeys(salt, iterations, stored_key, server_key)


def _decoded(text: str) -> bytes:
    """What base64 holds; nothing where it is none."""
    if len(text) % 4:  # strict_mode lets padding pass where none is due
        return b""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        return b""


def scram_text(keys: ScramKeys) -> str:
    """Keys in the spelling of RFC 5803."""
    salt, stored_key, server_key = (
        base64.b64encode(octets).decode("ascii") for octets in (keys.salt, keys.stored_key, keys.server_key)
    )
    return f"SCRAM-SHA-256${keys.iterations}:{salt}${stored_key}:{server_key}"


def make_scram_keys(password: bytes, iterations: int = DEFAULT_ITERATIONS) -> ScramKeys:
    """Make keys with a new salt.

    Raises:
        ValueError: No SCRAM client could send this password; the text says why and never holds it.
    Source: RFC 5802 §3 and, for what is done to the password first, RFC 4013.
    """
    try:
        text = password.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("the password is not UTF-8") from None
    # They map to nothing: the keys would be those of the empty password.
    if all(map(in_table_b1, text)):
        raise ValueError("the password has no character that counts")
    try:
        return _derived(text, secrets.token_bytes(_SALT_OCTETS), iterations)
    except ScramException as exc:
        raise ValueError(f"the password does not suit SASLprep (RFC 4013): {exc.args[0]}") from None


def decoy_keys(name: str, key: bytes, shape: KeyShape) -> ScramKeys:
    """Keys for a name that nobody has: whoever asks again sees the same salt, and no password has them.

    Args:
        name: The canonical name.
        key: A secret that outlives the connection; without it a decoy's salt could be told from a real one.
        shape: How real keys mostly look.
    """
    octets = name.encode("utf-8", "surrogateescape")
    stored_key, server_key = (
        hmac.digest(key, purpose + octets, "sha256") for purpose in (b"StoredKey\0", b"ServerKey\0")
    )
    salt = hmac.digest(key, b"salt\0" + octets, "sha512")  # as long as the longest that are taken
    return ScramKeys(salt[: shape.salt_octets], shape.iterations, stored_key, server_key)


def verify_password(keys: ScramKeys, password: bytes) -> bool:
    """Say whether a password has these keys. Takes its time, whatever the answer; the GIL it takes only at its ends."""
    try:
        made = _derived(password.decode("utf-8"), keys.salt, keys.iterations)
    except (UnicodeDecodeError, ScramException):
        # No keys come from such a password. That it was refused so soon would tell that the name is known.
        _derived("", keys.salt, keys.iterations)
        return False
    return hmac.compare_digest(made.stored_key, keys.stored_key)


def _derived(password: str, salt: bytes, iterations: int) -> ScramKeys:
    salt, stored_key, server_key, iterations = _MECHANISM.make_auth_info(password, iterations, salt)
    return ScramKeys(salt, iterations, stored_key, server_key)
