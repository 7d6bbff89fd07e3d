"""The PROXY header: who a client is, told ahead of everything else by whoever passes its connection on.

Octets and values alone; proxy_reading.py takes a header off a socket. Version 1 is one line of text, version 2 a block
whose length is known after 16 octets, with TLVs (type, length, value) behind the addresses.

A header without addresses (LOCAL, UNKNOWN, UNSPEC: a balancer's own check, or what it cannot tell) is a good one: the
connection counts as its peer's own. Whatever does not exactly match the protocol ends the connection.

Source: The PROXY protocol, versions 1 & 2 (HAProxy's proxy-protocol.txt), §2.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from proxy.model import Endpoint, TlsFacts, Visitor
from proxy.transport.crc32c import crc32c

MAX_V1_BYTES = 107  # §2.1: the longest line, its CRLF included
MAX_V2_BYTES = 2048  # the protocol allows 65551 octets, and asks senders to stay below 537 (§2)

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED_BYTES = 16  # signature, version and command, family and protocol, length
_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21
_ADDRESS_BYTES = {0: 0, 1: 12, 2: 36, 3: 216}  # §2.2: by family; unspecified, IPv4, IPv6, Unix
_LAST_PROTOCOL = 2  # unspecified, stream, datagram
_AUTHORITY, _CRC32C, _UNIQUE_ID, _SSL, _SSL_VERSION, _SSL_CIPHER = 0x02, 0x03, 0x05, 0x20, 0x21, 0x23
_CLIENT_SSL = 0x01
_NOT_VERIFIED = b"\0\0\0\1"  # §2.2.6: zero would say that there was a certificate, and a good one
_HOST_NAME = re.compile(rb"[A-Za-z0-9._-]{1,255}")  # RFC 1035 §2.3.4; `_` since container platforms hand it out
_MAX_UNIQUE_ID_BYTES = 128

_MAPPED = bytes(10) + b"\xff\xff"  # IPv4 addresses among IPv6 ones (RFC 4291 §2.5.5.2)

# For connections of our own, not on behalf of a client. Some receivers refuse UNKNOWN; to those the addresses of the
# connection itself are told (§2.1).
LOCAL_V1 = b"PROXY UNKNOWN\r\n"
LOCAL_V2 = _SIGNATURE + bytes((_LOCAL, 0, 0, 0))


class ProxyHeaderError(Exception):
    """There is no PROXY header, or none that can be believed. The text is for the log and holds nothing received."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a header tells. `client` and `local` are there together or not at all; None: as the connection itself."""

    client: Endpoint | None = None
    local: Endpoint | None = None  # where the client connected to
    tls: TlsFacts | None = None  # None: the client came in clear, or nothing was said


# --- writing ---


def encode_v1(visitor: Visitor) -> bytes:
    """The header as a line of text.

    Raises:
        OSError: A host of the visitor is no IP address.
    Source: §2.1.
    """
    client, local = _addresses(visitor)
    name = "TCP4" if len(client) == 4 else "TCP6"
    line = f"PROXY {name} {_text_of(client)} {_text_of(local)} {visitor.client.port} {visitor.local.port}\r\n"
    return line.encode("ascii")


def encode_v2(visitor: Visitor) -> bytes:
    """The binary header, with what is known of the client's TLS and the session's id.

    Raises:
        OSError: A host of the visitor is no IP address.
    Source: §2.2.
    """
    client, local = _addresses(visitor)
    body = client + local + struct.pack("!HH", visitor.client.port, visitor.local.port)
    if visitor.tls is not None:
        server_name = host_name(visitor.tls.server_name.encode("utf-8", "replace")).encode()
        if server_name:
            body += _tlv(_AUTHORITY, server_name)
        facts = _tlv(_SSL_VERSION, visitor.tls.version.encode()) + _tlv(_SSL_CIPHER, visitor.tls.cipher.encode())
        body += _tlv(_SSL, bytes((_CLIENT_SSL,)) + _NOT_VERIFIED + facts)
    body += _tlv(_UNIQUE_ID, visitor.session_id.encode()[:_MAX_UNIQUE_ID_BYTES])
    family = _TCP4 if len(client) == 4 else _TCP6
    return _SIGNATURE + struct.pack("!BBH", _PROXY, family, len(body)) + body


def _addresses(visitor: Visitor) -> tuple[bytes, bytes]:
    """Client and local address of one family: where they differ IPv4 is written as IPv6."""
    client, local = _pack(visitor.client.host), _pack(visitor.local.host)
    if len(client) != len(local):
        client, local = (address if len(address) == 16 else _MAPPED + address for address in (client, local))
    return client, local


def _pack(host: str) -> bytes:
    host = host.partition("%")[0]  # a zone means nothing elsewhere (RFC 4007 §6)
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)
    packed = socket.inet_pton(socket.AF_INET6, host)
    return packed[12:] if packed.startswith(_MAPPED) else packed


def _text_of(packed: bytes) -> str:
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed)
    text = socket.inet_ntop(socket.AF_INET6, packed)
    return packed.hex(":", 2) if "." in text else text  # §2.1: groups of hexadecimal digits alone


def _tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


# --- reading ---


class ProxyHeaderReader:
    """Octets in, however they are cut; the header comes out once its last one is there."""

    __slots__ = ("_held", "header")

    def __init__(self) -> None:
        self._held = b""
        self.header: ProxyHeader | None = None  # None: not complete

    def receive_data(self, data: bytes) -> int:
        """Take octets; gives how many of them are the header's. Those behind it belong to the connection.

        Raises:
            ProxyHeaderError: This is no header, and none that more octets could complete.
        """
        assert self.header is None, "the header is complete"
        held = self._held + data[:MAX_V2_BYTES]
        size = _size(held)
        if size is None or len(held) < size:
            self._held = held
            return len(data)
        taken = size - len(self._held)
        self.header = _decode_v2(held[:size]) if held[0] == _SIGNATURE[0] else _decode_v1(held[:size])
        return taken


