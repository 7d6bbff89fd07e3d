"""How the values of identity sources are spelled: URLs of directories and web services, templates, maps."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from proxy.model import Endpoint
from proxy.settings import addresses
from proxy.settings.secret import Secret, read_secret
from proxy.settings.values import Spelled, parse_plain_text

LDAP_PORTS = {"ldap": 389, "ldaps": 636}
_WEB_PORTS = {"http": 80, "https": 443}
TEMPLATE_NAMES = ("name", "local", "domain")

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_MAP_KEY = re.compile(r"[a-z][a-z0-9_]{0,63}")
_RDN = r' *(?:[A-Za-z][A-Za-z0-9-]*|[0-9]+(?:\.[0-9]+)+) *=(?:[^\\,+"<>;]|\\(?:[0-9A-Fa-f]{2}|[ ,+"<>;#=\\]))*'
# What Active Directory takes in a bind beside the names of entries: name@domain, or DOMAIN\\name.
_PRINCIPAL = re.compile(r"[^=,\s\\@]+@[^=,\s\\@]+|[^=,\s\\@]+\\[^=,\s\\@]+")
_DN = re.compile(rf"{_RDN}(?:[,+]{_RDN})*")  # RFC 4514 §3, and spaces between, which servers pass over
_LDAP_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9-]*(;[A-Za-z0-9-]+)*|[0-9]+(\.[0-9]+)+")  # RFC 4512 §2.5
_CLAIM = re.compile(r"[\x21-\x7e]{1,256}")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # RFC 9110 §5.6.2
_LENGTHS_AND_CONNECTIONS = frozenset({"connection", "content-length", "transfer-encoding"})
_WHO_ASKS = frozenset({"client-ip", "client-host"})


_Value = TypeVar("_Value", bound=Hashable, covariant=True)


class Map(Mapping[str, _Value]):
    """A mapping that does not change, for settings that are compared and copied."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, _Value] | None = None) -> None:
        self._items = dict(items or {})

    def __getitem__(self, key: str) -> _Value:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return f"Map({self._items!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Map[_Value]:
        return self


@dataclass(frozen=True, slots=True)
class LdapUrl:
    """A directory server: `ldap` and `ldaps` by TCP, `ldapi` by a local socket."""

    scheme: Literal["ldap", "ldaps", "ldapi"]
    endpoint: Endpoint | None  # of ldap and ldaps
    socket: str | None  # the path of ldapi
    text: str  # as it was written

    @property
    def local(self) -> bool:
        """Whether what is said to it stays on this machine."""
        return self.endpoint is None or addresses.is_loopback(self.endpoint.host)

    def __str__(self) -> str:
        return self.text


def parse_ldap_url(value: object) -> LdapUrl:
    """ "ldaps://ldap1.example.org", "ldap://10.0.0.5:389", "ldapi://%2Frun%2Fslapd%2Fldapi".

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    example = 'e.g. "ldaps://ldap1.example.org" or "ldapi://%2Frun%2Fslapd%2Fldapi"'
    scheme, separator, rest = value.partition("://") if isinstance(value, str) else ("", "", "")
    scheme = scheme.lower()
    if not separator or scheme not in (*LDAP_PORTS, "ldapi"):
        raise ValueError(f"expected an ldap://, ldaps:// or ldapi:// URL, {example}")
    rest = rest.removesuffix("/")
    if scheme == "ldapi":
        path = unquote(rest) or "/run/slapd/ldapi"
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"the path of the socket is written with %2F for /, {example}")
        return LdapUrl("ldapi", None, path, f"ldapi://{rest}")
    if any(mark in rest for mark in "/?#@"):
        raise ValueError(f"expected nothing but host and port; what is searched stands in search, {example}")
    endpoint = addresses.parse_host_and_port(rest, LDAP_PORTS[scheme], example)
    return LdapUrl("ldaps" if scheme == "ldaps" else "ldap", endpoint, None, f"{scheme}://{rest}")


def parse_web_url(value: object) -> str:
    """A URL behind which credentials or keys stand: https, or http on this machine alone.

    Raises:
        ValueError: Its text says what is wrong. It never repeats the URL, which may hold a secret.
    """
    example = 'e.g. "https://id.example.org"'
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError(f"expected a URL, {example}")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"expected a URL, {example}") from None
    if parts.scheme not in _WEB_PORTS or not host:
        raise ValueError(f"expected an https:// URL, {example}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL has no name or password in it; they have keys of their own")
    if parts.fragment:
        raise ValueError(f"expected nothing behind #, {example}")
    if parts.scheme == "http" and not addresses.is_loopback(host):
        raise ValueError("secrets and keys pass here: https, or http on loopback only, e.g. http://127.0.0.1:9000/auth")
    addresses.parse_host_and_port(parts.netloc, _WEB_PORTS[parts.scheme], example)
    return value


def without_query(url: str) -> str:
    """A URL as the log and the command may repeat it: a query may hold a key."""
    return url.partition("?")[0]


def parse_template(value: object) -> str:
    """A filter or a name of a directory with {name}, {local} or {domain} in it.

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError('expected text, e.g. "(mail={name})"')
    found = _PLACEHOLDER.findall(value)
    known = "known in braces: {name}, {local} (before the @) and {domain} (behind it)"
    unknown = [name for name in found if name not in TEMPLATE_NAMES]
    if unknown:
        raise ValueError(f"{{{unknown[0]}}} is not known; {known}")
    if not {"{", "}"}.isdisjoint(_PLACEHOLDER.sub("", value)):
        raise ValueError(f"a brace has no partner; {known}")
    if "name" not in found and "local" not in found:
        raise ValueError("everybody would be the same person: put {name} or {local} into it")
    return value


