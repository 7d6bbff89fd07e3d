"""The settings as types: frozen, complete, and named as in the YAML file.

A field's description, default and `takes_hold` are what docs/settings.md, the JSON Schema and `imap-porter check` show.
What concerns more than one section is checked in `checks.py`; how values are spelled stands in `values.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from proxy.model import Endpoint
from proxy.settings.addresses import Security
from proxy.settings.values import (
    BackendUrl,
    Domain,
    Duration,
    ExistingFile,
    ListenAddress,
    LoginName,
    Network,
    SecretValue,
    Separator,
    ServerName,
    Version,
    Workers,
    duration,
)

LIVE: Final[dict[str, Any]] = {"takes_hold": "live"}
NEW_SESSIONS: Final[dict[str, Any]] = {"takes_hold": "new sessions"}
RESTART: Final[dict[str, Any]] = {"takes_hold": "restart"}


def misplaced(key: str, problem: str) -> PydanticCustomError:
    """The error of a validator that looks at several keys of a section and blames one of them."""
    return PydanticCustomError("misplaced", "{problem}", {"key": key, "problem": problem})


class Section(BaseModel):
    """A mapping of known keys; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=False)


class Listener(Section):
    """One address where clients arrive."""

    address: ListenAddress = Field(
        description='IP address and port; "[::]:993" listens on every address, IPv4 included.',
        examples=["[::]:993", "127.0.0.1:1143"],
        json_schema_extra=RESTART,
    )
    tls: Literal["implicit", "starttls", "none"] = Field(
        description="`implicit`: TLS from the first octet (imaps, port 993). `starttls`: login only after STARTTLS "
        "(port 143). `none`: no TLS at all, only together with `trusted_networks`.",
        examples=["implicit"],
        json_schema_extra=RESTART,
    )
    trusted_networks: Annotated[tuple[Network, ...], Field(strict=False)] = Field(
        default=(),
        description="Only with `tls: none`, and required there: clients from elsewhere are refused.",
        json_schema_extra=NEW_SESSIONS,
    )

    @model_validator(mode="after")
    def _plain_only_for_trusted(self) -> Listener:
        if self.tls == "none" and not self.trusted_networks:
            raise misplaced("tls", 'none needs trusted_networks, e.g. ["127.0.0.0/8"]; passwords pass in clear here')
        if self.tls != "none" and self.trusted_networks:
            raise misplaced("trusted_networks", f"belongs to tls: none; with tls: {self.tls} everyone may connect")
        return self


class Certificate(Section):
    """A certificate with its key, both in PEM form."""

    certificate: ExistingFile = Field(
        description="The server's certificate, followed by the intermediate ones; it must fit the key.",
        examples=["tls.crt"],
        json_schema_extra=LIVE,
    )
    private_key: ExistingFile = Field(
        description="The key of the certificate, not encrypted.", examples=["tls.key"], json_schema_extra=LIVE
    )


class Tls(Section):
    """TLS towards clients. Required when a listener uses it."""

    certificates: Annotated[tuple[Certificate, ...], Field(strict=False)] = Field(
        default=(),
        description="Chosen by the name the client asks for (SNI); the first is the default.",
        json_schema_extra=LIVE,
    )
    minimum_version: Literal["1.2", "1.3"] = Field(
        default="1.2", description="The oldest TLS version spoken, in quotes.", json_schema_extra=RESTART
    )


class Names(Section):
    """How the name a client logs in with becomes the canonical name: the one for hash, limits, logs and backend."""

    lowercase: bool = Field(
        default=True, description="Whether `Ann` and `ann` are one account.", json_schema_extra=NEW_SESSIONS
    )
    default_domain: Domain | None = Field(
        default=None,
        description="Appended as `@domain` to names that have none; null: they stay as they are.",
        examples=["example.org"],
        json_schema_extra=NEW_SESSIONS,
    )
    master_separator: Separator = Field(
        default="*",
        description="A name that contains it is refused: backends read `name*master` as a login as somebody else. With "
        "`backends.login.method: master` it is the same as `backends.login.separator`.",
        json_schema_extra=NEW_SESSIONS,
    )


class FileIdentity(Section):
    """Names and password hashes from a YAML file."""

    path: ExistingFile = Field(
        description="The users file: `name: {hash: ...}`, hashes from `imap-porter hash-password`.",
        examples=["users.yaml"],
        json_schema_extra=NEW_SESSIONS,
    )


class BackendIdentity(Section):
    """The user's credentials are passed on and the backend decides. It has no keys: `backend: {}`."""


