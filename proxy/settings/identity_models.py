"""The settings of the identity sources: who knows users and their secrets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from proxy.settings.identity_values import (
    Audience,
    BindName,
    ClaimMap,
    Dn,
    DnTemplate,
    Headers,
    LdapMap,
    LdapUrlValue,
    Map,
    Scope,
    Template,
    WebUrl,
    dn_tells_domains_apart,
    filter_tells_domains_apart,
)
from proxy.settings.section import LIVE, NEW_SESSIONS, Section, misplaced
from proxy.settings.units import duration_text
from proxy.settings.values import Duration, ExistingFile, SecretValue, Text, duration

_NOTHING: Any = Map()


class FileIdentity(Section):
    """Names and password hashes from a YAML file."""

    path: ExistingFile = Field(
        description="The users file: `name: {hash: ...}`, hashes from `imap-porter hash-password`.",
        examples=["users.yaml"],
        json_schema_extra=LIVE,
    )


class LdapBind(Section):
    """As whom the proxy searches the directory."""

    dn: BindName | None = Field(
        default=None,
        description="The name of the search account.",
        examples=["cn=porter,dc=example,dc=org"],
        json_schema_extra=NEW_SESSIONS,
    )
    password: SecretValue | None = Field(
        default=None,
        description="Its password; required with `dn`.",
        examples=[{"file": "/run/secrets/ldap"}],
        json_schema_extra=LIVE,
    )
    external: bool = Field(
        default=False,
        description="SASL EXTERNAL in place of `dn` and `password`: over `ldapi://` the directory knows the proxy by "
        "its process's user.",
        json_schema_extra=NEW_SESSIONS,
    )

    @model_validator(mode="after")
    def _one_way(self) -> LdapBind:
        if self.external:
            if self.dn is not None or self.password is not None:
                raise misplaced("external", "true: dn and password are not used; remove them")
        elif self.dn is None or self.password is None:
            raise ValueError("expected dn and password, or external: true")
        return self


class LdapSearch(Section):
    """How the entry of a name is found: the search has to give exactly one."""

    base: Dn = Field(
        description="Where the search begins.",
        examples=["ou=people,dc=example,dc=org"],
        json_schema_extra=NEW_SESSIONS,
    )
    filter: Template = Field(
        description="With `{name}` for the canonical name, `{local}` for its part before the `@` and `{domain}` for "
        "the part behind it; they are escaped (RFC 4515). Where an entry may fit by `{local}` alone, either "
        "`attributes.name` tells whose it is, or `names.default_domain` is set and names of other domains are not "
        "known here.",
        examples=["(&(objectClass=inetOrgPerson)(mail={name}))"],
        json_schema_extra=NEW_SESSIONS,
    )
    scope: Literal["subtree", "one", "base"] = Field(
        default="subtree", description="How deep it goes.", json_schema_extra=NEW_SESSIONS
    )


class LdapIdentity(Section):
    """A directory: the proxy finds the entry of a name and binds as it with the user's password."""

    urls: Annotated[tuple[LdapUrlValue, ...], Field(strict=False)] = Field(
        min_length=1,
        description="Servers with the same content, tried in this order: `ldaps://` (port 636), `ldap://` (389), "
        "`ldapi://%2Fpath`. One that fails is left out for a while, then tried again.",
        examples=[["ldaps://ldap1.example.org", "ldaps://ldap2.example.org"]],
        json_schema_extra=NEW_SESSIONS,
    )
    bind: LdapBind | None = Field(
        default=None, description="Whom to search as; absent: anonymously.", json_schema_extra=NEW_SESSIONS
    )
    search: LdapSearch | None = Field(
        default=None, description="How to find an entry; this or `user_dn`.", json_schema_extra=NEW_SESSIONS
    )
    user_dn: DnTemplate | None = Field(
        default=None,
        description="The entry's name itself, with `{name}`, `{local}` and `{domain}` (escaped, RFC 4514); this or "
        "`search`, and what is said there of `{local}` alone. A bind that fails is then a no for every name, known or "
        "not.",
        examples=["uid={local},ou={domain},dc=example,dc=org"],
        json_schema_extra=NEW_SESSIONS,
    )
    attributes: LdapMap = Field(
        default=_NOTHING,
        description="What is read of the entry. `name`: the canonical name. `backend`: the backend, by name, host or "
        "host:port, which wins over the hash. `scram`: keys for SCRAM-SHA-256. Any other key goes into the identity's "
        "attributes.",
        examples=[{"name": "mail", "backend": "mailHost"}],
        json_schema_extra=NEW_SESSIONS,
    )
    start_tls: bool = Field(
        default=False,
        description="StartTLS on `ldap://` connections, before anything else is said.",
        json_schema_extra=NEW_SESSIONS,
    )
    insecure: bool = Field(
        default=False,
        description="Whether `ldap://` without `start_tls` may lead to another machine: whoever is on the way there "
        "reads every password, the users' and the proxy's own, and can answer in the directory's place.",
        json_schema_extra=NEW_SESSIONS,
    )
    ca: ExistingFile | None = Field(
        default=None,
        description="Certificates (PEM) that the servers' certificates must descend from; null: those of the system.",
        examples=["ca.pem"],
        json_schema_extra=NEW_SESSIONS,
    )
    pool: int = Field(
        default=8,
        ge=1,
        le=64,
        description="Questions under way at each server at once; each may keep two connections, one that searches and "
        "one that binds.",
        json_schema_extra=NEW_SESSIONS,
    )
    connect_timeout: Duration = Field(
        default=2.0,
        description="TCP and TLS with one server; not longer than `timeout`.",
        json_schema_extra=NEW_SESSIONS,
    )
    timeout: Duration = Field(
        default=5.0,
        description="One whole login at the directory, all servers together; it includes waiting for a connection. "
        "Shorter than `timeouts.login`.",
        json_schema_extra=NEW_SESSIONS,
    )

    @model_validator(mode="after")
    def _one_way_to_an_entry(self) -> LdapIdentity:
        if (self.search is None) == (self.user_dn is None):
            raise ValueError("expected one of search and user_dn")
        if self.start_tls and any(url.scheme != "ldap" for url in self.urls):
            raise misplaced("start_tls", "belongs to ldap:// URLs alone; ldaps:// has TLS from the first octet")
        external = self.bind is not None and self.bind.external
        if external and any(url.scheme != "ldapi" for url in self.urls):
            raise misplaced("bind", "external: true needs ldapi:// URLs; other servers do not know who the proxy is")
        if "scram" in self.attributes and self.bind is None:
            raise misplaced("attributes", "scram needs bind: the keys are no one's to read anonymously")
        return self

    @model_validator(mode="after")
    def _passwords_are_hidden(self) -> LdapIdentity:
        if self.start_tls or self.insecure:
            return self
        for url in self.urls:
            if url.scheme == "ldap" and not url.local:
                way_out = "write ldaps://, or set start_tls: true; insecure: true accepts it"
                raise misplaced("urls", f'"{url}": passwords would pass in clear; {way_out}')
        return self

    @model_validator(mode="after")
    def _connects_in_time(self) -> LdapIdentity:
        # Where only `timeout` is written, it ends connecting too.
        if "connect_timeout" in self.model_fields_set and self.connect_timeout > self.timeout:
            given, most = duration_text(self.connect_timeout), duration_text(self.timeout)
            raise misplaced("connect_timeout", f"{given} is longer than timeout, {most}, which ends it sooner")
        return self

    @property
    def found_by_local_part(self) -> bool:
        """Whether names that differ in their domain could have one entry, and it does not tell whose it is."""
        if "name" in self.attributes:
            return False
        if self.search is not None:
            return not filter_tells_domains_apart(self.search.filter)
        return self.user_dn is not None and not dn_tells_domains_apart(self.user_dn)


