"""The syntax of commands, word by word."""

from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.imap.grammar import (
    MAX_QUOTED_BYTES,
    Arguments,
    BadSyntax,
    LiteralHeader,
    decode_base64,
    is_quotable,
    is_tag,
    quote,
    read_id,
    split_literal,
)


def ids(rows):
    return [str(row[0]) for row in rows]


TAGS = [
    (b"a", True),
    (b"A001", True),
    (b"a.b-c]:$&", True),
    (b"", False),
    (b"+", False),
    (b"a+b", False),
    (b"*", False),
    (b"a b", False),
    (b"a{1}", False),
    (b'a"', False),
    (b"a\\", False),
    (b"a%", False),
    (b"(a)", False),
    (b"a\x7f", False),
    (b"a\x00", False),
    (b"\xc3\xa4", False),
]


@pytest.mark.parametrize(("word", "valid"), TAGS, ids=ids(TAGS))
def test_is_tag(word, valid):
    assert is_tag(word) is valid


LITERALS = [
    (b"a LOGIN {3}", b"a LOGIN ", LiteralHeader(3, True, False)),
    (b"a LOGIN {3+}", b"a LOGIN ", LiteralHeader(3, False, False)),
    (b"a LOGIN ~{3}", b"a LOGIN ", LiteralHeader(3, True, True)),
    (b"a LOGIN ~{3+}", b"a LOGIN ", LiteralHeader(3, False, True)),
    (b"{0}", b"", LiteralHeader(0, True, False)),
    (b"~{0}", b"", LiteralHeader(0, True, True)),
    (b" {007}", b" ", LiteralHeader(7, True, False)),
    (b"{{3}", b"{", LiteralHeader(3, True, False)),
    (b" {4294967296}", b" ", LiteralHeader(1 << 32, True, False)),
    (b" {" + b"9" * 8000 + b"+}", b" ", LiteralHeader(1 << 63, False, False)),
]
NO_LITERALS = [b"", b"}", b"a}", b"{", b"{}", b"{+}", b"{-3}", b"{+3}", b"{ 3}", b"{3 }", b"{1_0}", b"{3++}", b"{3-}"]
NO_LITERALS += [b"{0x3}", b"{3.0}", b"{a}", b"{3} ", b"{3}x", "{\u0663}".encode(), b"{\xb2}", b"3}"]


@pytest.mark.parametrize(("line", "text", "literal"), LITERALS, ids=[str(row[0][:20]) for row in LITERALS])
def test_split_literal(line, text, literal):
    assert split_literal(line) == (text, literal)


@pytest.mark.parametrize("line", NO_LITERALS, ids=str)
def test_what_announces_no_literal_is_text(line):
    assert split_literal(line) == (line, None)


BASE64 = [(b"", b""), (b"QQ==", b"A"), (b"QUI=", b"AB"), (b"QUJD", b"ABC"), (b"+/+/", b"\xfb\xff\xbf")]
BAD_BASE64 = [b"=", b"Q", b"QQ", b"QQ=", b"QQ===", b"====", b"=QQ=", b"QQ==QQ==", b"YWJj==", b"YWJj====", b"QUI"]
BAD_BASE64 += [b"Q Q=", b" QQ==", b"QQ== ", b"QQ==\r", b"Q\nQ==", b"-_-_", b"QR==", b"QUJ=", b"\xffQQ==", b"*"]


@pytest.mark.parametrize(("encoded", "decoded"), BASE64, ids=ids(BASE64))
def test_decode_base64(encoded, decoded):
    assert decode_base64(encoded) == decoded


@pytest.mark.parametrize("encoded", BAD_BASE64, ids=str)
def test_bad_base64(encoded):
    with pytest.raises(BadSyntax, match=r"^Invalid base64\.$"):
        decode_base64(encoded)


def only_astring(parts):
    arguments = Arguments(parts)
    value = arguments.astring()
    arguments.end()
    assert arguments.ended
    return value


ASTRINGS = [
    ([b"ann"], b"ann"),
    ([b"a]b+c.d@e"], b"a]b+c.d@e"),
    ([b'"ann"'], b"ann"),
    ([b'""'], b""),
    ([b'"a b"'], b"a b"),
    ([b'"(){%*]"'], b"(){%*]"),
    ([rb'"a\"b\\c"'], rb'a"b\c'),
    ([rb'"\\"'], b"\\"),
    ([rb'"\"\"\\\\"'], rb'""\\'),
    ([b'"\x01\x7f\xc3\xa4"'], b"\x01\x7f\xc3\xa4"),
    ([b"", b"", b""], b""),
    ([b"", b'a"\\\r\n \xff', b""], b'a"\\\r\n \xff'),
]
BAD_ASTRINGS = [
    [b""],
    [b" ann"],
    [b"an(n"],
    [b"a*"],
    [b"a%"],
    [b"a\\"],
    [b'a"b"'],
    [b"{3}x"],
    [b"\xc3\xa4"],
    [b"a\x01"],
    [b"a\x7f"],
    [b'"'],
    [b'"ann'],
    [rb'"ann\"'],
    [rb'"a\nb"'],
    [rb'"a\ b"'],
    [b'"ann"x'],
    [b'"a""b"'],
    [b"a", b"bc", b""],
    [b'"a"', b"bc", b""],
    [b"", b"bc", b"x"],
]


