"""Values that several rooms share. Nothing here acts, waits or knows a library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from proxy.outcome import Outcome

NO_ATTRIBUTES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host (address or name, no brackets) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client offered, unverified (RFC 4422 §2).

    Names are UTF-8 decoded with `surrogateescape`: octets that are no UTF-8 survive as lone surrogates,
    which `auth.names` refuses. The secret stays as the octets that arrived.
    """

    mechanism: str  # LOGIN (the command) or a SASL mechanism's name in upper case
    authentication_identity: str
    authorization_identity: str  # "": the same as the authentication identity
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client turned out to be: the answer of an identity source."""

    name: str  # the canonical name: for hash, limits, cache, logs and the backend
    source: str  # which source said so: file, backend, ldap, ...
    backend: str | None = None  # a backend's name that wins over the hash
    attributes: Mapping[str, str] = field(default_factory=lambda: NO_ATTRIBUTES)
    verified: bool = True  # False: only the backend can tell whether the secret is right


@dataclass(frozen=True, slots=True)
class Challenge:
    """Octets that a mechanism sends, base64 not yet applied (RFC 4422 §3)."""

    data: bytes


class MalformedResponse(Exception):
    """A client's response does not fit its mechanism; the client gets BAD. Never holds the response."""


class Mechanism(Protocol):
    """One exchange of one SASL mechanism, server side (RFC 4422 §3)."""

    def step(self, response: bytes | None) -> Challenge | Credentials:
        """Take the client's response; ask again or hand over the credentials.

        Args:
            response: Decoded octets. None: no initial response was sent. b"": an empty one ("=", RFC 4959 §3).
        Raises:
            MalformedResponse: It doesn't fit the mechanism; the client gets BAD.
        """
        ...

    def failure(self, outcome: Outcome) -> Challenge | None:
        """The challenge that tells a failure before the tagged NO (RFC 7628 §3.2.2), where there is one.

        The client's one answering line is read and ignored.
        """
        ...