class Introspection(Section):
    """Opaque tokens: the issuer itself is asked what they are worth (RFC 7662)."""

    url: WebUrl = Field(
        description="The introspection endpoint: https, or http on loopback.",
        examples=["https://id.example.org/introspect"],
        json_schema_extra=NEW_SESSIONS,
    )
    client_id: Text = Field(
        description="As whom the proxy asks.", examples=["imap-porter"], json_schema_extra=NEW_SESSIONS
    )
    client_secret: SecretValue = Field(
        description="With what.", examples=[{"file": "/run/secrets/oauth"}], json_schema_extra=LIVE
    )
    method: Literal["basic", "post"] = Field(
        default="basic",
        description="How they are sent: HTTP Basic, or in the form (RFC 6749 §2.3.1).",
        json_schema_extra=NEW_SESSIONS,
    )


class OAuthIdentity(Section):
    """An issuer of bearer tokens, for XOAUTH2 and OAUTHBEARER."""

    issuer: WebUrl | None = Field(
        default=None,
        description="The issuer, exactly as its tokens spell it (`iss`), without a query. Its keys are found by "
        "discovery. Required, except where introspection alone is used.",
        examples=["https://id.example.org"],
        json_schema_extra=NEW_SESSIONS,
    )
    jwks_url: WebUrl | None = Field(
        default=None,
        description="The issuer's keys, in place of discovery.",
        examples=["https://id.example.org/keys"],
        json_schema_extra=NEW_SESSIONS,
    )
    introspection: Introspection | None = Field(
        default=None,
        description="For tokens that are no JWT; without `issuer` for all.",
        json_schema_extra=NEW_SESSIONS,
    )
    audience: Audience = Field(
        description="What `aud` has to hold: this proxy's name at the issuer. Of a list, one of them suffices.",
        examples=["imap"],
        json_schema_extra=NEW_SESSIONS,
    )
    scopes: Annotated[tuple[Scope, ...], Field(strict=False)] = Field(
        default=(),
        description="What `scope` has to hold, each of them.",
        examples=[["imap"]],
        json_schema_extra=NEW_SESSIONS,
    )
    name_claim: Text = Field(
        default="sub",
        description="The claim with the user's name. `email` counts only with `email_verified: true`.",
        json_schema_extra=NEW_SESSIONS,
    )
    attributes: ClaimMap = Field(
        default=_NOTHING,
        description="Other claims to keep. `backend`: the backend, which wins over the hash. Any other key goes into "
        "the identity's attributes. The name is `name_claim`'s alone.",
        examples=[{"backend": "mail_host"}],
        json_schema_extra=NEW_SESSIONS,
    )
    leeway: Annotated[float, duration(least="0s", most="60s")] = Field(
        default=30.0, description="How far clocks may differ.", json_schema_extra=NEW_SESSIONS
    )
    ca: ExistingFile | None = Field(
        default=None,
        description="Certificates (PEM) that the issuer's certificate must descend from; null: those of the system.",
        examples=["ca.pem"],
        json_schema_extra=NEW_SESSIONS,
    )
    timeout: Duration = Field(default=5.0, description="Each request to the issuer.", json_schema_extra=NEW_SESSIONS)

    @model_validator(mode="after")
    def _keys_or_introspection(self) -> OAuthIdentity:
        if self.issuer is None and self.jwks_url is not None:
            raise misplaced("jwks_url", "needs issuer: a key alone does not say whose tokens count")
        if self.issuer is None and self.introspection is None:
            raise ValueError("expected issuer, for tokens that are JWTs, or introspection, for those that are not")
        if self.issuer is not None and "?" in self.issuer:
            raise misplaced("issuer", "an issuer has no query, nothing behind ? (RFC 8414 §2)")
        if "name" in self.attributes:
            raise misplaced("attributes", "name is not one of them: name_claim says which claim is the user's name")
        return self


