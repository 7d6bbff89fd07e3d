"""JWTs and the keys that sign them: the only door to PyJWT.

PyJWT reads keys and verifies signatures. What stands around the signature is read here, since its own reading takes
four times as long as an RS256 signature and accepts more: keys given twice, any depth, any `typ`.

What protects from the known attacks (RFC 8725):

- A key decides which algorithms it verifies, by its type, its curve and what its JWK says (§3.1). The header's `alg`
  only picks among them. `none` and HMAC belong to no key type, so they are never picked.
- Keys come from the issuer alone: a header that brings a key, or says where one is, is refused (§3.10).
- A header with `crit` is refused: we understand none of its extensions (RFC 7515 §4.1.11).
- `typ` tells access tokens from others that the same issuer signs with the same keys (§3.11).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from jwt.algorithms import Algorithm, get_default_algorithms

from proxy.auth.oauth.strict_json import NotAnObject, read_object, shown
from proxy.outcome import Outcome, Refused

MAX_TOKEN_BYTES = 32 * 1024
MAX_KEYS = 100
MAX_KEYS_TRIED = 4  # for a token that names no key
MAX_KID_CHARACTERS = 256
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192  # RFC 7518 §3.3; above, each login would cost milliseconds

_B64TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 §2.1
_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)")  # RFC 7515 §7.1

_TYPES = frozenset({"at+jwt", "jwt"})  # RFC 9068 §2.1, RFC 7519 §5.1
_BROUGHT_KEYS = ("jku", "jwk", "x5u", "x5c")

_ALGORITHMS = get_default_algorithms()
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_BY_TYPE = {  # (kty, crv): RFC 7518 §3.1, RFC 8037 §3.1
    ("RSA", None): _RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
    ("OKP", "Ed448"): ("EdDSA",),
}
_KNOWN = frozenset(algorithm for algorithms in _BY_TYPE.values() for algorithm in algorithms)


class Signature(Enum):
    """What keys say of a token."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN_KEY = "unknown key"  # keys that are newer might say otherwise


@dataclass(frozen=True, slots=True)
class Jwt:
    """A JWT (RFC 7519) of which nothing has been checked."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    @property
    def algorithm(self) -> str:
        return str(self.header["alg"])

    @property
    def kid(self) -> str | None:
        """The name of the key; None: the token doesn't tell."""
        return self.header.get("kid")

    def check_header(self) -> None:
        """Refuse what no header of an access token has.

        Raises:
            Refused: AUTHENTICATION_FAILED.
        """
        header = self.header
        if not isinstance(header["alg"], str) or header["alg"] not in _KNOWN:
            raise refused(f"alg is {shown(header['alg'])}, which no public key verifies")
        kind = header.get("typ", "jwt")
        if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in _TYPES:
            raise refused(f"typ is {shown(kind)}: not an access token")
        for name in _BROUGHT_KEYS:
            if name in header:
                raise refused(f"it brings a key of its own ({name})")
        if "crit" in header:
            raise refused("it asks for extensions (crit)")
        kid = header.get("kid")
        if kid is not None and not (isinstance(kid, str) and len(kid) <= MAX_KID_CHARACTERS):
            raise refused("kid is no short text")


def token_text(secret: bytes) -> str:
    """A bearer token as text.

    Raises:
        Refused: AUTHENTICATION_FAILED, it is none.
    """
    if len(secret) > MAX_TOKEN_BYTES:
        raise refused(f"it is larger than {MAX_TOKEN_BYTES} octets")
    if not _B64TOKEN.fullmatch(secret):
        raise refused("not a bearer token (RFC 6750 §2.1)")
    return secret.decode("ascii")


def read_jwt(token: str) -> Jwt | None:
    """A signed JWT in its parts. None: the token is opaque.

    Raises:
        Refused: AUTHENTICATION_FAILED, it has the form of a JWT and its content is none.
    """
    match = _COMPACT.fullmatch(token)
    if match is None:
        return None
    try:
        start = _octets(match[1])
    except NotAnObject:
        return None
    if not start.lstrip().startswith(b"{"):
        return None
    try:
        header = read_object(start)
        if "alg" not in header:
            return None
        claims = read_object(_octets(match[2]))
        signature = _octets(match[3])
    except NotAnObject as exc:
        raise refused(f"not a JWT: {exc}") from None
    return Jwt(header, claims, token[: match.end(2)].encode("ascii"), signature)