def _size(held: bytes) -> int | None:
    """How long the header is that begins with these octets; None: that cannot be told yet."""
    if _SIGNATURE.startswith(held[: len(_SIGNATURE)]):
        if len(held) < _FIXED_BYTES:
            return None
        size = _FIXED_BYTES + int.from_bytes(held[14:16], "big")
        if size > MAX_V2_BYTES:
            raise ProxyHeaderError("PROXY header too long")
        return size
    if not b"PROXY ".startswith(held[:6]):
        raise ProxyHeaderError("no PROXY header")
    end = held.find(b"\n", 0, MAX_V1_BYTES)
    if end >= 0 and held[end - 1 : end] != b"\r":
        raise ProxyHeaderError("PROXY header ends in LF without CR")
    if end < 0 and len(held) >= MAX_V1_BYTES:
        raise ProxyHeaderError("PROXY header too long")
    return end + 1 if end >= 0 else None


def _decode_v1(line: bytes) -> ProxyHeader:
    text = line[:-2].decode("latin-1")
    fields = text.split(" ")
    if fields[1] == "UNKNOWN":  # whatever follows says nothing
        return ProxyHeader()
    family = {"TCP4": socket.AF_INET, "TCP6": socket.AF_INET6}.get(fields[1])
    if family is None or len(fields) != 6 or not text.isascii():
        raise ProxyHeaderError("malformed PROXY header")
    try:
        client, local = (socket.inet_pton(family, host) for host in fields[2:4])
    except (OSError, ValueError):  # ValueError: a NUL
        raise ProxyHeaderError("malformed address in PROXY header") from None
    return ProxyHeader(Endpoint(_host(client), _port(fields[4])), Endpoint(_host(local), _port(fields[5])))


def _port(text: str) -> int:
    """§2.1: decimal digits, no zeros in front."""
    if not (text.isdigit() and len(text) <= 5 and int(text) <= 65535 and text == str(int(text))):
        raise ProxyHeaderError("malformed port in PROXY header")
    return int(text)


def _decode_v2(data: bytes) -> ProxyHeader:
    if data[12] == _LOCAL:  # §2.2: what follows is discarded, the family included
        return ProxyHeader()
    family, protocol = data[13] >> 4, data[13] & 0x0F
    if data[12] != _PROXY or family not in _ADDRESS_BYTES or protocol > _LAST_PROTOCOL:
        raise ProxyHeaderError("unknown version, command or family in PROXY header")
    start = _FIXED_BYTES + _ADDRESS_BYTES[family]
    if start > len(data):
        raise ProxyHeaderError("PROXY header too short for its addresses")
    tls = _tls_facts(data, start)
    if data[13] not in (_TCP4, _TCP6):
        return ProxyHeader(tls=tls)
    length = 4 if data[13] == _TCP4 else 16
    client, local, client_port, local_port = struct.unpack_from(f"!{length}s{length}sHH", data, _FIXED_BYTES)
    return ProxyHeader(Endpoint(_host(client), client_port), Endpoint(_host(local), local_port), tls)


def _tls_facts(data: bytes, start: int) -> TlsFacts | None:
    """What the TLVs say of the client's TLS; a checksum among them has to be right (§2.2.3)."""
    server_name, about_tls = b"", None
    for kind, position, value in _tlvs(data, start):
        if kind == _CRC32C and not _is_checksum(data, position, value):
            raise ProxyHeaderError("wrong checksum in PROXY header")
        if kind == _AUTHORITY:
            server_name = value
        if kind == _SSL:
            about_tls = value
    if about_tls is None:
        return None
    if len(about_tls) < 5:
        raise ProxyHeaderError("malformed TLV in PROXY header")
    if not about_tls[0] & _CLIENT_SSL:
        return None
    facts = {kind: value for kind, _, value in _tlvs(about_tls, 5)}
    return TlsFacts(_word(facts.get(_SSL_VERSION, b"")), _word(facts.get(_SSL_CIPHER, b"")), host_name(server_name))


def _tlvs(data: bytes, position: int) -> Iterator[tuple[int, int, bytes]]:
    """Type, the position of the value, and the value, of each."""
    while position < len(data):
        end = position + 3 + int.from_bytes(data[position + 1 : position + 3], "big")
        if position + 3 > len(data) or end > len(data):
            raise ProxyHeaderError("malformed TLV in PROXY header")
        yield data[position], position + 3, data[position + 3 : end]
        position = end


def _is_checksum(data: bytes, position: int, value: bytes) -> bool:
    """The checksum is that of the header with zeros in its place."""
    if len(value) != 4:
        return False
    return crc32c(data[:position] + bytes(4) + data[position + 4 :]) == int.from_bytes(value, "big")


def _host(packed: bytes) -> str:
    """An address as people write it: IPv4 among IPv6 as IPv4, as everywhere in this house."""
    if packed.startswith(_MAPPED) and len(packed) == 16:
        packed = packed[12:]
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _word(value: bytes) -> str:
    """Text that may go into logs and on to backends; "" where it is none."""
    text = value.decode("utf-8", "replace")
    return text if text.isprintable() and "\N{REPLACEMENT CHARACTER}" not in text else ""


def host_name(asked: bytes) -> str:
    """The name that a client has asked for by SNI, which backends believe; "" where the octets are none."""
    return asked.decode("ascii") if _HOST_NAME.fullmatch(asked) else ""
