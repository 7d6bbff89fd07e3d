"""One person, one name."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth.names import MAX_OCTETS, NameRules
from proxy.outcome import Outcome, Refused
from proxy.settings.models import Names

CANONICAL = [
    ("plain", "alice@example.org", "alice@example.org"),
    ("capitals", "Alice@Example.ORG", "alice@example.org"),
    ("no domain", "Alice", "alice@default.example"),
    ("symbols of addresses", "o'neil+tag_1.x-y#z@example.org", "o'neil+tag_1.x-y#z@example.org"),
    ("umlaut", "JÜRGEN@bücher.example", "jürgen@bücher.example"),
    ("decomposed", "ju\u0308rgen", "jürgen@default.example"),
    ("decomposed capital", "JU\u0308RGEN", "jürgen@default.example"),
    ("fullwidth letters and at", "\uff21\uff4c\uff49\uff43\uff45\uff20example.org", "alice@example.org"),
    ("halfwidth katakana", "\uff76\uff9e", "\u30ac@default.example"),
    ("kelvin sign", "\u212aelvin", "kelvin@default.example"),
    ("final sigma", "\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c2@default.example"),
    ("cjk", "李@例子.example", "李@例子.example"),
    ("outside the BMP", "\U00020000", "\U00020000@default.example"),
    ("as long as allowed", "a" * 240, "a" * 240 + "@default.example"),
]


@pytest.mark.parametrize(("name", "given_name", "canonical"), CANONICAL, ids=[row[0] for row in CANONICAL])
def test_canonical(name: str, given_name: str, canonical: str) -> None:
    assert NameRules(Names(default_domain="default.example")).canonical(given_name) == canonical


REFUSED = [
    ("empty", "", "empty"),
    ("space", "alice smith", "U+0020"),
    ("leading space", " alice", "U+0020"),
    ("only space", " ", "U+0020"),
    ("tab", "alice\tx", "U+0009"),
    ("CRLF", "alice\r\nx", "U+000D"),
    ("NUL", "alice\0", "U+0000"),
    ("DEL", "alice\x7f", "U+007F"),
    ("C1 control", "alice\x9b", "U+009B"),
    ("no-break space", "alice\xa0", "U+00A0"),
    ("ideographic space", "alice\u3000", "U+3000"),
    ("line separator", "alice\u2028", "U+2028"),
    ("paragraph separator", "alice\u2029", "U+2029"),
    ("zero width space", "ali\u200bce", "U+200B"),
    ("right-to-left override", "alice\u202e", "U+202E"),
    ("soft hyphen", "ali\xadce", "U+00AD"),
    ("byte order mark", "\ufeffalice", "U+FEFF"),
    ("private use", "alice\ue000", "U+E000"),
    ("unassigned", "alice\u0378", "U+0378"),
    ("noncharacter", "alice\uffff", "U+FFFF"),
    ("variation selector", "alice\ufe0f", "U+FE0F"),
    ("hangul filler", "alice\u3164", "U+3164"),
    ("grapheme joiner", "alice\u034f", "U+034F"),
    ("octet that is no UTF-8", b"alice\xff".decode("utf-8", "surrogateescape"), "U+DCFF"),
    ("truncated UTF-8", b"alic\xc3".decode("utf-8", "surrogateescape"), "U+DCC3"),
    ("overlong NUL", b"\xc0\x80".decode("utf-8", "surrogateescape"), "U+DCC0"),
    ("mathematical letter", "\U0001d41alice", "stand for others"),
    ("mathematical capital", "\U0001d400lice", "stand for others"),
    ("circled letter", "\u24d0lice", "stand for others"),
    ("ordinal indicator", "\u00aalice", "stand for others"),
    ("ligature", "\ufb01x", "stand for others"),
    ("superscript", "alice\u00b2", "stand for others"),
    ("long s", "ali\u017fe", "stand for others"),
    ("roman numeral", "\u2168", "stand for others"),
    ("ligature in the domain", "alice@o\ufb03ce.example", "stand for others"),
    ("small at", "alice\ufe6bexample.org", "stand for others"),
    ("small separator", "alice\ufe61porter", "stand for others"),
    ("fullwidth of what stands for others", "alice\uffe3", "stand for others"),
    ("master separator", "alice*porter", "master separator"),
    ("separator first", "*alice", "master separator"),
    ("separator alone", "*", "master separator"),
    ("separator in the domain", "alice@exa*mple.org", "master separator"),
    ("fullwidth separator", "alice\uff0aporter", "master separator"),
    ("two ats", "alice@example.org@example.com", '"@"'),
    ("nothing before the at", "@example.org", '"@"'),
    ("nothing behind the at", "alice@", '"@"'),
    ("an at alone", "@", '"@"'),
    ("257 octets", "a" * (MAX_OCTETS + 1 - 4) + "@x.y", "longer"),
    ("too long with the default domain", "a" * 241, "longer"),
    ("257 octets of UTF-8", "ü" * 126 + "a@x.y", "longer"),
    ("very long", "ü" * 1_000_000, "longer"),
]


@pytest.mark.parametrize(("name", "given_name", "detail"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refused(name: str, given_name: str, detail: str) -> None:
    with pytest.raises(Refused) as refusal:
        NameRules(Names(default_domain="default.example")).canonical(given_name)
    assert refusal.value.outcome is Outcome.AUTHENTICATION_FAILED
    assert detail in refusal.value.detail
    assert refusal.value.detail.isprintable()


ASSERTED = [
    ("plain", "Alice", "alice@default.example"),
    ("umlaut", "JÜRGEN@bücher.example", "jürgen@bücher.example"),
    ("decomposed", "ju\u0308rgen", "jürgen@default.example"),
    ("cjk", "李@例子.example", "李@例子.example"),
]


@pytest.mark.parametrize(("name", "given_name", "canonical"), ASSERTED, ids=[row[0] for row in ASSERTED])
def test_asserted(name: str, given_name: str, canonical: str) -> None:
    assert NameRules(Names(default_domain="default.example")).asserted(given_name) == canonical


# Who types in another width means the ordinary letters. Who vouches for a name has no reason to.
NOT_ASSERTED = [
    ("fullwidth letter", "\uff21lice"),
    ("fullwidth at", "alice\uff20example.org"),
    ("halfwidth katakana", "\uff76\uff9e"),
]


@pytest.mark.parametrize(("name", "given_name"), NOT_ASSERTED, ids=[row[0] for row in NOT_ASSERTED])
def test_another_width_is_typed_and_never_asserted(name: str, given_name: str) -> None:
    rules = NameRules(Names(default_domain="default.example"))
    assert rules.canonical(given_name)
    with pytest.raises(Refused, match="stand for others") as refusal:
        rules.asserted(given_name)
    assert refusal.value.outcome is Outcome.AUTHENTICATION_FAILED


@pytest.mark.parametrize(("name", "given_name", "detail"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_is_no_name_is_not_asserted_either(name: str, given_name: str, detail: str) -> None:
    with pytest.raises(Refused) as refusal:
        NameRules(Names(default_domain="default.example")).asserted(given_name)
    assert refusal.value.outcome is Outcome.AUTHENTICATION_FAILED


def test_the_longest_name() -> None:
    rules = NameRules(Names())
    assert rules.canonical("a" * MAX_OCTETS) == "a" * MAX_OCTETS
    assert rules.canonical("ü" * (MAX_OCTETS // 2)) == "ü" * (MAX_OCTETS // 2)
    with pytest.raises(Refused, match="longer"):
        rules.canonical("a" * (MAX_OCTETS + 1))


def test_case_may_count() -> None:
    rules = NameRules(Names(lowercase=False, default_domain="example.org"))
    assert rules.canonical("Alice") == "Alice@example.org"
    assert rules.canonical("\uff2aU\u0308rgen") == "JÜrgen@example.org"


def test_without_a_default_domain() -> None:
    assert NameRules(Names()).canonical("Alice") == "alice"


def test_another_separator() -> None:
    rules = NameRules(Names(master_separator="%%"))
    assert rules.canonical("alice*50%") == "alice*50%"
    with pytest.raises(Refused, match="master separator"):
        rules.canonical("alice%%porter")


RULES = [
    NameRules(Names(lowercase=lowercase, default_domain=domain))
    for lowercase in (True, False)
    for domain in (None, "example.org")
]
# Anything at all, and texts of what maps in interesting ways: marks, other widths, cased letters, signs.
TEXTS = st.one_of(
    st.text(max_size=300),
    st.text(st.characters(categories=["Lu", "Ll", "Lt", "Mn", "Lm", "Lo", "So"]), max_size=20),
    st.text(st.characters(min_codepoint=0xFF00, max_codepoint=0xFFEF), max_size=20),
    st.binary(max_size=40).map(lambda octets: octets.decode("utf-8", "surrogateescape")),
)


@pytest.mark.parametrize("rules", RULES)
@given(name=TEXTS)
def test_a_canonical_name_stays_as_it_is(rules: NameRules, name: str) -> None:
    try:
        canonical = rules.canonical(name)
    except Refused:
        return
    assert rules.canonical(canonical) == canonical
    assert 0 < len(canonical.encode("utf-8")) <= MAX_OCTETS
    assert unicodedata.is_normalized("NFKC", canonical)  # and so NFC
    assert rules.asserted(canonical) == canonical
    assert "*" not in canonical
    assert canonical.count("@") <= 1
    assert not any(character.isspace() for character in canonical)


def test_every_character_that_maps() -> None:
    rules = NameRules(Names())
    accepted = 0
    # Without the blocks of ideographs, syllables and private use, where nothing maps.
    for block in (range(0x3400), range(0xA000, 0xAC00), range(0xF900, 0x1F000), range(0x2F800, 0x2FA20)):
        for point in block:
            try:
                canonical = rules.canonical(chr(point))
            except Refused:
                continue
            accepted += 1
            assert rules.canonical(canonical) == canonical
    assert accepted > 30_000
