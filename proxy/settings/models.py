"""The settings as types: frozen, complete, and named as in the YAML file.

A field's description, default and `takes_hold` are what docs/settings.md, the JSON Schema and `imap-porter check` show.
What concerns more than one section is checked in `checks.py`; how values are spelled stands in `values.py`.
Every section can be had from here; those of the two sides, of the identity sources, of the limits and of the fleet are
written in `client_models.py`, `backend_models.py`, `identity_models.py`, `limit_models.py` and `fleet_models.py`.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from proxy.settings.backend_models import BackendLogin, Backends, BackendTls, Routing, Server, State, Tags
from proxy.settings.client_models import Certificate, ClientCertificates, Listener, Names, Tls, TrustedPeers
from proxy.settings.discovery_models import Discovery, Health, ProbeLogin
from proxy.settings.fleet_models import Fleet
from proxy.settings.identity_models import (
    BackendIdentity,
    Cache,
    FileIdentity,
    HttpIdentity,
    IdentitySource,
    Introspection,
    LdapBind,
    LdapIdentity,
    LdapSearch,
    OAuthIdentity,
)
from proxy.settings.limit_models import FailuresPerAddress, FailuresPerUser, Limits, LoginsPerBackend
from proxy.settings.section import LIVE, NEW_SESSIONS, RELOAD, Section, misplaced
from proxy.settings.values import (
    Duration,
    ExistingFile,
    HttpHost,
    ListenAddress,
    LoginName,
    ServerName,
    SocketPath,
    Text,
    Version,
    WebOrigin,
    Workers,
    duration,
)

__all__ = [
    "LIVE",
    "NEW_SESSIONS",
    "RELOAD",
    "Admin",
    "AdminTls",
    "AdminToken",
    "BackendIdentity",
    "BackendLogin",
    "BackendTls",
    "Backends",
    "Cache",
    "Certificate",
    "ClientCertificates",
    "Discovery",
    "FailuresPerAddress",
    "FailuresPerUser",
    "FileIdentity",
    "Fleet",
    "Health",
    "HttpIdentity",
    "IdentitySource",
    "Introspection",
    "LdapBind",
    "LdapIdentity",
    "LdapSearch",
    "Limits",
    "Listener",
    "Log",
    "LoginsPerBackend",
    "Metrics",
    "Names",
    "OAuthIdentity",
    "ProbeLogin",
    "Relay",
    "Routing",
    "Section",
    "Server",
    "Settings",
    "State",
    "Tags",
    "Timeouts",
    "Tls",
    "TrustedPeers",
]


class Timeouts(Section):
    """How long each step may take."""

    handshake: Duration = Field(
        default=15.0, description="TLS with a client, from accept or STARTTLS.", json_schema_extra=NEW_SESSIONS
    )
    login: Duration = Field(
        default=120.0, description="From accept until the client is logged in.", json_schema_extra=NEW_SESSIONS
    )
    backend_connect: Duration = Field(
        default=5.0,
        description="The connection to a backend: TCP, and with `imaps://` TLS.",
        json_schema_extra=NEW_SESSIONS,
    )
    backend_login: Duration = Field(
        default=10.0,
        description="Greeting, STARTTLS and login at a backend, once it is connected.",
        json_schema_extra=NEW_SESSIONS,
    )
    idle: Annotated[float, duration(least="30m", why="an autologout timer is 30 minutes or more (RFC 9051 §5.4)")] = (
        Field(
            default=1860.0,
            description="Silence in both directions after which a logged-in session is closed; 30m or more "
            "(RFC 9051 §5.4). Balancers in front need more than this.",
            json_schema_extra=NEW_SESSIONS,
        )
    )
    drain: Annotated[float, duration(least="0s")] = Field(
        default=30.0, description="How long sessions may go on when the proxy stops.", json_schema_extra=RELOAD
    )
    drain_grace: Annotated[float, duration(least="0s", most="10m")] = Field(
        default=0.0,
        description="How long the proxy goes on as before when it stops, except that `/readyz` says no: as long as "
        "balancers in front take to see that. `drain` begins after it.",
        json_schema_extra=RELOAD,
    )
    old_generation: Annotated[float, duration(least="0s")] = Field(
        default=86400.0,
        description="How long the workers of before a reload keep their sessions; then they drain.",
        json_schema_extra=RELOAD,
    )


class Relay(Section):
    """What happens to a session once it is logged in."""

    compress: Literal["allow", "refuse"] = Field(
        default="allow",
        description="COMPRESS (RFC 4978) between client and backend. `refuse`: it is neither offered nor let through, "
        "so that commands stay observable. `allow`: so too at a backend that lists UNAUTHENTICATE (RFC 8437) or does "
        "not tell its capabilities, where a client could log in anew inside the compressed stream, unseen.",
        json_schema_extra=NEW_SESSIONS,
    )
    expiry_grace: Annotated[float, duration(least="0s")] | None = Field(
        default=900.0,
        description="How long a session goes on after its token, or the certificate it came with, has expired; then it "
        "ends with BYE, between commands or in IDLE. null: it goes on.",
        json_schema_extra=NEW_SESSIONS,
    )


class AdminTls(Section):
    """TLS on `admin.address`."""

    certificate: ExistingFile = Field(
        description="PEM: the certificate and what leads to its root.",
        examples=["admin.crt"],
        json_schema_extra=LIVE,
    )
    private_key: ExistingFile = Field(
        description="PEM, not encrypted; read before the proxy gives up root's rights.",
        examples=["admin.key"],
        json_schema_extra=LIVE,
    )


class AdminToken(Section):
    """Somebody who may ask on `admin.address`, and what he shows."""

    name: ServerName = Field(description="How the log calls him.", examples=["ops"], json_schema_extra=RELOAD)
    role: Literal["viewer", "operator"] = Field(
        default="viewer",
        description="`viewer` looks on; `operator` changes things and sees traces, too.",
        json_schema_extra=RELOAD,
    )
    hash: Text = Field(
        repr=False,
        description="The token's argon2id hash; `imap-porter hash-password --token` makes both.",
        examples=["$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA"],
        json_schema_extra=RELOAD,
    )


class Admin(Section):
    """The administrator's doors: API, console and events over HTTP, and all of that on a unix socket."""

    address: ListenAddress | None = Field(
        default=None,
        description="Where API and console are served to those who have a token, and `/livez` and `/readyz` to "
        "everybody; null: nowhere.",
        examples=["127.0.0.1:9143"],
        json_schema_extra=RELOAD,
    )
    socket: SocketPath | None = Field(
        default=None,
        description="A unix socket for `imap-porter backends`, `drain`, `route` and the like; whoever may open it, the "
        "proxy's own user and root, may do everything. null: none.",
        examples=["/run/imap-porter/admin.sock"],
        json_schema_extra=RELOAD,
    )
    tls: AdminTls | None = Field(
        default=None, description="TLS on `address`; absent: plain HTTP.", json_schema_extra=RELOAD
    )
    tokens: Annotated[tuple[AdminToken, ...], Field(strict=False)] = Field(
        default=(),
        max_length=50,  # whoever shows a wrong one has all of them verified
        description="Who may ask on `address`. None: nobody.",
        json_schema_extra=RELOAD,
    )
    hosts: Annotated[tuple[HttpHost, ...], Field(strict=False)] = Field(
        default=(),
        description="Names that `address` may be asked by, with a port or without, beside addresses of the machine and "
        "`localhost`: what a browser sends as Host.",
        examples=[["imap.example.org"]],
        json_schema_extra=RELOAD,
    )
    origins: Annotated[tuple[WebOrigin, ...], Field(strict=False)] = Field(
        default=(),
        description="Web pages that may ask beside the console's own, by their origin.",
        examples=[["https://status.example.org"]],
        json_schema_extra=RELOAD,
    )
    insecure: bool = Field(
        default=False,
        description="Tokens may go over plain HTTP on an address that others can reach: something in front does TLS.",
        json_schema_extra=RELOAD,
    )

    @model_validator(mode="after")
    def _tokens_are_kept_from_listeners(self) -> Self:
        names = [token.name for token in self.tokens]
        if len(set(names)) < len(names):
            raise misplaced("tokens", "two have the same name; the log would not tell them apart")
        if self.address is None or not self.tokens or self.tls is not None or self.insecure:
            return self
        if not ipaddress.ip_address(self.address.host.partition("%")[0]).is_loopback:
            problem = "would go over plain HTTP: give admin.tls, or listen on 127.0.0.1, or say insecure: true"
            raise misplaced("tokens", problem)
        return self