def refused(detail: str) -> Refused:
    """What ends a login with a token that is not good."""
    return Refused(Outcome.AUTHENTICATION_FAILED, f"the token: {detail}")


@dataclass(frozen=True, slots=True)
class Key:
    """A public key and the algorithms it verifies."""

    kid: str | None
    algorithms: frozenset[str]
    public_key: Any  # of cryptography, of the type that PyJWT's algorithms take

    def verifies(self, jwt: Jwt) -> bool:
        """Whether the signature is this key's."""
        try:
            return _ALGORITHMS[jwt.algorithm].verify(jwt.signed, self.public_key, jwt.signature)
        except Exception:  # whatever the library makes of octets of a stranger's: it is not a yes
            return False


class KeySet:
    """The keys of an issuer at one time (RFC 7517 §5)."""

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        self.keys = tuple(keys)
        self._by_kid: dict[str, list[Key]] = {}
        for key in keys:
            if key.kid is not None:
                self._by_kid.setdefault(key.kid, []).append(key)

    @property
    def kids(self) -> list[str]:
        """The names of the keys, for the log."""
        return [key.kid or "(unnamed)" for key in self.keys]

    def verify(self, jwt: Jwt) -> Signature:
        """Whether one of these keys has signed the token. Its header has been checked.

        Raises:
            Refused: AUTHENTICATION_FAILED, the key is not one for the token's algorithm.
        """
        algorithm, kid = jwt.algorithm, jwt.kid
        candidates = self.keys if kid is None else self._by_kid.get(kid, ())
        fitting = [key for key in candidates if algorithm in key.algorithms]
        if candidates and not fitting and kid is not None:
            raise refused(f"alg is {algorithm}, for which its key is not made")
        if len(fitting) > MAX_KEYS_TRIED:
            raise refused(f"it doesn't say which of {len(fitting)} keys has signed it (kid)")
        if any(key.verifies(jwt) for key in fitting):
            return Signature.GOOD
        # A token that names no key may have been signed with one that is newer than this set.
        return Signature.BAD if candidates and kid is not None else Signature.UNKNOWN_KEY


def read_keys(document: bytes) -> KeySet:
    """The keys of a JWK set that verify signatures; others are passed over (RFC 7517 §5).

    Raises:
        NotAnObject: It is no JWK set, or there is no usable key in it. The text says which.
    """
    keys = read_object(document).get("keys")
    if not isinstance(keys, list):
        raise NotAnObject("not a JWK set")
    if len(keys) > MAX_KEYS:
        raise NotAnObject(f"more than {MAX_KEYS} keys")
    usable = [key for key in map(_read_key, keys) if key is not None]
    if not usable:
        raise NotAnObject("there is no key in it that verifies signatures")
    return KeySet(usable)


def _read_key(jwk: object) -> Key | None:
    """A key from its JWK. None: not one for signatures, of a type we don't know, weak, or broken."""
    if not isinstance(jwk, dict) or "d" in jwk:  # a private key that is shown to all is worth nothing
        return None
    kid = jwk.get("kid")
    if kid is not None and not (isinstance(kid, str) and len(kid) <= MAX_KID_CHARACTERS):
        return None
    if jwk.get("use", "sig") != "sig":
        return None
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    algorithms = _algorithms(jwk)
    if not algorithms:
        return None
    try:
        public_key: Any = _door(algorithms).from_jwk(jwk)
    except Exception:  # the library's ways to say that a key is broken are many
        return None
    if jwk["kty"] == "RSA" and not MIN_RSA_BITS <= public_key.key_size <= MAX_RSA_BITS:
        return None
    return Key(kid, frozenset(algorithms), public_key)


def _algorithms(jwk: Mapping[str, Any]) -> tuple[str, ...]:
    kind, curve = jwk.get("kty"), jwk.get("crv")
    if not isinstance(kind, str) or not isinstance(curve, str | None):
        return ()
    algorithms = _BY_TYPE.get((kind, curve), ())
    if (only := jwk.get("alg")) is None:
        return algorithms
    return (only,) if only in algorithms else ()


def _door(algorithms: Sequence[str]) -> Algorithm:
    """What reads a key; it is the same for all algorithms of a type."""
    return _ALGORITHMS[algorithms[0]]


def _octets(part: str) -> bytes:
    """Base64url without padding (RFC 7515 §2)."""
    try:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        raise NotAnObject("not base64url") from None
