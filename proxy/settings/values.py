"""How values are spelled in the settings file: the bridge between plain YAML objects and typed values.

A field says `Annotated[float, Spelled(...)]`; pydantic then parses the spelling, dumps it back in JSON mode, and
describes it in the JSON Schema. Python code that builds settings without a file may hand over the typed value itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from proxy.model import Endpoint
from proxy.settings import addresses, units
from proxy.settings.secret import Secret, read_secret

_LONGEST_SOCKET_PATH = 107
_LONGEST_NAME_BESIDE = 10  # with its "/": a socket is bound beside its path first, see admin/unix_socket.py
_LONGEST_FAILOVER_SECONDS = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Spelled:
    """The spelling of one kind of value."""

    kind: str  # for people: the column "type" of the reference
    parse: Callable[[Any, Path], Any]  # plain object, folder of the settings file; raises ValueError
    show: Callable[[Any], Any]
    schema: dict[str, Any] = field(hash=False)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(self.show, when_used="json"),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return dict(self.schema)

    def _validate(self, value: Any, info: ValidationInfo) -> Any:
        if info.context is not None:
            return self.parse(value, info.context["folder"])
        return self.parse(value, Path.cwd()) if isinstance(value, (str, dict)) else value


def _text(kind: str, parse: Callable[[Any], Any], show: Callable[[Any], Any] = str, **schema: Any) -> Spelled:
    """A spelling as text that doesn't depend on where the file is."""
    return Spelled(kind, lambda value, _folder: parse(value), show, {"type": "string", **schema})


def duration(*, least: str = "1ms", most: str = "365d", why: str = "") -> Spelled:
    """A duration within bounds.

    Args:
        least: The shortest one allowed.
        most: The longest one allowed.
        why: What stands behind the lower bound, for the message.
    """
    shortest, longest = units.parse_duration(least), units.parse_duration(most)

    def parse(value: object) -> float:
        seconds = units.parse_duration(value)
        if seconds < shortest:
            raise ValueError(f"{value} is too short; {why or f'{least} is the least'}")
        if seconds > longest:
            raise ValueError(f"{value} is too long; {most} is the most")
        return seconds

    return _text(
        "duration", parse, units.duration_text, pattern=units.DURATION_PATTERN, examples=["250ms", "15s", "2m"]
    )


def size(*, least: str, most: str) -> Spelled:
    """A number of octets within bounds."""
    smallest, largest = units.parse_size(least), units.parse_size(most)

    def parse(value: object) -> int:
        octets = units.parse_size(value)
        if octets < smallest:
            raise ValueError(f"{value} is too small; {least} is the least")
        if octets > largest:
            raise ValueError(f"{value} is too large; {most} is the most")
        return octets

    return _text("size", parse, units.size_text, pattern=units.SIZE_PATTERN, examples=["64KiB", "500MiB"])


def existing_file(value: object, folder: Path) -> Path:
    """An absolute path of a file that can be read.

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("expected the path of a file")
    path = Path(os.path.normpath(folder / value)).absolute()
    if path.is_dir():
        raise ValueError(f'a directory, not a file: "{value}"')
    try:
        with path.open("rb"):
            return path
    except FileNotFoundError:
        raise ValueError(f'no such file: "{value}"') from None
    except OSError as exc:
        raise ValueError(f'cannot be read: "{value}": {exc.strerror}') from None


def socket_path(value: object, folder: Path) -> Path:
    """An absolute path where a unix socket can be bound.

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("expected the path of a socket, e.g. /run/imap-porter/admin.sock")
    path = Path(os.path.normpath(folder / value)).absolute()
    if max(len(os.fsencode(path)), len(os.fsencode(path.parent)) + _LONGEST_NAME_BESIDE) > _LONGEST_SOCKET_PATH:
        raise ValueError(f"longer than {_LONGEST_SOCKET_PATH} octets, the most that the kernel takes (unix(7))")
    if not path.parent.is_dir():
        raise ValueError(f'no such folder: "{path.parent}"')
    if not _may_become_socket(path):
        raise ValueError(f'there is something else, which is no socket: "{path}"')
    return path


def _may_become_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:  # there is nothing, or whoever binds it will tell
        return True


def parse_version(value: object) -> int:
    if value != 1 or not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("this program reads version 1 of the settings; write version: 1")
    return value