@pytest.mark.parametrize(("parts", "value"), ASTRINGS, ids=ids(ASTRINGS))
def test_astring(parts, value):
    assert only_astring(parts) == value


@pytest.mark.parametrize("parts", BAD_ASTRINGS, ids=str)
def test_bad_astring(parts):
    with pytest.raises(BadSyntax):
        only_astring(parts)


def test_arguments_of_every_kind_follow_each_other():
    arguments = Arguments([b' PLAIN word= "q" ', b"lit", b" NIL nil ", b"", b""])
    arguments.expect(b" ")
    assert arguments.atom() == b"PLAIN"
    arguments.expect(b" ")
    assert arguments.word() == b"word="
    arguments.expect(b" ")
    assert arguments.nstring() == b"q"
    arguments.expect(b" ")
    assert arguments.string() == b"lit"
    arguments.expect(b" ")
    assert arguments.nstring() is None
    arguments.expect(b" ")
    assert arguments.nstring() is None
    assert not arguments.accept(b"(")
    arguments.expect(b" ")
    assert arguments.nstring() == b""
    arguments.end()


@pytest.mark.parametrize("text", [b"a]b", b"a=b(", b'"a"', b"", b" a"], ids=str)
def test_bad_atom(text):
    with pytest.raises(BadSyntax):
        Arguments([text]).atom()


def pairs(count, field=b'"f"', value=b'"v"'):
    return b"(" + b" ".join([field + b" " + value] * count) + b")"


IDS = [
    ("NIL", [b"NIL"]),
    ("nil", [b"nil"]),
    ("no pair", [b"()"]),
    ("a pair", [b'("name" "mutt")']),
    ("a value that is NIL", [b'("name" NIL "os" nil)']),
    ("literals", [b"(", b"name", b" ", b"mutt", b")"]),
    ("30 pairs", [pairs(30)]),
    ("longest field and value", [pairs(1, b'"%b"' % (b"f" * 30), b'"%b"' % (b"v" * 1024))]),
]
BAD_IDS = [
    ("nothing", [b""]),
    ("a word", [b"mutt"]),
    ("a string", [b'"mutt"']),
    ("a literal", [b"", b"mutt", b""]),
    ("not closed", [b'("name" "mutt"']),
    ("no value", [b'("name")']),
    ("no space", [b'("name""mutt")']),
    ("two spaces", [b'("name"  "mutt")']),
    ("a space before the end", [b'("name" "mutt" )']),
    ("a space at the start", [b'( "name" "mutt")']),
    ("atoms", [b"(name mutt)"]),
    ("a field that is NIL", [b'(NIL "mutt")']),
    ("NIL and more", [b'("name" NILx)']),
    ("nested", [b'(("name" "mutt"))']),
    ("deeply nested", [b"(" * 8000]),
    ("31 pairs", [pairs(31)]),
    ("field too long", [pairs(1, b'"%b"' % (b"f" * 31))]),
    ("value too long", [pairs(1, b'"f"', b'"%b"' % (b"v" * 1025))]),
    ("literal too long", [b'("f" ', b"v" * 1025, b")"]),
]


@pytest.mark.parametrize(("name", "parts"), IDS, ids=ids(IDS))
def test_id(name, parts):
    arguments = Arguments(parts)
    read_id(arguments)
    arguments.end()


@pytest.mark.parametrize(("name", "parts"), BAD_IDS, ids=ids(BAD_IDS))
def test_bad_id(name, parts):
    with pytest.raises(BadSyntax):
        read_id(Arguments(parts))


QUOTABLE = [
    (b"", True),
    (b"ann", True),
    (b'p" \\w', True),
    (b"x" * MAX_QUOTED_BYTES, True),
    (b"x" * (MAX_QUOTED_BYTES + 1), False),
    (b"a\r", False),
    (b"a\n", False),
    (b"a\0", False),
    (b"a\x7f", False),
    ("ä".encode(), False),
]


@pytest.mark.parametrize(("value", "quotable"), QUOTABLE, ids=[str(row[0][:10]) for row in QUOTABLE])
def test_is_quotable(value, quotable):
    assert is_quotable(value) is quotable


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)).map(str.encode))
def test_what_is_quoted_reads_the_same(value):
    assert is_quotable(value)
    arguments = Arguments([quote(value)])
    assert arguments.string() == value
    arguments.end()


@given(st.binary(max_size=60))
def test_base64_is_what_an_encoder_writes(encoded):
    try:
        assert b64encode(decode_base64(encoded)) == encoded
    except BadSyntax:
        pass
    assert decode_base64(b64encode(encoded)) == encoded


def test_errors_do_not_repeat_what_was_received():
    for parts in BAD_ASTRINGS:
        with pytest.raises(BadSyntax) as caught:
            only_astring([part.replace(b"a", b"s3cret") for part in parts])
        assert "s3cret" not in repr(caught.value)