def parse_bind_name(value: object) -> str:
    """As whom to bind: the name of an entry, or a principal as Active Directory knows them, "porter@example.org".

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    text = parse_plain_text(value)
    return text if _PRINCIPAL.fullmatch(text) else parse_dn(text)


def parse_dn(value: object) -> str:
    """The name of an entry, "ou=people,dc=example,dc=org".

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    text = parse_plain_text(value)
    if not _DN.fullmatch(text):
        raise ValueError('not a distinguished name (RFC 4514), e.g. "ou=people,dc=example,dc=org"')
    return text


def parse_dn_template(value: object) -> str:
    """The name of an entry with {name}, {local} or {domain} in values of it; or a principal, "{local}@example.org".

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    text = parse_template(value)
    principal = text.replace("{name}", "x@x").replace("{local}", "x").replace("{domain}", "x")
    if not _DN.fullmatch(_PLACEHOLDER.sub("x", text)) and not _PRINCIPAL.fullmatch(principal):
        raise ValueError('not a distinguished name (RFC 4514), e.g. "uid={local},ou=people,dc=example,dc=org"')
    return text


def dn_tells_domains_apart(template: str) -> bool:
    """Whether a name is in a distinguished name with its domain."""
    return "domain" in _parts(template)


def filter_tells_domains_apart(template: str) -> bool:
    """Whether an entry fits a filter only with the domain of the name in it.

    `(|(uid={local})(mail={name}))` lets it fit without.
    """
    return "domain" in _parts_in_any_case(iter(re.findall(r"[()]|[^()]+", template)))


def _parts_in_any_case(tokens: Iterator[str]) -> frozenset[str]:
    """The parts of a name that are looked at however an entry comes to fit; up to the ")" of a component.

    Source: RFC 4515 §3. Whether it is a filter at all is for ldap3 to say.
    """
    text, inner = "", []
    for each in tokens:
        if each == ")":
            break
        if each == "(":
            inner.append(_parts_in_any_case(tokens))
        else:
            text += each
    if not inner:
        return _parts(text)
    match text.strip():
        case "|":
            return frozenset.intersection(*inner)
        case "!":
            return frozenset()
        case _:
            return frozenset().union(*inner)


def _parts(text: str) -> frozenset[str]:
    """Which of local and domain are filled into a text."""
    found = frozenset(_PLACEHOLDER.findall(text))
    return frozenset({"local", "domain"}) if "name" in found else found


def parse_ldap_map(value: object) -> Map[str]:
    """From our names to those of the directory's attributes."""
    return _map(value, _LDAP_ATTRIBUTE, "an LDAP attribute, e.g. {name: mail, backend: mailHost}")


def parse_claim_map(value: object) -> Map[str]:
    """From our names to those of a token's claims."""
    return _map(value, _CLAIM, "a claim, e.g. {backend: mail_host}")


def _map(value: object, allowed: re.Pattern[str], expected: str) -> Map[str]:
    if not isinstance(value, dict):
        raise ValueError(f"expected keys, each with {expected}")
    for key, name in value.items():
        if not isinstance(key, str) or not _MAP_KEY.fullmatch(key):
            raise ValueError("expected small letters, digits and _ as keys, e.g. backend")
        if not isinstance(name, str) or not allowed.fullmatch(name):
            raise ValueError(f"{key}: expected {expected}")
    return Map(value)


