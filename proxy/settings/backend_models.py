"""The settings of the backends' side: whose backend is which, where they are, and how the proxy logs in there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from proxy.model import Endpoint
from proxy.settings.addresses import Security
from proxy.settings.section import NEW_SESSIONS, Section, misplaced
from proxy.settings.values import BackendUrl, ExistingFile, LoginName, SecretValue, Separator, ServerName


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
        json_schema_extra=NEW_SESSIONS,
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
        min_length=1,
        description="Every backend, once.",
        examples=[[{"name": "dovecot-1", "url": "imaps://10.0.0.11:993"}]],
        json_schema_extra=NEW_SESSIONS,
    )
    tls: BackendTls = Field(default=BackendTls(), description="TLS towards backends.", json_schema_extra=NEW_SESSIONS)
    login: BackendLogin = Field(
        default=BackendLogin(), description="How the proxy logs in to backends.", json_schema_extra=NEW_SESSIONS
    )