class Metrics(Section):
    """Figures for Prometheus."""

    address: ListenAddress | None = Field(
        default=None,
        description="Where `/metrics` is served; null: nowhere.",
        examples=["127.0.0.1:9142"],
        json_schema_extra=RELOAD,
    )


class Log(Section):
    """The log, on standard error: one line per session and what else happens."""

    format: Literal["json", "console"] = Field(
        default="json", description="`json` for machines, `console` for people.", json_schema_extra=RELOAD
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least important events that are written.", json_schema_extra=LIVE
    )


class Settings(Section):
    """Everything imap-porter is told: one YAML file. Relative paths are relative to that file."""

    version: Version = Field(description="The version of this format.", examples=[1], json_schema_extra=RELOAD)
    workers: Workers = Field(
        default="auto",
        description="Worker processes. auto: one for each core that they may use, by affinity and the quota of the "
        "control group.",
        json_schema_extra=RELOAD,
    )
    user: LoginName | None = Field(
        default=None,
        description="Whose rights the processes have that clients talk to; null: those of whoever starts them. Started "
        "as root, the first process alone keeps root's, for keys and ports. It must be able to read users files and "
        "the certificates of authorities.",
        examples=["imap-porter"],
        json_schema_extra=RELOAD,
    )
    listeners: Annotated[tuple[Listener, ...], Field(strict=False)] = Field(
        min_length=1,
        description="Where clients arrive.",
        examples=[[{"address": "[::]:993", "tls": "implicit"}]],
        json_schema_extra=RELOAD,
    )
    tls: Tls = Field(default=Tls(), description="TLS towards clients.", json_schema_extra=LIVE)
    names: Names = Field(default=Names(), description="How names are read.", json_schema_extra=NEW_SESSIONS)
    identity: Annotated[tuple[IdentitySource, ...], Field(strict=False)] = Field(
        min_length=1,
        description="Who knows users and passwords, asked in this order. An outage is never a wrong password.",
        examples=[[{"file": {"path": "users.yaml"}}]],
        json_schema_extra=NEW_SESSIONS,
    )
    cache: Cache = Field(default=Cache(), description="What identity sources answered.", json_schema_extra=NEW_SESSIONS)
    routing: Routing = Field(default=Routing(), description="Which backend is whose.", json_schema_extra=NEW_SESSIONS)
    backends: Backends = Field(
        description="The IMAP servers behind the proxy.",
        examples=[{"servers": [{"name": "dovecot-1", "url": "imaps://10.0.0.11:993"}]}],
        json_schema_extra=NEW_SESSIONS,
    )
    limits: Limits = Field(default=Limits(), description="Bounds.", json_schema_extra=NEW_SESSIONS)
    timeouts: Timeouts = Field(default=Timeouts(), description="Deadlines.", json_schema_extra=NEW_SESSIONS)
    relay: Relay = Field(default=Relay(), description="The session itself.", json_schema_extra=NEW_SESSIONS)
    admin: Admin = Field(default=Admin(), description="The administrator's door.", json_schema_extra=RELOAD)
    metrics: Metrics = Field(default=Metrics(), description="Where figures are served.", json_schema_extra=RELOAD)
    log: Log = Field(default=Log(), description="The log.", json_schema_extra=RELOAD)
    fleet: Fleet | None = Field(
        default=None,
        description="Other proxies that share users with this one; absent: it stands for itself.",
        examples=[{"valkey": "redis://127.0.0.1:6379/0", "name": "porter-1"}],
        json_schema_extra=RELOAD,
    )
