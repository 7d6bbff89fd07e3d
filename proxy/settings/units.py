"""Numbers with their unit: durations in seconds, sizes in octets."""

from __future__ import annotations

import re

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

OCTETS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

DURATION_PATTERN = r"^[0-9]{1,9} ?(ms|s|m|h|d)$"
SIZE_PATTERN = r"^[0-9]{1,9} ?(B|KiB|MiB|GiB|TiB)$"

_QUANTITY = re.compile(r"([0-9]{1,9}) ?([A-Za-z]*)", re.ASCII)


def parse_duration(value: object) -> float:
    """Seconds from "250ms", "15s", "2m", "24h" or "7d".

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError("say the unit, e.g. 30s")
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("expected a whole number with its unit, e.g. 30s")
    number, unit = int(match[1]), match[2]
    if not unit:
        raise ValueError("say the unit, e.g. 30s")
    if unit not in SECONDS:
        raise ValueError(f'"{unit}" is no unit of time; ms, s, m, h and d are, e.g. 30s')
    # ms by division: 250 * 0.001 is not 0.25 to the last bit everywhere
    return number / 1000 if unit == "ms" else number * SECONDS[unit]


def duration_text(seconds: float) -> str:
    """The shortest spelling of a duration that `parse_duration` reads back."""
    milliseconds = round(seconds * 1000)
    if milliseconds == 0:
        return "0s"
    for unit in ("d", "h", "m", "s"):
        number, rest = divmod(milliseconds, round(SECONDS[unit] * 1000))
        if not rest:
            return f"{number}{unit}"
    return f"{milliseconds}ms"


def parse_size(value: object) -> int:
    """Octets from "64KiB", "500MiB" or "2GiB".

    Raises:
        ValueError: Its text says what is wrong and how to write it.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError("say the unit, e.g. 500MiB")
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("expected a whole number with its unit, e.g. 500MiB")
    number, unit = int(match[1]), match[2]
    if not unit:
        raise ValueError("say the unit, e.g. 500MiB")
    if unit not in OCTETS:
        raise ValueError(f'"{unit}" is no unit of size; B, KiB, MiB, GiB and TiB are, e.g. 500MiB')
    return number * OCTETS[unit]


def size_text(octets: int) -> str:
    """The shortest spelling of a size that `parse_size` reads back."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        number, rest = divmod(octets, OCTETS[unit])
        if octets and not rest:
            return f"{number}{unit}"
    return f"{octets}B"