def parse_headers(value: object, folder: Path) -> Map[str | Secret]:
    """Header fields of HTTP: text, or a secret.

    Raises:
        ValueError: Its text says what is wrong and never repeats a value.
    """
    if not isinstance(value, dict):
        raise ValueError("expected keys, e.g. {X-Auth-Key: {file: auth.key}}")
    headers: dict[str, str | Secret] = {}
    for name, given in value.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise ValueError("expected the name of a header field, e.g. X-Auth-Key")
        if problem := _header_name_problem(name):
            raise ValueError(f"{name}: {problem}")
        if isinstance(given, dict):
            try:
                secret = read_secret(given, folder)
            except ValueError as exc:
                raise ValueError(f"{name}: {exc}") from None
            if not (secret.value.isascii() and secret.value.decode("ascii").isprintable()):
                raise ValueError(f"{name}: the secret is no text that a header field can hold")
            headers[name] = secret
        elif isinstance(given, str) and given.isascii() and given.isprintable():
            headers[name] = given
        else:
            raise ValueError(f"{name}: expected text, or {{file: PATH}} for a secret")
    return Map(headers)


def _header_name_problem(name: str) -> str:
    """Why a field is not the settings' to give; "": it is. `Host` is: nginx lets it be set, too."""
    name = name.lower()
    if name.startswith("auth-"):
        return "Auth-* is what the service is asked; take another name, e.g. X-Auth-Key"
    if name in _WHO_ASKS:
        return "it tells the service about the client, and is not the same for all"
    if name in _LENGTHS_AND_CONNECTIONS:
        return "HTTP itself sets it, from request to request"
    return ""


def _show_headers(headers: Mapping[str, str | Secret]) -> dict[str, Any]:
    return {name: {each.kind: each.place} if isinstance(each, Secret) else each for name, each in headers.items()}


def parse_audience(value: object) -> tuple[str, ...]:
    """One text, or a list of them.

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    if isinstance(value, str):
        return (parse_plain_text(value),)
    if not isinstance(value, list) or not value:
        raise ValueError("expected text or a list of texts, e.g. imap or [imap, webmail]")
    return tuple(map(parse_plain_text, value))


def _show_audience(audience: tuple[str, ...]) -> str | list[str]:
    return audience[0] if len(audience) == 1 else list(audience)


def parse_scope(value: object) -> str:
    """A scope, of which a token has several with blanks between them (RFC 6749 §3.3).

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    scope = parse_plain_text(value)
    if " " in scope:
        raise ValueError("one scope per entry: [imap, mail]")
    return scope


_TEXTS = {"type": "object", "additionalProperties": {"type": "string", "minLength": 1}}

LdapUrlValue = Annotated[
    LdapUrl,
    Spelled(
        "URL", lambda value, _: parse_ldap_url(value), str, {"type": "string", "pattern": "^ldap[si]?://[^/?#@]*/?$"}
    ),
]
WebUrl = Annotated[
    str, Spelled("URL", lambda value, _: parse_web_url(value), str, {"type": "string", "pattern": "^https?://[^@#]+$"})
]
Template = Annotated[
    str, Spelled("template", lambda value, _: parse_template(value), str, {"type": "string", "minLength": 1})
]
DnTemplate = Annotated[
    str, Spelled("template", lambda value, _: parse_dn_template(value), str, {"type": "string", "minLength": 1})
]
BindName = Annotated[
    str, Spelled("text", lambda value, _: parse_bind_name(value), str, {"type": "string", "minLength": 1})
]
Dn = Annotated[str, Spelled("text", lambda value, _: parse_dn(value), str, {"type": "string", "minLength": 1})]
LdapMap = Annotated[Map[str], Spelled("map", lambda value, _: parse_ldap_map(value), dict, _TEXTS)]
ClaimMap = Annotated[Map[str], Spelled("map", lambda value, _: parse_claim_map(value), dict, _TEXTS)]
Headers = Annotated[
    Map[str | Secret],
    Spelled(
        "map",
        parse_headers,
        _show_headers,
        {"type": "object", "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "object"}]}},
    ),
]
Scope = Annotated[
    str, Spelled("text", lambda value, _: parse_scope(value), str, {"type": "string", "pattern": "^[^ ]+$"})
]
_ONE_TEXT = {"type": "string", "minLength": 1}
Audience = Annotated[
    tuple[str, ...],
    Spelled(
        "text or list of texts",
        lambda value, _: parse_audience(value),
        _show_audience,
        {"anyOf": [_ONE_TEXT, {"type": "array", "items": _ONE_TEXT, "minItems": 1}]},
    ),
]
