"""Pictures of a page, made small: 256 colours are enough for text and charts. Source: PNG (ISO/IEC 15948) §9, §11."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterator

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {2: 3, 6: 4}  # by colour type: with and without transparency
_MOST_COLOURS = 256


def small(picture: bytes) -> bytes:
    """The same picture with a palette; colours that are rare become the nearest of those that are not."""
    chunks = [*_chunks(picture)]
    width, height, _depth, kind = struct.unpack_from(">IIBB", chunks[0][1])
    packed = b"".join(data for name, data in chunks if name == b"IDAT")
    lines = [*_lines(zlib.decompress(packed), width, _CHANNELS[kind])]
    palette = [colour for colour, _ in Counter(c for line in lines for c in line).most_common(_MOST_COLOURS)]
    index = {colour: number for number, colour in enumerate(palette)}
    for line in lines:
        for colour in set(line) - index.keys():
            index[colour] = min(range(len(palette)), key=lambda number: _distance(palette[number], colour))
    body = b"".join(b"\0" + bytes(index[colour] for colour in line) for line in lines)
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    colours = b"".join(map(bytes, palette))
    parts = ((b"IHDR", header), (b"PLTE", colours), (b"IDAT", zlib.compress(body, 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(map(_chunk, parts))


def _distance(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def _chunk(part: tuple[bytes, bytes]) -> bytes:
    name, data = part
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _chunks(picture: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(_SIGNATURE)
    while place < len(picture):
        length, name = struct.unpack_from(">I4s", picture, place)
        yield name, picture[place + 8 : place + 8 + length]
        place += 12 + length


def _lines(data: bytes, width: int, channels: int) -> Iterator[list[tuple[int, ...]]]:
    """Each line's colours, its filter undone."""
    stride = width * channels
    above = bytearray(stride)
    for start in range(0, len(data), stride + 1):
        line = bytearray(data[start + 1 : start + 1 + stride])
        _unfilter(data[start], line, above, channels)
        yield [*zip(*(line[channel::channels] for channel in range(3)), strict=True)]
        above = line


def _unfilter(kind: int, line: bytearray, above: bytearray, channels: int) -> None:
    for place in range(len(line)):
        left, corner = (line[place - channels], above[place - channels]) if place >= channels else (0, 0)
        up = above[place]
        match kind:
            case 1:
                add = left
            case 2:
                add = up
            case 3:
                add = (left + up) // 2
            case 4:
                add = min((left, up, corner), key=lambda each: abs(left + up - corner - each))
            case _:
                return
        line[place] = (line[place] + add) & 0xFF
