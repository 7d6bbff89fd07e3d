"""The table of commands, and what may tag one."""

from __future__ import annotations

import pytest

from proxy.imap.commands import COMMANDS, OTHER, REFUSED_AFTER_LOGIN, command_name, plain_names, valid_tag


def test_names_are_bounded_and_what_is_refused_is_not_plain() -> None:
    assert len(COMMANDS) < 70
    plain = plain_names(REFUSED_AFTER_LOGIN)
    assert set(plain.values()) <= COMMANDS | {"UID"}
    assert not {name.upper() for name in plain} & (REFUSED_AFTER_LOGIN | {b"IDLE", b"COMPRESS"})
    assert command_name([b"a", b"uid", b"Fetch"]) == "UID FETCH"
    assert command_name([b"a"]) == OTHER


@pytest.mark.parametrize("tag", [b"a", b"1", b"A.1", b"a+b", b"x]", b"~!@#$^&-_=|}:;',.?/<>`"])
def test_tags(tag: bytes) -> None:
    assert valid_tag(tag)


@pytest.mark.parametrize(
    "tag", [b"", b"+", b"+a", b"*", b"a*", b"a(", b"{1}", b'"a"', b"a\\", b"a%", b"\xe4", b"a\0", b"a\x7f", b"a)"]
)
def test_no_tags(tag: bytes) -> None:
    assert not valid_tag(tag)
