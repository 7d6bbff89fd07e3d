"""The checksum CRC32c (Castagnoli), which Python's libraries lack (RFC 4960 Appendix B)."""

from __future__ import annotations

_POLYNOMIAL = 0x82F63B78  # bits in reverse order


def _entry(octet: int) -> int:
    for _ in range(8):
        octet = octet >> 1 ^ (_POLYNOMIAL if octet & 1 else 0)
    return octet


_TABLE = tuple(map(_entry, range(256)))


def crc32c(data: bytes) -> int:
    """The checksum of a few hundred octets; slow for more."""
    crc = 0xFFFFFFFF
    for octet in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ octet) & 0xFF]
    return crc ^ 0xFFFFFFFF
