"""The settings of the backends' side: whose backend is which, where they are, and how the proxy logs in there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from proxy.model import Endpoint
from proxy.settings.addresses import Security
from proxy.settings.discovery_models import Discovery, Health
from proxy.settings.section import LIVE, NEW_SESSIONS, Section, misplaced
from proxy.settings.values import (
    BackendUrl,
    Domain,
    ExistingFile,
    Failover,
    HostPort,
    LoginName,
    SecretValue,
    Separator,
    ServerName,
    Text,
    duration,
)

ClientAddress = Literal["none", "id", "proxy_v1", "proxy_v2"]
State = Literal["up", "drain", "down"]


class Tags(Section):
    """Pools: users with a tag live on the servers with that tag, users without one on those without."""

    attribute: Text = Field(
        default="tag",
        description="The identity's attribute that holds the tag, as a source's `attributes` name it; it wins over "
        "`domains`.",
        json_schema_extra=NEW_SESSIONS,
    )
    domains: Annotated[dict[Domain, ServerName], Field(strict=False)] = Field(
        default={},
        description="Tags by the domain of the canonical name.",
        examples=[{"example.org": "gold"}],
        json_schema_extra=NEW_SESSIONS,
    )


class Routing(Section):
    """Which backend is whose: weighted rendezvous hashing, the same in every proxy."""

    hash: Literal["name", "domain"] = Field(
        default="name",
        description="What is hashed: the canonical name, or only its domain, so that a domain shares one backend.",
        json_schema_extra=NEW_SESSIONS,
    )
    overrides: Annotated[dict[LoginName, ServerName], Field(strict=False)] = Field(
        default={},
        description="Users who live on a certain server, by canonical name; wins over an identity's own `backend`, and "
        "that over the hash.",
        examples=[{"alice@example.org": "dovecot-1"}],
        json_schema_extra=NEW_SESSIONS,
    )
    tags: Tags = Field(default=Tags(), description="Pools of servers.", json_schema_extra=NEW_SESSIONS)
    sticky: Annotated[float, duration(least="0s")] = Field(
        default=900.0,
        description="How long after the end of his last session a user still goes to the same backend, whatever the "
        "hash says since. While he has a session he always does.",
        json_schema_extra=NEW_SESSIONS,
    )
    moves_in_flight: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="How many users may be on the way from one backend to another at once: their sessions are closed "
        "with BYE at a safe point, and new logins of theirs wait.",
        json_schema_extra=NEW_SESSIONS,
    )
    move_delay: Annotated[float, duration(least="0s", most="1m")] = Field(
        default=2.0,
        description="Between the end of a user's last session at one backend and his first login at another.",
        json_schema_extra=NEW_SESSIONS,
    )
    move_patience: Annotated[float, duration(least="1s", most="10m")] = Field(
        default=15.0,
        description="How long a session that has to make way may go on with a command; then it ends as it is.",
        json_schema_extra=NEW_SESSIONS,
    )


class BackendTls(Section):
    """TLS towards backends. A server's own `tls` may name any of these; what it leaves out is as for all."""

    ca: ExistingFile | None = Field(
        default=None,
        description="Certificates (PEM) that backends' certificates must descend from; null: those of the system.",
        examples=["ca.pem"],
        json_schema_extra=NEW_SESSIONS,
    )
    verify: bool = Field(
        default=True,
        description="Whether a backend's certificate is verified, by the host in its URL or by `name`. false: anyone "
        "on the way can read the passwords.",
        json_schema_extra=NEW_SESSIONS,
    )
    name: Domain | None = Field(
        default=None,
        description="The name that has to stand in the certificate, where it is not the host of the URL; also asked "
        "for by SNI.",
        examples=["imap.example.org"],
        json_schema_extra=NEW_SESSIONS,
    )
    certificate: ExistingFile | None = Field(
        default=None,
        description="The certificate that the proxy shows to backends (PEM, intermediate ones behind it); null: none.",
        examples=["porter.crt"],
        json_schema_extra=NEW_SESSIONS,
    )
    private_key: ExistingFile | None = Field(
        default=None,
        description="The key of that certificate, not encrypted.",
        examples=["porter.key"],
        json_schema_extra=NEW_SESSIONS,
    )

    @model_validator(mode="after")
    def _a_pair(self) -> BackendTls:
        if self.certificate is not None and self.private_key is None:
            raise misplaced("certificate", "needs private_key beside it")
        if self.private_key is not None and self.certificate is None:
            raise misplaced("private_key", "needs certificate beside it")
        return self


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
    state: State = Field(
        default="up",
        description="`drain`: no new homes; users with a session there stay together. `down`: nobody; with "
        "`backends.failover` its users go to their next choice at once. A running proxy is told by "
        "`imap-porter drain`.",
        json_schema_extra=NEW_SESSIONS,
    )
    tag: ServerName | None = Field(
        default=None,
        description="The pool it belongs to; null: that of users without a tag.",
        examples=["gold"],
        json_schema_extra=NEW_SESSIONS,
    )
    client_address: ClientAddress | None = Field(
        default=None, description="null: as `backends.client_address`.", json_schema_extra=NEW_SESSIONS
    )
    tls: BackendTls | None = Field(
        default=None,
        description="What differs from `backends.tls` at this server.",
        json_schema_extra=NEW_SESSIONS,
    )
    lmtp: HostPort | None = Field(
        default=None,
        description="Where it takes deliveries, for `protocol: socketmap`; null: the host of its URL, port 24.",
        examples=["10.0.0.11:24"],
        json_schema_extra=NEW_SESSIONS,
    )

    @property
    def security(self) -> Security:
        """none, tls or starttls."""
        return self.url.security

    @property
    def endpoint(self) -> Endpoint:
        return self.url.endpoint


