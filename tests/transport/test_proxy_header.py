"""The PROXY header, as tables of octets that are fed whole, octet by octet, and cut anywhere."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.model import Endpoint, TlsFacts, Visitor
from proxy.transport.crc32c import crc32c
from proxy.transport.proxy_header import (
    LOCAL_V1,
    LOCAL_V2,
    MAX_V1_BYTES,
    MAX_V2_BYTES,
    ProxyHeader,
    ProxyHeaderError,
    ProxyHeaderReader,
    encode_v1,
    encode_v2,
    host_name,
)

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
IPV4 = bytes([192, 0, 2, 7, 203, 0, 113, 1]) + b"\x9c\x41\x03\xe1"
IPV6 = IPv6Address("2001:db8::7").packed + IPv6Address("2001:db8::1").packed + b"\x9c\x41\x03\xe1"
MAPPED = IPv6Address("::ffff:192.0.2.7").packed + IPv6Address("2001:db8::1").packed + b"\x9c\x41\x03\xe1"
CLIENT4, LOCAL4 = Endpoint("192.0.2.7", 40001), Endpoint("203.0.113.1", 993)
CLIENT6, LOCAL6 = Endpoint("2001:db8::7", 40001), Endpoint("2001:db8::1", 993)
NOTHING = ProxyHeader()
TLS = TlsFacts("TLSv1.3", "TLS_AES_256_GCM_SHA384", "imap.test.example")


def v2(body: bytes, *, command: int = 0x21, family: int = 0x11, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return SIGNATURE + bytes([command, family]) + size.to_bytes(2, "big") + body


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2, "big") + value


def checked(body: bytes) -> bytes:
    """A header whose checksum stands in front of `body`, behind the addresses."""
    blank = v2(IPV4 + tlv(0x03, bytes(4)) + body)
    return blank.replace(tlv(0x03, bytes(4)), tlv(0x03, crc32c(blank).to_bytes(4, "big")))


def about_tls(*, client: int = 1, version: bytes = b"TLSv1.3", cipher: bytes = b"C") -> bytes:
    return tlv(0x20, bytes([client, 0, 0, 0, 1]) + tlv(0x21, version) + tlv(0x23, cipher) + tlv(0x25, b"RSA2048"))


def read(pieces: list[bytes]) -> tuple[ProxyHeader | None, bytes]:
    """The header, and what is left of the pieces."""
    reader = ProxyHeaderReader()
    for number, piece in enumerate(pieces, 1):
        taken = reader.receive_data(piece)
        if reader.header is not None:
            return reader.header, piece[taken:] + b"".join(pieces[number:])
        assert taken == len(piece)
    return None, b""


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(at), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


HEADERS = [
    ("v1, IPv4", b"PROXY TCP4 192.0.2.7 203.0.113.1 40001 993\r\n", ProxyHeader(CLIENT4, LOCAL4)),
    ("v1, IPv6", b"PROXY TCP6 2001:db8::7 2001:DB8:0::1 40001 993\r\n", ProxyHeader(CLIENT6, LOCAL6)),
    (
        "v1, IPv4 among IPv6",
        b"PROXY TCP6 ::ffff:c000:0207 ::ffff:203.0.113.1 40001 993\r\n",
        ProxyHeader(CLIENT4, LOCAL4),
    ),
    (
        "v1, the longest of IPv6",
        b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
        ProxyHeader(*2 * (Endpoint("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535),)),
    ),
    (
        "v1, least numbers",
        b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n",
        ProxyHeader(Endpoint("0.0.0.0", 0), Endpoint("0.0.0.0", 0)),
    ),
    ("v1, unknown", b"PROXY UNKNOWN\r\n", NOTHING),
    ("v1, unknown and more", b"PROXY UNKNOWN 192.0.2.7 \xff\0 1\r\n", NOTHING),
    ("v1, unknown and as much as may be", b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", NOTHING),
    ("v2, IPv4", v2(IPV4), ProxyHeader(CLIENT4, LOCAL4)),
    ("v2, IPv6", v2(IPV6, family=0x21), ProxyHeader(CLIENT6, LOCAL6)),
    ("v2, IPv4 among IPv6", v2(MAPPED, family=0x21), ProxyHeader(CLIENT4, LOCAL6)),
    ("v2, local", v2(b"", command=0x20, family=0), NOTHING),
    ("v2, local with addresses", v2(IPV4, command=0x20), NOTHING),
    ("v2, local with a family that there is not", v2(b"\xff" * 7, command=0x20, family=0xFF), NOTHING),
    ("v2, unspecified", v2(b"", family=0), NOTHING),
    ("v2, datagrams", v2(IPV4, family=0x12), NOTHING),
    ("v2, Unix", v2(b"/client".ljust(108, b"\0") + b"/local".ljust(108, b"\0"), family=0x31), NOTHING),
    ("v2, TLVs of no interest", v2(IPV4 + tlv(4, b"") + tlv(0xE0, b"x" * 300)), ProxyHeader(CLIENT4, LOCAL4)),
    ("v2, as long as may be", v2(IPV4 + tlv(4, b"x" * (MAX_V2_BYTES - 31))), ProxyHeader(CLIENT4, LOCAL4)),
    ("v2, checksum", checked(tlv(5, b"id")), ProxyHeader(CLIENT4, LOCAL4)),
    ("v2, TLS", v2(IPV4 + about_tls()), ProxyHeader(CLIENT4, LOCAL4, TlsFacts("TLSv1.3", "C"))),
    (
        "v2, TLS and a name",
        v2(IPV4 + tlv(2, "bücher.example".encode()) + about_tls()),
        ProxyHeader(CLIENT4, LOCAL4, TlsFacts("TLSv1.3", "C", "")),
    ),
    (
        "v2, TLS and nothing of it",
        v2(IPV4 + tlv(0x20, b"\1\0\0\0\0")),
        ProxyHeader(CLIENT4, LOCAL4, TlsFacts("", "")),
    ),
    (
        "v2, TLS in words that are none",
        v2(IPV4 + tlv(2, b"a\0b") + about_tls(version=b"\xff", cipher=b"a\r\nb")),
        ProxyHeader(CLIENT4, LOCAL4, TlsFacts("", "", "")),
    ),
    ("v2, a name without TLS", v2(IPV4 + tlv(2, b"imap.test.example")), ProxyHeader(CLIENT4, LOCAL4)),
    ("v2, no TLS", v2(IPV4 + about_tls(client=0)), ProxyHeader(CLIENT4, LOCAL4)),
    ("v2, TLS of nobody", v2(about_tls(), family=0), ProxyHeader(tls=TlsFacts("TLSv1.3", "C"))),
    # as HAProxy 2.6 sends them
    (
        "haproxy, checksum",
        b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x13\x7f\0\0\x01\x7f\0\0\x01\xc8`I\xd5\x03\0\x04\xf4\xa4\xd5~",
        ProxyHeader(Endpoint("127.0.0.1", 51296), Endpoint("127.0.0.1", 18901)),
    ),
    (
        "haproxy, all it can tell",
        b"\r\n\r\n\0\r\nQUIT\n!\x11\0n\x7f\0\0\x01\x7f\0\0\x01\xddtI\xd4\x03\0\x046\xc9\x86\x8d\x02\0\tlocalhost"
        b"\x05\0\n4a7c-56692 \0?\x01\0\0\0\0!\0\x07TLSv1.3%\0\x07RSA2048$\0\nRSA-SHA256"
        b"#\0\x16TLS_AES_256_GCM_SHA384",
        ProxyHeader(
            Endpoint("127.0.0.1", 56692),
            Endpoint("127.0.0.1", 18900),
            TlsFacts("TLSv1.3", "TLS_AES_256_GCM_SHA384", "localhost"),
        ),
    ),
]

WRONG = [
    # who does not know of headers
    ("IMAP", b"a NOOP\r\n"),
    ("TLS", b"\x16\x03\x01\x02\x00\x01"),
    ("HTTP", b"GET / HTTP/1.1\r\n\r\n"),
    ("empty lines", b"\r\n\r\n\r\n"),
    ("lower case", b"proxy TCP4 192.0.2.7 203.0.113.1 40001 993\r\n"),
    ("a word that begins so", b"PROXYING\r\n"),
    ("a space in front", b" PROXY UNKNOWN\r\n"),
    # version 1
    ("v1, lone LF", b"PROXY TCP4 192.0.2.7 203.0.113.1 40001 993\n"),
    ("v1, unknown, lone LF", b"PROXY UNKNOWN\n"),
    ("v1, CR inside", b"PROXY TCP4 192.0.2.7 203.0.113.1 40001 993\r \r\n"),
    ("v1, nothing", b"PROXY \r\n"),
    ("v1, no addresses", b"PROXY TCP4\r\n"),
    ("v1, lower case family", b"PROXY tcp4 192.0.2.7 203.0.113.1 40001 993\r\n"),
    ("v1, UDP", b"PROXY UDP4 192.0.2.7 203.0.113.1 40001 993\r\n"),
    ("v1, another word that begins so", b"PROXY UNKNOWNS\r\n"),
    ("v1, two spaces", b"PROXY TCP4  192.0.2.7 203.0.113.1 40001 993\r\n"),
    ("v1, a tab", b"PROXY TCP4\t192.0.2.7 203.0.113.1 40001 993\r\n"),
    ("v1, space at the end", b"PROXY TCP4 192.0.2.7 203.0.113.1 40001 993 \r\n"),
    ("v1, a port is missing", b"PROXY TCP4 192.0.2.7 203.0.113.1 40001\r\n"),
    ("v1, IPv6 as IPv4", b"PROXY TCP4 2001:db8::7 2001:db8::1 40001 993\r\n"),
    ("v1, IPv4 as IPv6", b"PROXY TCP6 192.0.2.7 203.0.113.1 40001 993\r\n"),
    ("v1, two families", b"PROXY TCP6 2001:db8::7 203.0.113.1 40001 993\r\n"),
    ("v1, zeros in front", b"PROXY TCP4 192.0.02.7 203.0.113.1 40001 993\r\n"),
    ("v1, three numbers", b"PROXY TCP4 192.0.7 203.0.113.1 40001 993\r\n"),
    ("v1, a large number", b"PROXY TCP4 192.0.2.256 203.0.113.1 40001 993\r\n"),
    ("v1, a zone", b"PROXY TCP6 fe80::1%eth0 fe80::2 40001 993\r\n"),
    ("v1, a name", b"PROXY TCP4 client.example 203.0.113.1 40001 993\r\n"),
    ("v1, NUL", b"PROXY TCP4 192.0.2.7\0 203.0.113.1 40001 993\r\n"),
    ("v1, a large port", b"PROXY TCP4 192.0.2.7 203.0.113.1 65536 993\r\n"),
    ("v1, a long port", b"PROXY TCP4 192.0.2.7 203.0.113.1 40001 100000\r\n"),
    ("v1, zero in front of a port", b"PROXY TCP4 192.0.2.7 203.0.113.1 040 993\r\n"),
    ("v1, a sign", b"PROXY TCP4 192.0.2.7 203.0.113.1 +993 993\r\n"),
    ("v1, an underscore", b"PROXY TCP4 192.0.2.7 203.0.113.1 9_93 993\r\n"),
    ("v1, a digit of another script", b"PROXY TCP4 192.0.2.7 203.0.113.1 \xb2 993\r\n"),
    ("v1, an empty port", b"PROXY TCP4 192.0.2.7 203.0.113.1  993\r\n"),
    ("v1, too long", b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n"),
    ("v1, without end", b"PROXY UNKNOWN " + b"f" * 2000),
    # version 2
    ("v2, another version", v2(IPV4, command=0x11)),
    ("v2, another command", v2(IPV4, command=0x22)),
    ("v2, another family", v2(IPV4, family=0x41)),
    ("v2, another protocol", v2(IPV4, family=0x13)),
    ("v2, another signature", SIGNATURE[:-1] + b"\r!\x11\0\x0c" + IPV4),
    ("v2, IPv4, short", v2(IPV4[:-1])),
    ("v2, IPv6, short", v2(IPV6[:-1], family=0x21)),
    ("v2, no addresses", v2(b"")),
    ("v2, too long", v2(IPV4, length=MAX_V2_BYTES - 15)),
    ("v2, half a TLV", v2(IPV4 + b"\4\0")),
    ("v2, a TLV longer than the rest", v2(IPV4 + b"\4\0\2x")),
    ("v2, wrong checksum", v2(IPV4 + tlv(3, b"\0\0\0\0"))),
    ("v2, a checksum of another length", v2(IPV4 + tlv(3, b"\0\0\0"))),
    ("v2, changed behind its checksum", checked(tlv(5, b"id"))[:-1] + b"x"),
    ("v2, wrong checksum for nobody", v2(tlv(3, b"\0\0\0\0"), family=0)),
    ("v2, TLS, short", v2(IPV4 + tlv(0x20, b"\1\0\0\0"))),
    ("v2, TLS, half a TLV", v2(IPV4 + tlv(0x20, b"\1\0\0\0\0!"))),
]


def ids(table: list[tuple[Any, ...]]) -> list[Any]:
    return [row[0] for row in table]


@pytest.mark.parametrize("behind", [b"", b"\x16\x03\x01", LOCAL_V2, b"\n" * 3000])
@pytest.mark.parametrize(("name", "data", "header"), HEADERS, ids=ids(HEADERS))
def test_header(name: str, data: bytes, header: ProxyHeader, behind: bytes) -> None:
    assert read([data + behind]) == (header, behind)
    assert read([bytes([octet]) for octet in data] + [behind]) == (header, behind)


@given(st.sampled_from(HEADERS), st.data())
def test_the_cuts_do_not_matter(row: tuple[str, bytes, ProxyHeader], data: st.DataObject) -> None:
    _, octets, header = row
    at = data.draw(st.lists(st.integers(0, len(octets) + 4), max_size=8))
    assert read(cut(octets + b"next", at)) == (header, b"next")


@pytest.mark.parametrize(("name", "data", "header"), HEADERS, ids=ids(HEADERS))
def test_a_part_is_no_header_yet(name: str, data: bytes, header: ProxyHeader) -> None:
    for end in range(len(data)):
        assert read([data[:end]]) == (None, b"")


@pytest.mark.parametrize(("name", "data"), WRONG, ids=ids(WRONG))
def test_what_is_no_header(name: str, data: bytes) -> None:
    for pieces in ([data], [bytes([octet]) for octet in data]):
        with pytest.raises(ProxyHeaderError):
            read(pieces)


@pytest.mark.parametrize("first", [b"a", b"\x16", b"PA", b"PROXYP", b"\r\n\r\n\r", b"\n"])
def test_what_cannot_become_a_header_is_known_at_once(first: bytes) -> None:
    with pytest.raises(ProxyHeaderError, match=r"^no PROXY header$"):
        ProxyHeaderReader().receive_data(first)


def test_a_length_that_is_too_much_is_known_at_once() -> None:
    with pytest.raises(ProxyHeaderError, match=r"^PROXY header too long$"):
        ProxyHeaderReader().receive_data(v2(b"", length=0xFFFF))


@pytest.mark.parametrize(("name", "data"), WRONG, ids=ids(WRONG))
def test_errors_do_not_repeat_what_was_received(name: str, data: bytes) -> None:
    with pytest.raises(ProxyHeaderError) as caught:
        read([data])
    assert not {word for word in ("192.0", "2001", "40001", "HTTP", "NOOP") if word in repr(caught.value)}


BEGINNINGS = st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN", SIGNATURE])


@st.composite
def nearly(draw: st.DrawFn) -> bytes:
    """Octets that may be a header: a good one with some changed, or something that begins like one."""
    if draw(st.booleans()):
        return draw(BEGINNINGS) + draw(st.binary(max_size=150))
    data = bytearray(draw(st.sampled_from(HEADERS))[1])
    for _ in range(draw(st.integers(1, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@given(nearly(), st.lists(st.integers(0, 150), max_size=5))
@example(v2(b"", length=0xFFFF), [])
def test_any_octets_end_in_a_header_or_an_error(data: bytes, at: list[int]) -> None:
    """And however they are cut, in the same one; nothing is taken beyond, nothing unbounded is held."""

    def outcome(pieces: list[bytes]) -> object:
        try:
            return read(pieces)
        except ProxyHeaderError:
            return ProxyHeaderError

    whole = outcome([data])
    assert outcome(cut(data, [edge for edge in at if edge < len(data)])) == whole
    if isinstance(whole, tuple):
        header, rest = whole
        assert data.endswith(rest)
        assert len(data) - len(rest) <= MAX_V2_BYTES
        if header is not None:
            assert (header.client is None) is (header.local is None)


# --- writing ---


def visitor(client: Endpoint = CLIENT4, local: Endpoint = LOCAL4, tls: TlsFacts | None = None) -> Visitor:
    return Visitor(client, local, "5f3a-1", tls)


LINES = [
    (visitor(), b"PROXY TCP4 192.0.2.7 203.0.113.1 40001 993\r\n"),
    (visitor(CLIENT6, LOCAL6, TLS), b"PROXY TCP6 2001:db8::7 2001:db8::1 40001 993\r\n"),
    (
        visitor(CLIENT6, LOCAL4),
        b"PROXY TCP6 2001:db8::7 0000:0000:0000:0000:0000:ffff:cb00:7101 40001 993\r\n",
    ),
    (
        visitor(CLIENT4, LOCAL6),
        b"PROXY TCP6 0000:0000:0000:0000:0000:ffff:c000:0207 2001:db8::1 40001 993\r\n",
    ),
    (visitor(Endpoint("::ffff:192.0.2.7", 40001)), b"PROXY TCP4 192.0.2.7 203.0.113.1 40001 993\r\n"),
    (visitor(Endpoint("fe80::7%eth0", 1), Endpoint("fe80::1", 2)), b"PROXY TCP6 fe80::7 fe80::1 1 2\r\n"),
]


@pytest.mark.parametrize(("told", "line"), LINES)
def test_lines(told: Visitor, line: bytes) -> None:
    assert encode_v1(told) == line


SESSION = tlv(5, b"5f3a-1")
SECURE = tlv(2, b"imap.test.example") + tlv(
    0x20, b"\1\0\0\0\1" + tlv(0x21, b"TLSv1.3") + tlv(0x23, b"TLS_AES_256_GCM_SHA384")
)
BLOCKS = [
    (visitor(), v2(IPV4 + SESSION)),
    (visitor(tls=TLS), v2(IPV4 + SECURE + SESSION)),
    (visitor(CLIENT6, LOCAL6), v2(IPV6 + SESSION, family=0x21)),
    (visitor(CLIENT4, LOCAL6), v2(MAPPED + SESSION, family=0x21)),
    (visitor(tls=TlsFacts("TLSv1.2", "C")), v2(IPV4 + tlv(0x20, b"\1\0\0\0\1!\0\x07TLSv1.2#\0\1C") + SESSION)),
]


@pytest.mark.parametrize(("told", "block"), BLOCKS)
def test_blocks(told: Visitor, block: bytes) -> None:
    assert encode_v2(told) == block


def test_a_header_fits_into_the_smallest_segment() -> None:
    """§2: 576 octets with the headers of IP and TCP."""
    host = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    tls = TlsFacts("TLSv1.3", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "x" * 300)
    long = Visitor(Endpoint(host, 65535), Endpoint(host, 65535), "s" * 200, tls)
    assert len(encode_v1(long)) <= MAX_V1_BYTES
    assert tlv(5, b"s" * 128) in encode_v2(long)
    assert len(encode_v2(long)) <= 536
    widest = Visitor(long.client, long.local, long.session_id, TlsFacts(tls.version, tls.cipher, "x" * 255))
    assert tlv(2, b"x" * 255) in encode_v2(widest)
    assert len(encode_v2(widest)) <= 536


@pytest.mark.parametrize("host", ["client.example", "", "1.2.3", "1.2.3.4\r\n", "::g"])
@pytest.mark.parametrize("encode", [encode_v1, encode_v2])
def test_only_addresses_can_be_told(encode: object, host: str) -> None:
    assert callable(encode)
    with pytest.raises(OSError, match="illegal IP address"):
        encode(visitor(Endpoint(host, 1)))


def test_a_connection_of_our_own() -> None:
    assert read([LOCAL_V1]) == read([LOCAL_V2]) == (NOTHING, b"")


NAMES = [
    (b"imap.test.example", True),
    (b"_imaps.Test-1.example", True),
    (b"x" * 255, True),
    (b"x" * 256, False),
    (b"", False),
    (b"a b", False),
    (b"a\r\nb", False),
    (b"a\n", False),
    (b"a\0", False),
    (b"a=b;c", False),
    ("bücher.example".encode(), False),
    (b"\xff", False),
]


@pytest.mark.parametrize(("asked", "good"), NAMES)
def test_only_host_names_are_passed_on(asked: bytes, good: bool) -> None:
    name = asked.decode("latin-1")
    assert host_name(asked) == (name if good else "")
    header, _ = read([v2(IPV4 + tlv(2, asked) + about_tls())])
    assert header is not None
    assert header.tls is not None
    assert header.tls.server_name == (name if good else "")
    assert (tlv(2, asked) in encode_v2(visitor(tls=TlsFacts("TLSv1.3", "C", name)))) is good


def endpoints() -> st.SearchStrategy[Endpoint]:
    return st.builds(Endpoint, st.ip_addresses().map(str), st.integers(0, 65535))


def words(most: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=most)


def tls_facts() -> st.SearchStrategy[TlsFacts]:
    names = st.from_regex(r"[A-Za-z0-9._-]{1,255}", fullmatch=True)
    return st.builds(TlsFacts, words(10), words(50), names)


def plain(endpoint: Endpoint) -> Endpoint:
    address = ip_address(endpoint.host)
    mapped = None if isinstance(address, IPv4Address) else address.ipv4_mapped
    return Endpoint(str(mapped or address), endpoint.port)


@given(st.builds(Visitor, endpoints(), endpoints(), words(128), st.none() | tls_facts()))
@example(visitor(Endpoint("::1.2.3.4", 1), Endpoint("::1", 2)))
@example(visitor(Endpoint("::ffff:1.2.3.4", 1), Endpoint("::", 2)))
def test_what_is_written_reads_the_same(told: Visitor) -> None:
    def same(endpoint: Endpoint | None, expected: Endpoint) -> bool:
        return endpoint is not None and plain(endpoint) == plain(expected)

    for encode in (encode_v1, encode_v2):
        header, rest = read([encode(told) + b"next"])
        assert header is not None
        assert same(header.client, told.client)
        assert same(header.local, told.local)
        assert header.tls == (told.tls if encode is encode_v2 else None)
        assert rest == b"next"
