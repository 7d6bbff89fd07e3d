from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.settings import units

DURATIONS = [
    ("250ms", 0.25),
    ("0s", 0.0),
    ("15s", 15.0),
    ("2m", 120.0),
    ("31m", 1860.0),
    ("24h", 86400.0),
    ("7d", 604800.0),
]


@pytest.mark.parametrize(("text", "seconds"), [*DURATIONS, ("1500ms", 1.5), ("60s", 60.0), ("5 s", 5.0)])
def test_duration(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds
    assert re.search(units.DURATION_PATTERN, text)


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_duration_text(text: str, seconds: float) -> None:
    assert units.duration_text(seconds) == ("1d" if text == "24h" else text)


WITHOUT_UNIT = [30, 1.5, "30"]
MALFORMED: list[object] = [
    "",
    "s",
    "-1s",
    "1.5s",
    "1s 2s",
    "s1",
    "1  s",
    " 1s",
    "1234567890s",
    "１s",
    None,
    True,
    [],
    {},
]


@pytest.mark.parametrize("value", WITHOUT_UNIT)
def test_a_bare_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^say the unit, e\.g\. 30s$"):
        units.parse_duration(value)


@pytest.mark.parametrize("value", MALFORMED)
def test_malformed(value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected a whole number with its unit"):
        units.parse_duration(value)
    if isinstance(value, str):
        assert not re.search(units.DURATION_PATTERN, value)


@pytest.mark.parametrize("text", ["5min", "1S", "1M", "1w", "1KiB"])
def test_unknown_unit_of_time(text: str) -> None:
    with pytest.raises(ValueError, match="is no unit of time"):
        units.parse_duration(text)


@given(st.integers(0, 999_999_999))
def test_durations_survive_a_round_trip(milliseconds: int) -> None:
    assert units.parse_duration(units.duration_text(milliseconds / 1000)) == milliseconds / 1000


SIZES = [("0B", 0), ("1B", 1), ("64KiB", 65536), ("500MiB", 500 * 2**20), ("2GiB", 2**31), ("1TiB", 2**40)]


@pytest.mark.parametrize(("text", "octets"), [*SIZES, ("5 MiB", 5 * 2**20), ("1024KiB", 2**20)])
def test_size(text: str, octets: int) -> None:
    assert units.parse_size(text) == octets
    assert re.search(units.SIZE_PATTERN, text)


@pytest.mark.parametrize(("text", "octets"), SIZES)
def test_size_text(text: str, octets: int) -> None:
    assert units.size_text(octets) == text


@pytest.mark.parametrize("value", WITHOUT_UNIT)
def test_a_bare_size_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^say the unit, e\.g\. 500MiB$"):
        units.parse_size(value)


@pytest.mark.parametrize("value", MALFORMED)
def test_a_malformed_size(value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected a whole number with its unit|is no unit of size"):
        units.parse_size(value)
    if isinstance(value, str):
        assert not re.search(units.SIZE_PATTERN, value)


@pytest.mark.parametrize("text", ["5MB", "1kib", "1M", "1KB", "1s"])
def test_unknown_unit_of_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no unit of size"):
        units.parse_size(text)
    assert not re.search(units.SIZE_PATTERN, text)


@given(st.integers(0, 999_999_999) | st.integers(0, 30).map(lambda power: 2**power))
def test_sizes_survive_a_round_trip(octets: int) -> None:
    assert units.parse_size(units.size_text(octets)) == octets
