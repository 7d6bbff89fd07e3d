"""The settings of the clients' side: where they arrive, how their names are read, and who knows them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from proxy.settings.section import LIVE, NEW_SESSIONS, RESTART, Section, misplaced
from proxy.settings.values import Domain, ExistingFile, ListenAddress, Network, Separator


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
