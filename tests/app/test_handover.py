"""What a steward leaves to the next."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from proxy.app import handover


@pytest.fixture
def descriptor() -> Iterator[int]:
    made = os.memfd_create("test")
    yield made
    os.close(made)


def test_what_is_written_is_read(descriptor: int) -> None:
    state = {"version": 7, "names": ["é", "\udcff"] * 200_000}
    handover.write(descriptor, state)
    assert handover.read(descriptor) == state


LEFT = [
    ("nothing", b""),
    ("half of it", b'{"version": 7, "regis'),
    ("something else", b"[1]"),
    ("no text", b"\xff\xfe\x00"),
    ("too deep", b"[" * 200_000),
]


@pytest.mark.parametrize(("name", "octets"), LEFT, ids=[row[0] for row in LEFT])
def test_what_makes_no_sense_is_nothing(descriptor: int, name: str, octets: bytes) -> None:
    os.write(descriptor, octets)
    assert handover.read(descriptor) == {}