def parse_workers(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1024:
        raise ValueError("expected auto or a number of processes between 1 and 1024")
    return value


def parse_failover(value: object) -> float | Literal["never"]:
    if value == "never":
        return "never"
    seconds = units.parse_duration(value)
    if seconds > _LONGEST_FAILOVER_SECONDS:
        raise ValueError(f"{value} is too long; 7d is the most, and never is another choice")
    return seconds


def parse_server_name(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 64 or not value.isascii():
        raise ValueError("expected a name of 1 to 64 letters, digits and . _ -, e.g. dovecot-1")
    if not value[0].isalnum() or not value.translate(_NAME_MARKS).isalnum():
        raise ValueError("expected letters, digits and . _ - with a letter or digit first, e.g. dovecot-1")
    return value


_NAME_MARKS = str.maketrans("._-", "aaa")


def parse_separator(value: object) -> str:
    """A separator may not occur in ordinary names: they would all be refused."""
    if not isinstance(value, str) or not 1 <= len(value) <= 4 or not value.isascii() or not value.isprintable():
        raise ValueError('expected 1 to 4 visible ASCII characters, e.g. "*"')
    if any(mark.isalnum() or mark in " @._-" for mark in value):
        raise ValueError(f'"{value}" occurs in ordinary names, which would then be refused; "*" is usual')
    return value


def parse_delimiters(value: object) -> str:
    """Marks of which each parts a local part from its extension. None may stand in ordinary names."""
    if not isinstance(value, str) or len(value) > 4 or not value.isascii() or not value.isprintable():
        raise ValueError('expected up to 4 visible ASCII characters, e.g. "+"')
    if any(mark.isalnum() or mark in " @._" for mark in value):
        raise ValueError(f'"{value}" occurs in ordinary names, whose mail would then go astray; "+" is usual')
    return value


def parse_login_name(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value.encode(errors="replace")) <= 256 or not value.isprintable():
        raise ValueError("expected a name of 1 to 256 octets without control characters")
    return value


def parse_plain_text(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 1024 or not value.isprintable():
        raise ValueError("expected text of 1 to 1024 characters, none of them a control character")
    return value


Version = Annotated[int, Spelled("1", lambda value, _: parse_version(value), int, {"const": 1})]
Workers = Annotated[
    int | Literal["auto"],
    Spelled(
        "`auto` or number",
        lambda value, _: parse_workers(value),
        lambda workers: workers,
        {"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 1024}]},
    ),
]
Duration = Annotated[float, duration()]
Failover = Annotated[
    float | Literal["never"],
    Spelled(
        "`never` or duration",
        lambda value, _: parse_failover(value),
        lambda after: after if after == "never" else units.duration_text(after),
        {"anyOf": [{"const": "never"}, {"type": "string", "pattern": units.DURATION_PATTERN}]},
    ),
]
ListenAddress = Annotated[
    Endpoint,
    _text("address:port", addresses.parse_listen_address, pattern=r"^(\[[0-9A-Za-z:.%_-]+\]|[0-9.]+):[0-9]{1,5}$"),
]
BackendUrl = Annotated[
    addresses.BackendUrl,
    _text("URL", addresses.parse_backend_url, pattern=r"^(imap|imaps|imap\+starttls)://[^@/?#]+/?$"),
]
ValkeyUrl = Annotated[
    addresses.ValkeyUrl,
    _text("URL", addresses.parse_valkey_url, pattern=r"^(redis|valkey)s?://[^@/?#]+(/[0-9]{0,4})?$"),
]
HttpHost = Annotated[str, _text("host", addresses.parse_http_host, minLength=1)]
WebOrigin = Annotated[str, _text("origin", addresses.parse_origin, pattern=r"^https?://[^/@?#]+$")]
HostPort = Annotated[Endpoint, _text("host:port", addresses.parse_host_port)]
IpAddress = Annotated[Endpoint, _text("address", addresses.parse_name_server)]
DnsName = Annotated[str, _text("domain", addresses.parse_dns_name)]
SocketPath = Annotated[Path, Spelled("path", socket_path, str, {"type": "string", "minLength": 1})]
Network = Annotated[IPv4Network | IPv6Network, _text("network", addresses.parse_network)]
PeerNetwork = Annotated[IPv4Network | IPv6Network, _text("network", addresses.parse_peer_network)]
Domain = Annotated[str, _text("domain", addresses.parse_domain)]
ServerName = Annotated[str, _text("name", parse_server_name, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Delimiters = Annotated[str, _text("text", parse_delimiters, maxLength=4)]
Separator = Annotated[str, _text("text", parse_separator, minLength=1, maxLength=4)]
Text = Annotated[str, _text("text", parse_plain_text, minLength=1)]
LoginName = Annotated[str, _text("text", parse_login_name, minLength=1)]
ExistingFile = Annotated[Path, Spelled("path", existing_file, str, {"type": "string", "minLength": 1})]
SecretValue = Annotated[
    Secret,
    Spelled(
        "secret",
        read_secret,
        lambda secret: {secret.kind: secret.place},
        {
            "type": "object",
            "properties": {
                "file": {"type": "string", "minLength": 1, "description": "A file whose first line is the secret."},
                "env": {"type": "string", "minLength": 1, "description": "A variable of the environment."},
            },
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
        },
    ),
]
