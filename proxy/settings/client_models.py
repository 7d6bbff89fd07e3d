"""The settings of the clients' side: where they arrive, how their names are read, and who knows them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from proxy.settings.section import LIVE, NEW_SESSIONS, RELOAD, Section, misplaced
from proxy.settings.values import (
    Delimiters,
    Domain,
    ExistingFile,
    ListenAddress,
    Network,
    PeerNetwork,
    Separator,
    WebOrigin,
    duration,
    size,
)


class ClientCertificates(Section):
    """Certificates that clients show in the TLS handshake, for AUTHENTICATE EXTERNAL (RFC 4422 Appendix A)."""

    ca: ExistingFile = Field(
        description="Certificates (PEM) that clients' certificates must descend from.",
        examples=["clients-ca.pem"],
        json_schema_extra=RELOAD,
    )
    name: Literal["san.email", "san.dns", "san.upn", "subject.email", "subject.cn", "subject.uid"] = Field(
        default="san.email",
        description="Where the user's name stands in the certificate: a subject alternative name (`san.`; `upn` is "
        "Microsoft's) or a field of the subject. EXTERNAL fails where there is none, or more than one.",
        json_schema_extra=RELOAD,
    )
    required: bool = Field(
        default=False,
        description="Whether a handshake without a certificate fails. false: such a client logs in with a secret.",
        json_schema_extra=RELOAD,
    )


class TrustedPeers(Section):
    """Who is believed."""

    trusted_networks: Annotated[tuple[PeerNetwork, ...], Field(strict=False)] = Field(
        min_length=1,
        description="Where those are who may say who the client is.",
        examples=[["10.0.0.0/8"]],
        json_schema_extra=NEW_SESSIONS,
    )


class WebSockets(Section):
    """How web pages and other programs speak IMAP over WebSocket (RFC 6455), subprotocol `imap`."""

    origins: Annotated[tuple[WebOrigin, ...], Field(strict=False)] = Field(
        default=(),
        description="The web pages that may connect, by their origin; a browser that says another one is refused.",
        examples=[["https://mail.example.org"]],
        json_schema_extra=RELOAD,
    )
    require_origin: bool = Field(
        default=False,
        description="Whether clients that say no origin are refused, too: programs that are no browsers.",
        json_schema_extra=RELOAD,
    )
    keepalive: Annotated[float, duration(least="1s", most="1h")] = Field(
        default=30.0,
        description="How often a client is asked for a sign of life. One that has given none by the next time is gone, "
        "and so is one that takes nothing of what is sent to it for twice as long.",
        json_schema_extra=RELOAD,
    )
    max_message: Annotated[int, size(least="4KiB", most="4GiB")] = Field(
        default=64 * 1024 * 1024,
        description="The largest message taken from a client. Messages are no units of IMAP: any part of a command, or "
        "many commands, may be in one, and none is kept here until it is whole.",
        json_schema_extra=RELOAD,
    )
    frames_per_second: int = Field(
        default=1000,
        ge=10,
        le=1_000_000,
        description="A client that sends more is read more slowly. Frames that carry one octet cost as much as others.",
        json_schema_extra=RELOAD,
    )


class Listener(Section):
    """One address where clients arrive."""

    address: ListenAddress = Field(
        description='IP address and port; "[::]:993" listens on every address, IPv4 included.',
        examples=["[::]:993", "127.0.0.1:1143"],
        json_schema_extra=RELOAD,
    )
    tls: Literal["implicit", "starttls", "none"] = Field(
        description="`implicit`: TLS from the first octet (imaps, port 993). `starttls`: login only after STARTTLS "
        "(port 143). `none`: no TLS at all, only together with `trusted_networks`.",
        examples=["implicit"],
        json_schema_extra=RELOAD,
    )
    protocol: Literal["imap", "websocket", "socketmap"] = Field(
        default="imap",
        description="`imap`: mail clients. `websocket`: the same over WebSocket, for web pages; with `tls: implicit`, "
        "or `none` behind a web server of `trusted_networks`, whose `X-Forwarded-For` or `Forwarded` says who the "
        "client is. `socketmap`: Postfix asks where a user's mail is delivered, `route alice@example.org`; only with "
        "`tls: none`.",
        json_schema_extra=RELOAD,
    )
    trusted_networks: Annotated[tuple[Network, ...], Field(strict=False)] = Field(
        default=(),
        description="Only with `tls: none`, and required there: clients from elsewhere are refused.",
        json_schema_extra=NEW_SESSIONS,
    )
    domains: Annotated[tuple[Domain, ...], Field(strict=False)] = Field(
        default=(),
        description="Only with `protocol: socketmap`: the domains whose mail is delivered to the backends; of others "
        "nothing is known here. None named: all. Postfix asks about outgoing mail, too.",
        examples=[["example.org"]],
        json_schema_extra=RELOAD,
    )
    proxy_protocol: TrustedPeers | None = Field(
        default=None,
        description="Connections from these networks begin with a PROXY header, v1 or v2, that says who the client is; "
        "one without is closed. From elsewhere none is taken.",
        examples=[{"trusted_networks": ["10.0.0.0/8"]}],
        json_schema_extra=RELOAD,
    )
    id_address: TrustedPeers | None = Field(
        default=None,
        description="Clients from these networks, a webmail server or another proxy, may say by IMAP ID, "
        "`x-originating-ip`, who theirs is.",
        examples=[{"trusted_networks": ["10.0.0.8/32"]}],
        json_schema_extra=RELOAD,
    )
    websocket: WebSockets | None = Field(
        default=None,
        description="Only with `protocol: websocket`; null: the defaults, with which no web page may connect.",
        json_schema_extra=RELOAD,
    )
    client_certificates: ClientCertificates | None = Field(
        default=None,
        description="Asks clients for a certificate and offers EXTERNAL to those who have one.",
        json_schema_extra=RELOAD,
    )

    @model_validator(mode="after")
    def _plain_only_for_trusted(self) -> Listener:
        if self.tls == "none" and not self.trusted_networks:
            raise misplaced("tls", 'none needs trusted_networks, e.g. ["127.0.0.0/8"]; passwords pass in clear here')
        if self.tls != "none" and self.trusted_networks:
            raise misplaced("trusted_networks", f"belongs to tls: none; with tls: {self.tls} everyone may connect")
        if self.protocol == "socketmap" and self.tls != "none":
            raise misplaced("tls", "socketmap has no TLS: none, and trusted_networks")
        if self.protocol == "websocket" and self.tls == "starttls":
            raise misplaced("tls", "there is no STARTTLS in a WebSocket: implicit, or none and trusted_networks")
        if self.protocol != "websocket" and self.websocket is not None:
            raise misplaced("websocket", "belongs to protocol: websocket")
        if self.protocol == "socketmap" and self.proxy_protocol is not None:
            raise misplaced("proxy_protocol", "belongs to protocol: imap")
        if self.protocol == "socketmap" and self.id_address is not None:
            raise misplaced("id_address", "belongs to protocol: imap")
        if self.protocol != "socketmap" and self.domains:
            raise misplaced("domains", "belongs to protocol: socketmap")
        if self.tls == "none" and self.client_certificates is not None:
            raise misplaced("client_certificates", "there are no certificates without TLS")
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
        default="1.2", description="The oldest TLS version spoken, in quotes.", json_schema_extra=RELOAD
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
    recipient_delimiter: Delimiters = Field(
        default="+",
        description="Marks that part a name from an address extension when Postfix asks (`protocol: socketmap`): mail "
        'for ann+list goes where ann is. "": none does.',
        json_schema_extra=NEW_SESSIONS,
    )