class HttpIdentity(Section):
    """A web service that speaks nginx's `auth_http` protocol: name and password in header fields, so the answer."""

    url: WebUrl = Field(
        description="The service: https, or http on loopback.",
        examples=["http://127.0.0.1:9000/auth"],
        json_schema_extra=NEW_SESSIONS,
    )
    timeout: Duration = Field(default=5.0, description="The whole request.", json_schema_extra=NEW_SESSIONS)
    headers: Headers = Field(
        default=_NOTHING,
        description="Header fields that go with each request: text, or a secret.",
        examples=[{"X-Auth-Key": {"file": "auth.key"}}],
        json_schema_extra=NEW_SESSIONS,
    )
    ca: ExistingFile | None = Field(
        default=None,
        description="Certificates (PEM) that the service's certificate must descend from; null: those of the system.",
        examples=["ca.pem"],
        json_schema_extra=NEW_SESSIONS,
    )
    cache: bool = Field(
        default=False,
        description="Whether its answers are remembered (`cache`). false: it is asked at every login, as nginx does, "
        "since it may decide by the client's address.",
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
    ldap: LdapIdentity | None = Field(default=None, description="A directory.", json_schema_extra=NEW_SESSIONS)
    oauth: OAuthIdentity | None = Field(
        default=None, description="An issuer of tokens.", json_schema_extra=NEW_SESSIONS
    )
    http: HttpIdentity | None = Field(
        default=None, description="A service for nginx's `auth_http`.", json_schema_extra=NEW_SESSIONS
    )
    backend: BackendIdentity | None = Field(
        default=None,
        description="The backend decides: `backend: {}`. Only as the last source and only with `backends.login.method: "
        "password` or `token`; with any other method the backend never sees the user's secret.",
        json_schema_extra=NEW_SESSIONS,
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> IdentitySource:
        given = {key for key in self.model_fields_set if getattr(self, key) is not None}
        if not given and self.model_fields_set == {"backend"}:
            raise ValueError("backend is empty; write backend: {}")
        if len(given) != 1:
            raise ValueError("expected exactly one source here: file: {path: users.yaml}, ldap, oauth, http or backend")
        return self

    @property
    def kind(self) -> str:
        """The one key that is there: file, ldap, oauth, http, backend."""
        return next(key for key in type(self).model_fields if getattr(self, key) is not None)


class Cache(Section):
    """What identity sources answered, remembered for a while. Passwords are kept as keyed hashes only."""

    positive: Annotated[float, duration(least="0s", most="1d")] = Field(
        default=300.0,
        description="How long a yes counts: so long a changed or revoked secret may still work; 0s: not at all.",
        json_schema_extra=NEW_SESSIONS,
    )
    negative: Annotated[float, duration(least="0s", most="1h")] = Field(
        default=30.0, description="How long a no counts; 0s: not at all.", json_schema_extra=NEW_SESSIONS
    )
    entries: int = Field(
        default=100_000,
        ge=100,
        le=10_000_000,
        description="How many answers are kept, yes and no each; some 700 octets an answer.",
        json_schema_extra=NEW_SESSIONS,
    )
    serve_stale: Annotated[float, duration(least="0s", most="7d")] | None = Field(
        default=None,
        description="How long past `positive` a yes still counts while its source is out; null: not at all.",
        examples=["1h"],
        json_schema_extra=NEW_SESSIONS,
    )
