"""Values that several rooms share. Nothing here acts, waits or knows a library."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol

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
class Origin:
    """Where an offer came from, for sources that are asked about it and limits that count it."""

    client: Endpoint
    secure: bool = False  # inside TLS
    tries: int = 1  # which offer on this connection this is, from 1


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client turned out to be: the answer of an identity source."""

    name: str  # the canonical name: for hash, limits, cache, logs and the backend
    source: str  # which source said so: file, backend, ldap, ...
    backend: str | None = None  # what wins over the hash: a backend's name, its host:port, or its host alone
    attributes: Mapping[str, str] = field(default_factory=lambda: NO_ATTRIBUTES)
    verified: bool = True  # False: only the backend can tell whether the secret is right
    expires_at: float | None = None  # when what was shown for it ends, a token or a certificate: seconds, Unix time
    backend_secret: bytes | None = field(
        default=None, repr=False
    )  # the backend's password, where it is not the client's
    stale: bool = False  # from a cache, since the source could not be asked


@dataclass(frozen=True, slots=True)
class TlsFacts:
    """What was agreed on with a client, for backends that are told."""

    version: str  # "TLSv1.3"
    cipher: str  # OpenSSL's name
    server_name: str = ""  # what the client asked for (RFC 6066 §3)


@dataclass(frozen=True, slots=True)
class Visitor:
    """What a backend may be told of a client."""

    client: Endpoint
    local: Endpoint  # where the client connected to
    session_id: str
    tls: TlsFacts | None = None  # None: it came in clear
    proxy_ttl: int = 5  # how many proxies there may still be on the way, the next one included
    forward: Mapping[str, str] = field(default_factory=lambda: NO_ATTRIBUTES)  # of the identity's attributes


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an identity may live just now: what routing tells the ledger, which knows where it lives already.

    All but `home`, `why` and `problem` is shared between many placements, and never changes.
    """

    home: str  # where it belongs; "": nowhere just now
    why: Literal["override", "hash", "failover"]  # failover: `home` stands in for one that is down
    joinable: Collection[str]  # where it may join sessions that it has there
    sticky: Collection[str]  # where it may go back to a while after its last session; some of `joinable`
    closed: Mapping[str, str] = field(default_factory=lambda: NO_ATTRIBUTES)  # backends not to be asked now, and why
    problem: str = ""  # why there is no home


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """What a server keeps instead of a password; the password cannot be had from it.

    Source: RFC 5802 §3, RFC 7677.
    """

    salt: bytes
    iterations: int
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyShape:
    """What can be told of SCRAM keys from outside, and so has to look alike for names that nobody knows."""

    iterations: int
    salt_octets: int


@dataclass(frozen=True, slots=True)
class Account:
    """What a source knows about a name without being shown a secret."""

    identity: Identity
    scram: ScramKeys | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client offered (RFC 4422 §2).

    Names are UTF-8 decoded with `surrogateescape`: octets that are no UTF-8 survive as lone surrogates,
    which `auth.names` refuses. The secret stays as the octets that arrived.
    """

    mechanism: str  # LOGIN (the command) or a SASL mechanism's name in upper case
    authentication_identity: str  # "" with OAUTHBEARER: whoever the token names
    authorization_identity: str  # "": the same as the authentication identity
    secret: bytes = field(repr=False)  # a password or a token; b"" where the mechanism has none to show
    proven: Account | None = None  # SCRAM: whose keys the client has shown to know; None: nobody's
    problem: str = ""  # SCRAM: why nothing could be proven, where the keys were not even looked at; for the log
    expires_at: float | None = None  # EXTERNAL: the end of the certificate, Unix time


@dataclass(frozen=True, slots=True)
class Challenge:
    """Octets that a mechanism sends, base64 not yet applied (RFC 4422 §3)."""

    data: bytes


@dataclass(frozen=True, slots=True)
class AccountWanted:
    """A mechanism cannot go on before it knows the account of this name (RFC 5802 §5).

    The values are as in Credentials.
    """

    mechanism: str
    name: str
    authorization_identity: str = ""


class MalformedResponse(Exception):
    """A client's response does not fit its mechanism; the client gets BAD. Never holds the response."""


class Mechanism(Protocol):
    """One exchange of one SASL mechanism, server side (RFC 4422 §3)."""

    def step(self, response: bytes | None) -> Challenge | Credentials | AccountWanted:
        """Take the client's response; ask again, ask for an account, or hand over the credentials.

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


class KeyedMechanism(Mechanism, Protocol):
    """A mechanism whose step() may return AccountWanted."""

    def supply(self, account: Account) -> Challenge:
        """Go on with the account that was wanted. For a name that nobody knows it is a plausible one."""
        ...


@dataclass(frozen=True, slots=True)
class Admitted:
    """A session that may be logged in at its backend."""

    backend: str
    epoch: str  # of the placement that led there
    why: Literal["override", "hash", "failover"]
    room: int  # how many sessions more its user may have, this one included where it does not count yet
