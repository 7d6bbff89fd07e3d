"""The settings of what is found out about backends: which there are, by DNS, and whether they work."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from proxy.settings.section import LIVE, NEW_SESSIONS, Section, misplaced
from proxy.settings.values import DnsName, Duration, IpAddress, LoginName, SecretValue, ServerName, duration


class ProbeLogin(Section):
    """An account for trying whether logins work."""

    name: LoginName = Field(
        description="Its name, as it is said to the backend.", examples=["probe"], json_schema_extra=NEW_SESSIONS
    )
    password: SecretValue = Field(
        description="Its password.", examples=[{"file": "/run/secrets/probe"}], json_schema_extra=LIVE
    )


class Health(Section):
    """Whether backends work: tried from here, and seen by the logins that pass."""

    interval: Annotated[float, duration(least="100ms")] = Field(
        default=5.0,
        description="Between two checks of a backend: TCP, TLS, greeting, and with `login` a login. Each differs by up "
        "to a fifth, so that many proxies do not ask at once. After a failed one the next comes within 1s.",
        json_schema_extra=NEW_SESSIONS,
    )
    timeout: Duration = Field(default=5.0, description="For a whole check.", json_schema_extra=NEW_SESSIONS)
    down_after: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="So many failures in a row, of checks or of users' logins, and a backend is down: logins are "
        "refused at once instead of waiting for it.",
        json_schema_extra=NEW_SESSIONS,
    )
    up_after: int = Field(
        default=2,
        ge=1,
        le=1000,
        description="So many good checks in a row, and it is up again.",
        json_schema_extra=NEW_SESSIONS,
    )
    hold_down: Annotated[float, duration(least="0s")] = Field(
        default=60.0,
        description="With `backends.failover`: how long a backend has to be up again before its users return.",
        json_schema_extra=NEW_SESSIONS,
    )
    login: ProbeLogin | None = Field(
        default=None,
        description="An account that each check logs in with; null: checks end with the greeting.",
        json_schema_extra=NEW_SESSIONS,
    )


class Discovery(Section):
    """Backends that DNS names. What counts is the name of a backend; its address may change and moves nobody."""

    dns: DnsName = Field(
        description="What is asked for: the name of a headless service (A and AAAA), or `_service._tcp.name` (SRV).",
        examples=["dovecot.mail.svc.cluster.local", "_imap._tcp.dovecot.mail.svc.cluster.local"],
        json_schema_extra=NEW_SESSIONS,
    )
    scheme: Literal["imap", "imaps", "imap+starttls"] = Field(
        default="imaps",
        description="How the connections are secured, as in a server's `url`.",
        json_schema_extra=NEW_SESSIONS,
    )
    port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        default=None,
        description="null: that of the scheme. SRV records bring their own.",
        json_schema_extra=NEW_SESSIONS,
    )
    ordinal_names: bool = Field(
        default=False,
        description="The backends are a StatefulSet's: `NAME-0.dns`, `NAME-1.dns` and so on. A gap in the numbers is a "
        "backend that is down. false: A and AAAA records are named by their PTR records.",
        json_schema_extra=NEW_SESSIONS,
    )
    ordinal_prefix: ServerName | None = Field(
        default=None,
        description="The StatefulSet's NAME; null: the first label of `dns`.",
        examples=["dovecot"],
        json_schema_extra=NEW_SESSIONS,
    )
    weight: int = Field(
        default=1, ge=0, le=1000, description="The weight of each of them.", json_schema_extra=NEW_SESSIONS
    )
    tag: ServerName | None = Field(default=None, description="The pool they belong to.", json_schema_extra=NEW_SESSIONS)
    keep: Annotated[float, duration(least="0s")] = Field(
        default=600.0,
        description="How long a backend that DNS lists no more is still counted: one that starts again is not one that "
        "was taken away, and its users must not move.",
        json_schema_extra=NEW_SESSIONS,
    )
    nameservers: Annotated[tuple[IpAddress, ...], Field(strict=False)] = Field(
        default=(),
        description="Whom to ask, `address` or `address:port`; none: those of /etc/resolv.conf.",
        examples=[["10.96.0.10"]],
        json_schema_extra=NEW_SESSIONS,
    )

    @model_validator(mode="after")
    def _what_belongs_together(self) -> Discovery:
        if self.ordinal_prefix is not None and not self.ordinal_names:
            raise misplaced("ordinal_prefix", "belongs to ordinal_names: true")
        if self.ordinal_names and self.dns.startswith("_"):
            raise misplaced("ordinal_names", "an SRV record names its servers itself")
        if self.port is not None and self.dns.startswith("_"):
            raise misplaced("port", f"the SRV records of {self.dns} bring their own")
        return self
