"""The settings of the fleet: several proxies that know of each other's sessions."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from proxy.settings.addresses import is_loopback
from proxy.settings.section import LIVE, RELOAD, Section, misplaced
from proxy.settings.values import ExistingFile, LoginName, SecretValue, ServerName, ValkeyUrl


class Fleet(Section):
    """Proxies that share what they know of users by a Valkey or Redis server. Absent: each stands for itself."""

    valkey: ValkeyUrl = Field(
        description="The server and its database: `redis://` in the clear, `rediss://` with TLS. Valkey 7.2 or Redis "
        "7.0, and later; one primary, no cluster. What stands there may be lost at any time.",
        examples=["rediss://valkey.example.org:6379/0"],
        json_schema_extra=RELOAD,
    )
    name: ServerName | None = Field(
        default=None,
        description="How this proxy is called among the others, like none of them. null: as the machine is, which is "
        "a pod's name on Kubernetes.",
        examples=["porter-1"],
        json_schema_extra=RELOAD,
    )
    username: LoginName | None = Field(
        default=None,
        description="The user to log in as there; null: its default user.",
        examples=["imap-porter"],
        json_schema_extra=RELOAD,
    )
    password: SecretValue | None = Field(
        default=None,
        description="The password there; null: none is asked for.",
        examples=[{"file": "valkey.secret"}],
        json_schema_extra=LIVE,
    )
    ca: ExistingFile | None = Field(
        default=None,
        description="PEM: the authorities that the server's certificate may come from; null: the system's. Read at "
        "each connection.",
        examples=["ca.crt"],
        json_schema_extra=LIVE,
    )
    insecure: bool = Field(
        default=False,
        description="`redis://` may go to another machine: whoever is on the way may read names, end sessions and hold "
        "users.",
        json_schema_extra=RELOAD,
    )
    secret: SecretValue | None = Field(
        default=None,
        description="What names and wrong passwords are hashed with, so that proxies can count failed logins together; "
        "the same at all of them, and known to nobody else. null: each counts for itself.",
        examples=[{"file": "fleet.secret"}],
        json_schema_extra=RELOAD,
    )

    @model_validator(mode="after")
    def _nobody_listens(self) -> Self:
        url = self.valkey
        if not (url.tls or self.insecure or is_loopback(url.host)):
            problem = "whoever is on the way could end sessions and hold users: rediss://, or insecure: true"
            raise misplaced("valkey", problem)
        if self.ca is not None and not url.tls:
            raise misplaced("ca", "there is no TLS with redis://; the URL of one with TLS begins with rediss://")
        if self.username is not None and self.password is None:
            raise misplaced("username", "nobody logs in without a password, e.g. password: {file: valkey.secret}")
        return self