class IdentitySource(Section):
    """One of the sources that know who a client is: a mapping with exactly one key."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    file: FileIdentity | None = Field(
        default=None, description="Names and hashes from a file.", json_schema_extra=NEW_SESSIONS
    )
    backend: BackendIdentity | None = Field(
        default=None,
        description="The backend decides: `backend: {}`. Only as the last source and only with `backends.login.method: "
        "password`; with any other method the backend never sees the user's password.",
        json_schema_extra=NEW_SESSIONS,
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> IdentitySource:
        if len([source for source in (self.file, self.backend) if source is not None]) != 1:
            raise ValueError("expected exactly one source here: file: {path: users.yaml} or backend: {}")
        return self


class Routing(Section):
    """Which backend is whose: weighted rendezvous hashing, the same in every proxy."""

    hash: Literal["name", "domain"] = Field(
        default="name",
        description="What is hashed: the canonical name, or only its domain, so that a domain shares one backend.",
        json_schema_extra=NEW_SESSIONS,
    )


class Server(Section):
    """One backend."""

    name: ServerName = Field(
        description="Unique; it takes part in the hash (a new name moves users) and labels metrics and logs.",
        examples=["dovecot-1"],
        json_schema_extra=NEW_SESSIONS,
    )
    url: BackendUrl = Field(
        description="`imaps://` (port 993), `imap+starttls://` (143) or `imap://` (143, no TLS), then host and port.",
        examples=["imaps://10.0.0.11:993"],
        json_schema_extra=NEW_SESSIONS,
    )
    weight: int = Field(
        default=1,
        ge=0,
        le=1000,
        description="Its share of the users, relative to the others; 0: no one by hash.",
        json_schema_extra=NEW_SESSIONS,
    )

    @property
    def security(self) -> Security:
        """none, tls or starttls."""
        return self.url.security

    @property
    def endpoint(self) -> Endpoint:
        return self.url.endpoint


class BackendTls(Section):
    """TLS towards backends."""

    ca: ExistingFile | None = Field(
        default=None,
        description="Certificates (PEM) that backends' certificates must descend from; null: those of the system.",
        examples=["ca.pem"],
        json_schema_extra=NEW_SESSIONS,
    )
    verify: bool = Field(
        default=True,
        description="Whether a backend's certificate is verified, by the host in its URL. false: anyone on the way can "
        "read the passwords.",
        json_schema_extra=NEW_SESSIONS,
    )


class BackendLogin(Section):
    """How the proxy logs in to a backend on behalf of a user."""

    method: Literal["password", "master", "authzid"] = Field(
        default="password",
        description="`password`: with the user's own password. `master`: as `user*name` with porter's password. "
        "`authzid`: SASL PLAIN with the user as authorization identity and porter's name and password (RFC 4616).",
        json_schema_extra=NEW_SESSIONS,
    )
    name: LoginName | None = Field(
        default=None,
        description="The master user's name; required with `master` and `authzid`.",
        examples=["porter"],
        json_schema_extra=NEW_SESSIONS,
    )
    password: SecretValue | None = Field(
        default=None,
        description="The master user's password; required with `master` and `authzid`.",
        examples=[{"file": "/run/secrets/master"}],
        json_schema_extra=NEW_SESSIONS,
    )
    separator: Separator = Field(
        default="*",
        description="What stands between user and master in `user*name`; used with `master` alone.",
        json_schema_extra=NEW_SESSIONS,
    )

    @model_validator(mode="after")
    def _master_has_credentials(self) -> BackendLogin:
        for key, value in (("name", self.name), ("password", self.password)):
            if self.method == "password" and value is not None:
                raise misplaced(key, "belongs to method: master or authzid, which is not set")
            if self.method != "password" and value is None:
                raise misplaced("method", f"{self.method} needs name and password of the master user")
        return self


class Backends(Section):
    """The IMAP servers behind the proxy."""

    servers: Annotated[tuple[Server, ...], Field(strict=False)] = Field(
        min_length=1,
        description="Every backend, once.",
        examples=[[{"name": "dovecot-1", "url": "imaps://10.0.0.11:993"}]],
        json_schema_extra=NEW_SESSIONS,
    )
    tls: BackendTls = Field(default=BackendTls(), description="TLS towards backends.", json_schema_extra=NEW_SESSIONS)
    login: BackendLogin = Field(
        default=BackendLogin(), description="How the proxy logs in to backends.", json_schema_extra=NEW_SESSIONS
    )


class Limits(Section):
    """Bounds that keep one client, or one mistake, from taking everything."""

    connections: int = Field(
        default=20000, ge=1, le=10_000_000, description="Client connections, all together.", json_schema_extra=RESTART
    )
    connections_per_address: int = Field(
        default=200,
        ge=1,
        le=10_000_000,
        description="Client connections from one address. A family, an office or a webmail server shares one.",
        json_schema_extra=NEW_SESSIONS,
    )
    connections_per_user: int = Field(
        default=50,
        ge=1,
        le=10_000_000,
        description="Logged-in connections of one canonical name. One mail program may hold ten.",
        json_schema_extra=NEW_SESSIONS,
    )
    login_tries: int = Field(
        default=5,
        ge=1,
        le=100,
        description="Failed logins after which a connection is closed.",
        json_schema_extra=NEW_SESSIONS,
    )
    failed_login_delay: Annotated[float, duration(least="0s", most="15s")] = Field(
        default=2.0,
        description="How long the answer to the first failed login waits; the second waits twice as long, and so on up "
        "to 15s. Shorter than `timeouts.login`.",
        json_schema_extra=NEW_SESSIONS,
    )


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
        default=30.0, description="How long sessions may go on when the proxy stops.", json_schema_extra=RESTART
    )


class Relay(Section):
    """What happens to a session once it is logged in."""

    compress: Literal["allow", "refuse"] = Field(
        default="allow",
        description="COMPRESS (RFC 4978) between client and backend. `refuse`: it is neither offered nor let through, "
        "so that commands stay observable.",
        json_schema_extra=NEW_SESSIONS,
    )


class Admin(Section):
    """The administrator's HTTP door. It serves `/livez` and `/readyz` in this version."""

    address: ListenAddress | None = Field(
        default=None,
        description="Where it listens; null: nowhere.",
        examples=["127.0.0.1:9143"],
        json_schema_extra=RESTART,
    )