class BackendLogin(Section):
    """How the proxy logs in to a backend on behalf of a user."""

    method: Literal["password", "master", "authzid", "token"] = Field(
        default="password",
        description="`password`: with the user's own password. `master`: as `user*name` with porter's password. "
        "`authzid`: SASL PLAIN with the user as authorization identity and porter's name and password (RFC 4616). "
        "`token`: the client's token by the same mechanism, for the backend to validate again; a client that came with "
        "a password is logged in with that.",
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
        json_schema_extra=LIVE,
    )
    separator: Separator = Field(
        default="*",
        description="What stands between user and master in `user*name`; used with `master` alone.",
        json_schema_extra=NEW_SESSIONS,
    )

    @property
    def needs_no_secret(self) -> bool:
        """Whether the proxy logs in with a password of its own, so that what the client has shown is not needed."""
        return self.method in ("master", "authzid")

    @model_validator(mode="after")
    def _master_has_credentials(self) -> BackendLogin:
        for key, value in (("name", self.name), ("password", self.password)):
            if not self.needs_no_secret and value is not None:
                raise misplaced(key, "belongs to method: master or authzid, which is not set")
            if self.needs_no_secret and value is None:
                raise misplaced("method", f"{self.method} needs name and password of the master user")
        return self


class Backends(Section):
    """The IMAP servers behind the proxy."""

    servers: Annotated[tuple[Server, ...], Field(strict=False)] = Field(
        default=(),
        description="Every backend, once. Required unless there is `discovery`.",
        examples=[[{"name": "dovecot-1", "url": "imaps://10.0.0.11:993"}]],
        json_schema_extra=NEW_SESSIONS,
    )
    discovery: Discovery | None = Field(
        default=None, description="Backends that DNS names, besides `servers`.", json_schema_extra=NEW_SESSIONS
    )
    tls: BackendTls = Field(default=BackendTls(), description="TLS towards backends.", json_schema_extra=NEW_SESSIONS)
    login: BackendLogin = Field(
        default=BackendLogin(), description="How the proxy logs in to backends.", json_schema_extra=NEW_SESSIONS
    )
    client_address: ClientAddress = Field(
        default="none",
        description="How a backend is told who the client is: `id`: by IMAP ID before the login, in the fields of "
        "Dovecot's `login_trusted_networks`. `proxy_v1`, `proxy_v2`: by a PROXY header before anything else, TLS "
        "included; v2 also tells of the client's TLS. The backend must be set up for it.",
        json_schema_extra=NEW_SESSIONS,
    )
    forward_attributes: Annotated[tuple[Text, ...], Field(strict=False)] = Field(
        default=(),
        description="Attributes of the identity that go along as `x-forward-NAME`, with `client_address: id`.",
        examples=[["department"]],
        json_schema_extra=NEW_SESSIONS,
    )
    health: Health = Field(default=Health(), description="Whether backends work.", json_schema_extra=NEW_SESSIONS)
    failover: Failover = Field(
        default="never",
        description="`never`: mail is where it is; while a backend is down its users are told UNAVAILABLE. A duration, "
        "for storage that all backends share: after a backend was down so long its users go to their next choice.",
        examples=["never", "30s"],
        json_schema_extra=NEW_SESSIONS,
    )
    disconnect_spread: Annotated[float, duration(least="0s", most="10m")] = Field(
        default=5.0,
        description="Over how long the clients of a backend that is lost are told so, that they do not come back as "
        "one wave.",
        json_schema_extra=NEW_SESSIONS,
    )

    def tls_for(self, server: Server) -> BackendTls:
        """TLS towards one server: its own words first."""
        if server.tls is None:
            return self.tls
        return self.tls.model_copy(update={key: getattr(server.tls, key) for key in server.tls.model_fields_set})

    @property
    def pins_names(self) -> bool:
        """Whether the settings say whose certificates count, so that DNS may name servers of any domain.

        Source: RFC 9525 §6.1.2 on names that come from DNS.
        """
        plain = self.discovery is not None and self.discovery.scheme == "imap"
        return plain or self.tls.ca is not None or self.tls.name is not None

    def client_address_for(self, server: Server) -> ClientAddress:
        """How one server is told who the client is."""
        return server.client_address or self.client_address

    @model_validator(mode="after")
    def _there_are_some(self) -> Backends:
        if not self.servers and self.discovery is None:
            raise misplaced("servers", 'at least one is needed, e.g. [{name: dovecot-1, url: "imaps://10.0.0.11:993"}]')
        return self
