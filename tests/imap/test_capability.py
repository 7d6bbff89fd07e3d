"""Capability lists: parsed in their order, and without what must not pass the proxy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.imap import capability


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        (b"IMAP4rev1 IDLE", (b"IMAP4rev1", b"IDLE")),
        (b" IMAP4rev1  AUTH=PLAIN ", (b"IMAP4rev1", b"AUTH=PLAIN")),
        (b"", ()),
    ],
)
def test_parse(listed: bytes, names: tuple[bytes, ...]) -> None:
    assert capability.parse(listed) == names


@pytest.mark.parametrize(
    ("secure", "starttls", "login", "names"),
    [
        (True, False, True, b"IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN AUTH=XOAUTH2"),
        (True, True, True, b"IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN AUTH=XOAUTH2"),
        (True, False, False, b"IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN AUTH=XOAUTH2 LOGINDISABLED"),
        (True, True, False, b"IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN AUTH=XOAUTH2 LOGINDISABLED"),
        (False, True, True, b"IMAP4rev1 SASL-IR LITERAL+ ID STARTTLS LOGINDISABLED"),
        (False, False, True, b"IMAP4rev1 SASL-IR LITERAL+ ID LOGINDISABLED"),
        (False, True, False, b"IMAP4rev1 SASL-IR LITERAL+ ID STARTTLS LOGINDISABLED"),
        (False, False, False, b"IMAP4rev1 SASL-IR LITERAL+ ID LOGINDISABLED"),
    ],
)
def test_before_login(secure: bool, starttls: bool, login: bool, names: bytes) -> None:
    mechanisms = ("PLAIN", "XOAUTH2")
    told = capability.before_login(secure=secure, starttls=starttls, login=login, mechanisms=mechanisms)
    assert b" ".join(told) == names


@pytest.mark.parametrize(
    ("backend", "compress", "told"),
    [
        (b"IMAP4rev1 IDLE MOVE LITERAL+", True, b"IMAP4rev1 IDLE MOVE LITERAL+"),
        (b"IMAP4rev1 SASL-IR LOGIN-REFERRALS ID STARTTLS AUTH=PLAIN AUTH=LOGIN LOGINDISABLED", True, b"IMAP4rev1 ID"),
        (b"imap4rev1 sasl-ir Auth=Plain starttls unauthenticate Idle", True, b"imap4rev1 Idle"),
        (b"IMAP4rev1 COMPRESS=DEFLATE compress=x", True, b"IMAP4rev1 COMPRESS=DEFLATE compress=x"),
        (b"IMAP4rev1 COMPRESS=DEFLATE compress=x", False, b"IMAP4rev1"),
        (b"AUTHX COMPRESS STARTTLSX", False, b"AUTHX COMPRESS STARTTLSX"),
        (b"", False, b""),
    ],
)
def test_after_login(backend: bytes, compress: bool, told: bytes) -> None:
    assert b" ".join(capability.after_login(capability.parse(backend), compress=compress)) == told


NAMES = st.sampled_from(
    [b"IMAP4rev1", b"STARTTLS", b"auth=plain", b"AUTH=", b"COMPRESS=DEFLATE", b"Sasl-IR", b"X", b"UNAUTHENTICATE"]
)


@given(st.lists(NAMES | st.binary()), st.booleans())
def test_after_login_is_a_subsequence_and_stable(backend: list[bytes], compress: bool) -> None:
    told = capability.after_login(tuple(backend), compress=compress)
    remaining = iter(backend)
    assert all(name in remaining for name in told)
    assert capability.after_login(told, compress=compress) == told
    assert not any(name.upper().startswith(b"AUTH=") for name in told)
