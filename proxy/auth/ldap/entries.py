"""What an entry says about a person: the attributes that the settings map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from proxy.auth.names import NameRules
from proxy.auth.scram_keys import parse_scram_keys
from proxy.model import NO_ATTRIBUTES, Identity, ScramKeys
from proxy.outcome import Refused

_MAX_VALUE_OCTETS = 1024
_OWN_KEYS = ("name", "backend", "scram")


class Misfit(Exception):
    """An entry does not say what the settings count on: its administrator has to look. For the log, without values."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the directory, values as the octets that came. Attribute names are in small letters."""

    dn: str
    values: Mapping[str, tuple[bytes, ...]] = field(repr=False)


class EntryReader:
    """Reads identities out of entries: `attributes` of the settings."""

    def __init__(self, attributes: Mapping[str, str], rules: NameRules, source: str) -> None:
        self.wanted = tuple(dict.fromkeys(attributes.values()))
        self._attributes = dict(attributes)
        self._others = tuple(key for key in self._attributes if key not in _OWN_KEYS)
        self._rules = rules
        self._source = source

    def identity(self, name: str, entry: Entry) -> Identity:
        """Whom an entry belongs to.

        Args:
            name: The canonical name by which it was found; it stays, where the settings map no name.
            entry: It.
        Raises:
            Misfit: No name in it, or more than one, or one that is no name here; or more than one backend.
        """
        if "name" in self._attributes:
            given = self._single("name", entry)
            if given is None:
                raise Misfit(f"the entry has no {self._attributes['name']} (attributes.name)")
            try:
                name = self._rules.canonical(given)
            except Refused as refusal:
                raise Misfit(f"{self._attributes['name']}: {refusal.detail}") from None
        backend = self._single("backend", entry) if "backend" in self._attributes else None
        others = {key: text for key in self._others if (text := self._joined(key, entry))}
        return Identity(name, self._source, backend, MappingProxyType(others) if others else NO_ATTRIBUTES)

    def scram(self, entry: Entry) -> ScramKeys | None:
        """The first SCRAM keys among the values of an attribute that may hold other hashes too."""
        for value in self._values("scram", entry):
            try:
                return parse_scram_keys(value.decode("utf-8"))
            except ValueError:  # UnicodeDecodeError is one
                continue
        return None

    def _values(self, key: str, entry: Entry) -> tuple[bytes, ...]:
        return entry.values.get(self._attributes[key].lower(), ()) if key in self._attributes else ()

    def _single(self, key: str, entry: Entry) -> str | None:
        values = self._values(key, entry)
        if not values:
            return None
        attribute = self._attributes[key]
        if len(values) > 1:
            raise Misfit(f"the entry has {len(values)} values of {attribute}, and one counts")
        text = _text(values[0])
        if not text:
            raise Misfit(f"the entry's {attribute} is not text that can be used")
        return text

    def _joined(self, key: str, entry: Entry) -> str:
        """All values that are text, in an order that does not change: a directory keeps none."""
        return ",".join(sorted(text for value in self._values(key, entry) if (text := _text(value))))


def _text(value: bytes) -> str:
    """A value as text; "" for what is empty, binary, or longer than anything that is looked up by it."""
    if len(value) > _MAX_VALUE_OCTETS:
        return ""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() else ""
