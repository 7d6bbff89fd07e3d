"""The checksum against published values."""

from __future__ import annotations

import pytest

from proxy.transport.crc32c import crc32c

# RFC 3720 Appendix B.4 gives these for the same polynomial; the first is the usual check value.
CHECKSUMS = [
    (b"123456789", 0xE3069283),
    (b"", 0),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
]


@pytest.mark.parametrize(("data", "checksum"), CHECKSUMS, ids=[str(row[0][:4]) for row in CHECKSUMS])
def test_checksum(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum
