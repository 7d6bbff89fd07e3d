"""Secrets: named in the settings file, read from a file or the environment, never shown."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

MAX_BYTES: Final = 64 * 1024
WAY_OUT: Final = "write {file: PATH} or {env: NAME}"

Kind = Literal["file", "env"]


# What secrets' files hold now, where this process has been told that they have changed since they were read.
_told: dict[str, bytes] = {}


class Secret:
    """A secret and where it came from. Only `value` gives it away; it does not print, dump or pickle."""

    __slots__ = ("_read", "kind", "place")

    kind: Kind
    place: str
    _read: bytes

    def __init__(self, kind: Kind, place: str, value: bytes) -> None:
        for name, given in (("kind", kind), ("place", place), ("_read", value)):
            object.__setattr__(self, name, given)

    @property
    def value(self) -> bytes:
        """The secret as it is now: to be asked for at each use, and kept nowhere."""
        return _told.get(self.place, self._read) if self.kind == "file" else self._read

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Secret does not change")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Secret does not change")

    def __repr__(self) -> str:
        return f"Secret({self.kind}:{self.place})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        same_place = (self.kind, self.place) == (other.kind, other.place)
        return hmac.compare_digest(self.value, other.value) and same_place

    def __hash__(self) -> int:
        return hash((self.kind, self.place))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret is not pickled")


def read_secret(value: object, folder: Path) -> Secret:
    """Read the secret that `{file: PATH}` or `{env: NAME}` names: the first line, without its end.

    Args:
        value: The plain object of the settings file.
        folder: What a relative path is relative to.
    Raises:
        ValueError: Its text says what is wrong and how to write it, and never holds the secret.
    """
    if not isinstance(value, dict):
        raise ValueError(f"a secret is never written into the settings file; {WAY_OUT}")
    if len(value) != 1 or not value.keys() <= {"file", "env"}:
        raise ValueError(f"expected one of file and env; {WAY_OUT}")
    ((kind, place),) = value.items()
    if not isinstance(place, str) or not place or "\0" in place:
        raise ValueError(f"expected a {'path' if kind == 'file' else 'variable name'} as text; {WAY_OUT}")
    if kind == "file":
        place = str(Path(os.path.normpath(folder / place)).absolute())
        secret = Secret("file", place, secret_in(place, _read_file(place)))
        _told.pop(place, None)  # nothing is newer than this
        return secret
    found = os.environb.get(os.fsencode(place))
    if found is None:
        raise ValueError(f'the environment has no variable "{place}"')
    return Secret("env", place, _first_line(found, f'the environment variable "{place}"'))


def secret_in(place: str, content: bytes) -> bytes:
    """The secret that a file holds.

    Raises:
        ValueError: It holds none; the text does not hold it either.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f'the file "{place}" is larger than {MAX_BYTES} bytes')
    return _first_line(content, f'the file "{place}"')


def refresh(contents: Mapping[Path, bytes]) -> None:
    """These files hold something else now: from here on secrets that were read from them have that as their value.

    Raises:
        ValueError: One of them holds no secret. Nothing has changed.
    """
    _told.update({str(path): secret_in(str(path), content) for path, content in contents.items()})


def _read_file(place: str) -> bytes:
    try:
        with Path(place).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ValueError(f'no such file: "{place}"') from None
    except OSError as exc:
        raise ValueError(f'cannot be read: "{place}": {exc.strerror}') from None
    return data


def _first_line(data: bytes, where: str) -> bytes:
    line = data.partition(b"\n")[0].removesuffix(b"\r")
    if not line:
        raise ValueError(f"{where} holds no secret: its first line is empty")
    if b"\0" in line:
        raise ValueError(f"{where} holds a NUL octet, which no password may (RFC 4616 §2)")
    return line