class Metrics(Section):
    """Figures for Prometheus."""

    address: ListenAddress | None = Field(
        default=None,
        description="Where `/metrics` is served; null: nowhere.",
        examples=["127.0.0.1:9142"],
        json_schema_extra=RESTART,
    )


class Log(Section):
    """The log, on standard error: one line per session and what else happens."""

    format: Literal["json", "console"] = Field(
        default="json", description="`json` for machines, `console` for people.", json_schema_extra=RESTART
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least important events that are written.", json_schema_extra=LIVE
    )


class Settings(Section):
    """Everything imap-porter is told: one YAML file. Relative paths are relative to that file."""

    version: Version = Field(description="The version of this format.", examples=[1], json_schema_extra=RESTART)
    workers: Workers = Field(
        default="auto",
        description="Worker processes, auto: one per core. One worker process serves in this version.",
        json_schema_extra=RESTART,
    )
    listeners: Annotated[tuple[Listener, ...], Field(strict=False)] = Field(
        min_length=1,
        description="Where clients arrive.",
        examples=[[{"address": "[::]:993", "tls": "implicit"}]],
        json_schema_extra=RESTART,
    )
    tls: Tls = Field(default=Tls(), description="TLS towards clients.", json_schema_extra=LIVE)
    names: Names = Field(default=Names(), description="How names are read.", json_schema_extra=NEW_SESSIONS)
    identity: Annotated[tuple[IdentitySource, ...], Field(strict=False)] = Field(
        min_length=1,
        description="Who knows users and passwords, asked in this order. An outage is never a wrong password.",
        examples=[[{"file": {"path": "users.yaml"}}]],
        json_schema_extra=NEW_SESSIONS,
    )
    routing: Routing = Field(default=Routing(), description="Which backend is whose.", json_schema_extra=NEW_SESSIONS)
    backends: Backends = Field(
        description="The IMAP servers behind the proxy.",
        examples=[{"servers": [{"name": "dovecot-1", "url": "imaps://10.0.0.11:993"}]}],
        json_schema_extra=NEW_SESSIONS,
    )
    limits: Limits = Field(default=Limits(), description="Bounds.", json_schema_extra=NEW_SESSIONS)
    timeouts: Timeouts = Field(default=Timeouts(), description="Deadlines.", json_schema_extra=NEW_SESSIONS)
    relay: Relay = Field(default=Relay(), description="The session itself.", json_schema_extra=NEW_SESSIONS)
    admin: Admin = Field(default=Admin(), description="The administrator's door.", json_schema_extra=RESTART)
    metrics: Metrics = Field(default=Metrics(), description="Where figures are served.", json_schema_extra=RESTART)
    log: Log = Field(default=Log(), description="The log.", json_schema_extra=RESTART)
