"""Canonical names: the one spelling under which a person is known to hash, limits, cache, logs and backend.

The mapping is that of the profile UsernameCaseMapped (RFC 8265 §3.3), or UsernameCasePreserved (§3.4) where case
counts:

1. fullwidth and halfwidth characters become their ordinary forms;
2. with `lowercase`, letters become small (Unicode toLowerCase, not only ASCII);
3. Unicode normalisation form C;
4. a name without "@" gets "@" and the default domain, where one is set.

It maps every canonical name to itself. What a name may hold is a little wider than the profile's: symbols and
punctuation pass, as addresses have them, and the Bidi Rule, a matter of display, is not applied. Nothing that is
invisible or changes how its neighbours look is let in, and nothing that is another character in disguise (HasCompat,
RFC 8264 §9.17): directories fold such spellings, and one person would have many names here.

A name that is asserted, by a token above all, is not mapped from another: `asserted()` is stricter with it than
`canonical()` with what people type.
"""

from __future__ import annotations

import unicodedata

from proxy.outcome import Outcome, Refused
from proxy.settings.models import Names

MAX_OCTETS = 256

# Control, format, surrogate, private use, unassigned; space, line and paragraph separator (Unicode 4.5).
_REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"})

# Default_Ignorable_Code_Point that no category above names: they would make two names that look like one
# (PrecisIgnorableProperties, RFC 8264 §9.13).
_INVISIBLE = frozenset(
    [
        0x034F,
        *(0x115F, 0x1160),
        *(0x17B4, 0x17B5),
        *(0x180B, 0x180C, 0x180D, 0x180F),
        *(0x3164, 0xFFA0),
        *range(0xFE00, 0xFE10),
        *range(0xE0100, 0xE01F0),
    ]
)


class NameRules:
    """How names are spelled here: `names` of the settings."""

    __slots__ = ("_default_domain", "_lowercase", "_separator")

    def __init__(self, names: Names) -> None:
        self._lowercase = names.lowercase
        self._separator = names.master_separator
        self._default_domain = "" if names.default_domain is None else f"@{names.default_domain}"

    def canonical(self, name: str) -> str:
        """The canonical form of a name that somebody gave.

        Args:
            name: UTF-8 decoded with `surrogateescape`.
        Raises:
            Refused: AUTHENTICATION_FAILED, as for any name that is not known; the detail says what is wrong.
        """
        # Nearly every name is printable ASCII, where steps 1 and 3 change nothing and a character is an octet.
        if name.isascii() and name.isprintable() and " " not in name:
            canonical = name.lower() if self._lowercase else name
        else:
            canonical = self._mapped(name)
        if not canonical:
            raise _refused("the name is empty")
        local, at, domain = canonical.partition("@")
        if not at:
            canonical += self._default_domain
        elif not local or not domain or "@" in domain:
            raise _refused('the name has more than one "@", or nothing on one side of it')
        # Dovecot and Cyrus read "name*master": whoever may choose a name with the separator chooses the master.
        if self._separator in canonical:
            raise _refused("the name contains the master separator")
        if len(canonical) > MAX_OCTETS or (not canonical.isascii() and len(canonical.encode()) > MAX_OCTETS):
            raise _refused(f"the name is longer than {MAX_OCTETS} octets")
        return canonical

    def asserted(self, name: str) -> str:
        """The canonical form of a name that somebody vouches for: as canonical(), but it has to be spelled plainly.

        Raises:
            Refused: AUTHENTICATION_FAILED, as canonical() does; or it holds characters that stand for others.
        """
        if not name.isascii() and unicodedata.normalize("NFKC", name) != unicodedata.normalize("NFC", name):
            raise _refused("the name holds characters that stand for others")
        return self.canonical(name)

    def _mapped(self, name: str) -> str:
        if len(name) > MAX_OCTETS:  # before any work is spent on it; a character is one octet or more
            raise _refused(f"the name is longer than {MAX_OCTETS} octets")
        for character in name:
            if unicodedata.category(character) in _REFUSED_CATEGORIES or ord(character) in _INVISIBLE:
                raise _refused(f"the name contains U+{ord(character):04X}, which is no character of a name")
        mapped = "".join(map(_ordinary_width, name))
        mapped = unicodedata.normalize("NFC", mapped.lower() if self._lowercase else mapped)
        if unicodedata.normalize("NFKC", mapped) != mapped:
            raise _refused("the name holds characters that stand for others")
        return mapped


def _ordinary_width(character: str) -> str:
    """The width mapping. Source: RFC 8265 §3.3.2 step 1, Unicode decomposition types <wide> and <narrow>."""
    kind, _, points = unicodedata.decomposition(character).partition(" ")
    return chr(int(points, 16)) if kind in ("<wide>", "<narrow>") else character


def _refused(detail: str) -> Refused:
    return Refused(Outcome.AUTHENTICATION_FAILED, detail)
