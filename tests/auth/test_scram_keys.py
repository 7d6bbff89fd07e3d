"""SCRAM keys: both spellings, what is said about damaged ones, keys made, decoys, and passwords verified by them."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth.scram_keys import (
    DEFAULT_ITERATIONS,
    DEFAULT_SHAPE,
    MAX_SALT_OCTETS,
    MIN_SALT_OCTETS,
    UnusableKeys,
    decoy_keys,
    make_scram_keys,
    parse_scram_keys,
    scram_text,
    shape_of,
    verify_password,
)
from proxy.model import KeyShape, ScramKeys

# The keys behind the example of RFC 7677 §3, whose password is "pencil".
SALT, STORED, SERVER = (
    "W22ZaJ0SNY7soEsUEjb6gQ==",
    "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=",
    "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
)
TEXT = f"SCRAM-SHA-256$4096:{SALT}${STORED}:{SERVER}"
KEYS = ScramKeys(base64.b64decode(SALT), 4096, base64.b64decode(STORED), base64.b64decode(SERVER))


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"SCRAM-SHA-256 $ 4096:{SALT} $ {STORED}:{SERVER}",
        f"scram-sha-256$4096:{SALT}${STORED}:{SERVER}",
        f"{{SCRAM-SHA-256}}4096,{SALT},{STORED},{SERVER}",
        f"{{scram-sha-256}}4096,{SALT},{STORED},{SERVER}",
    ],
)
def test_both_spellings(text: str) -> None:
    assert parse_scram_keys(text) == KEYS


def encoded(octets: int) -> str:
    return base64.b64encode(b"\x5a" * octets).decode()


UNUSABLE = [
    ("empty", "", "no keys"),
    ("password in clear", "hunter2", "no keys"),
    ("argon2id", "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$AAAA", "no keys"),
    ("SCRAM-SHA-1", TEXT.replace("256", "1"), "no keys"),
    ("SCRAM-SHA-512", TEXT.replace("256", "512"), "no keys"),
    ("PLUS", TEXT.replace("256", "256-PLUS"), "no keys"),
    ("cut off", TEXT.rpartition(":")[0], "damaged"),
    ("scheme alone", "SCRAM-SHA-256$", "damaged"),
    ("Dovecot's scheme alone", "{SCRAM-SHA-256}", "damaged"),
    ("Dovecot's, cut off", f"{{SCRAM-SHA-256}}4096,{SALT},{STORED}", "damaged"),
    ("both spellings mixed", f"{{SCRAM-SHA-256}}4096:{SALT}${STORED}:{SERVER}", "damaged"),
    ("a space before", f" {TEXT}", "no keys"),
    ("a line end behind", f"{TEXT}\n", "damaged"),
    ("other digits", TEXT.replace("4096", "٤٠٩٦"), "damaged"),
    ("no iterations", TEXT.replace("4096", ""), "damaged"),
    ("negative", TEXT.replace("4096", "-4096"), "damaged"),
    ("too few iterations", TEXT.replace("4096", "4095"), "asks for 4095 iterations"),
    ("too many iterations", TEXT.replace("4096", "1000001"), "asks for 1000001 iterations"),
    ("far too many", TEXT.replace("4096", "9" * 11), "damaged"),
    ("short salt", TEXT.replace(SALT, encoded(11)), "salt"),
    ("long salt", TEXT.replace(SALT, encoded(65)), "salt"),
    ("salt without padding", TEXT.replace(SALT, SALT.rstrip("=")), "salt"),
    ("salt with too much", TEXT.replace(SALT, encoded(18) + "=="), "salt"),
    ("short StoredKey", TEXT.replace(STORED, encoded(31)), "keys are damaged"),
    ("long StoredKey", TEXT.replace(STORED, encoded(33)), "keys are damaged"),
    ("short ServerKey", TEXT.replace(SERVER, encoded(20)), "keys are damaged"),
    ("ServerKey without padding", TEXT[:-1], "keys are damaged"),
    ("URL's base64", TEXT.replace("/", "_").replace("+", "-").replace("W", "_"), "damaged"),
]


@pytest.mark.parametrize(("name", "text", "problem"), UNUSABLE, ids=[row[0] for row in UNUSABLE])
def test_unusable(name: str, text: str, problem: str) -> None:
    with pytest.raises(UnusableKeys, match=problem) as error:
        parse_scram_keys(text)
    for secret in ("hunter2", SALT, STORED[:20], SERVER[:20], "WlpaWlpa"):
        assert secret not in str(error.value)


@pytest.mark.parametrize(("iterations", "octets"), [(4096, 12), (1_000_000, 64)])
def test_the_bounds_are_allowed(iterations: int, octets: int) -> None:
    text = TEXT.replace("4096", str(iterations)).replace(SALT, encoded(octets))
    assert scram_text(parse_scram_keys(text)) == text


@given(
    st.builds(
        ScramKeys,
        st.binary(min_size=12, max_size=64),
        st.integers(4096, 1_000_000),
        st.binary(min_size=32, max_size=32),
        st.binary(min_size=32, max_size=32),
    )
)
def test_what_is_written_is_read(keys: ScramKeys) -> None:
    assert parse_scram_keys(scram_text(keys)) == keys


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(UnusableKeys):
        parse_scram_keys(text)


def test_made_keys() -> None:
    keys, others = make_scram_keys(b"pencil"), make_scram_keys(b"pencil")
    assert keys.iterations == DEFAULT_ITERATIONS == 50_000
    assert shape_of(keys) == DEFAULT_SHAPE == KeyShape(50_000, 16)
    assert keys.salt != others.salt
    assert verify_password(keys, b"pencil")
    assert not verify_password(keys, b"Pencil")


def test_the_example_of_rfc_7677() -> None:
    assert verify_password(KEYS, b"pencil")
    assert not verify_password(KEYS, b"pencil ")
    assert not verify_password(KEYS, b"")


def test_the_password_is_prepared() -> None:
    """RFC 4013 §3: what looks alike counts as one."""
    keys = make_scram_keys("I\u00adX".encode(), 4096)
    for same in ("IX", "\u2168"):
        assert verify_password(keys, same.encode())
    assert not verify_password(keys, b"ix")


@pytest.mark.parametrize(
    ("password", "problem"),
    [
        (b"\xffs3cret", "not UTF-8"),
        (b"", "no character that counts"),
        ("\u00ad\u200b".encode(), "no character that counts"),
        (b"s3cret\x07", "SASLprep .*control characters"),
        ("s3cret\N{KEY}".encode(), "SASLprep .*unassigned"),
        ("\u0627s3cret".encode(), "SASLprep .*bidi"),
    ],
)
def test_passwords_without_keys(password: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as error:
        make_scram_keys(password, 4096)
    assert "s3cret" not in str(error.value)
    assert not verify_password(KEYS, password)


def test_a_decoy() -> None:
    """The same for the same name, another for another; no password has it."""
    key = b"k" * 32
    shape = KeyShape(4096, 16)
    decoy = decoy_keys("nobody@example.org", key, shape)
    assert decoy == decoy_keys("nobody@example.org", key, shape)
    assert parse_scram_keys(scram_text(decoy)) == decoy
    others = [
        decoy,
        decoy_keys("nobody@example.com", key, shape),
        decoy_keys("nobody@example.org", b"K" * 32, shape),
        decoy_keys("\udcff", key, shape),
    ]
    for part in ("salt", "stored_key", "server_key"):
        assert len({getattr(other, part) for other in others}) == len(others)
    assert len({decoy.salt, decoy.stored_key[:16], decoy.server_key[:16]}) == 3
    assert not verify_password(decoy, b"pencil")


@pytest.mark.parametrize("octets", [MIN_SALT_OCTETS, 16, 20, 33, MAX_SALT_OCTETS])
def test_a_decoy_looks_like_the_keys_beside_it(octets: int) -> None:
    """Whatever salt a site's keys have, one of another length would give an unknown name away."""
    real = ScramKeys(b"s" * octets, 7000, b"k" * 32, b"K" * 32)
    decoy = decoy_keys("nobody@example.org", b"k" * 32, shape_of(real))
    assert shape_of(decoy) == shape_of(real) == KeyShape(7000, octets)
    assert parse_scram_keys(scram_text(decoy)) == decoy


def test_no_key_is_in_the_repr() -> None:
    assert "stored" not in repr(KEYS)
    assert repr(KEYS.server_key) not in repr(KEYS)
