"""Names in filters and in distinguished names: filled into templates, and escaped so that they stay values."""

from __future__ import annotations

import re

_PLACEHOLDER = re.compile(r"\{(name|local|domain)\}")
_RDN = re.compile(r"(?:\\.|[^\\,])+")  # RFC 4514 §2.1; a comma in a value is escaped
_SAFE = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_@"
_ESCAPED = tuple(chr(octet) if octet in _SAFE else f"\\{octet:02x}" for octet in range(256))


def escape(value: str) -> str:
    """A value as it may stand in a filter and in a distinguished name.

    Both let any octet be written as a backslash and two hexadecimal digits, so one escaping serves both: whatever is
    no letter, digit or one of . - _ @ is written so, and with it a space at an end and a "#" at the beginning.

    Source: RFC 4515 §3, RFC 4514 §2.4.
    """
    return "".join(map(_ESCAPED.__getitem__, value.encode("utf-8", "surrogateescape")))


class Template:
    """A filter or a distinguished name with `{name}`, `{local}` or `{domain}` in it."""

    def __init__(self, text: str) -> None:
        # literal, placeholder, literal, ...: what is filled in is never read as a placeholder again
        self._parts = _PLACEHOLDER.split(text)
        self._needs_domain = "domain" in self._parts[1::2]

    def fill(self, name: str) -> str | None:
        """Put in a canonical name, escaped. None: a domain is asked for and the name has none."""
        local, _, domain = name.partition("@")
        if self._needs_domain and not domain:
            return None
        values = {"name": escape(name), "local": escape(local), "domain": escape(domain)}
        return "".join(values[part] if number % 2 else part for number, part in enumerate(self._parts))


def common_ancestor(text: str) -> str:
    """The nearest entry above everybody's, by the template of their distinguished names; "": they have none."""
    rdns: list[str] = _RDN.findall(text)
    own = max((number for number, rdn in enumerate(rdns) if _PLACEHOLDER.search(rdn)), default=-1)
    return ",".join(rdns[own + 1 :]).strip()
