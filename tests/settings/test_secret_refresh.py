"""Secrets whose files change while we run."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.settings.secret import MAX_BYTES, Secret, read_secret, refresh


@pytest.fixture
def secret(tmp_path: Path) -> Secret:
    (tmp_path / "secret").write_bytes(b"old\n")
    return read_secret({"file": "secret"}, tmp_path)


def test_the_newest_that_was_told_counts(secret: Secret, tmp_path: Path) -> None:
    refresh({tmp_path / "secret": b"new\r\nsecond line\n", tmp_path / "another": b"x"})
    assert secret.value == b"new"
    refresh({tmp_path / "secret": b"newer"})
    assert secret.value == b"newer"
    assert repr(secret) == f"Secret(file:{tmp_path}/secret)"


def test_what_is_on_the_disk_is_not_looked_at(secret: Secret, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"new\n")
    assert secret.value == b"old"


@pytest.mark.parametrize("bad", [b"", b"\n", b"\r\nhunter2\n", b"hunter2\0\n", b"hunter2" * MAX_BYTES])
def test_what_is_none_changes_nothing(secret: Secret, tmp_path: Path, bad: bytes) -> None:
    (tmp_path / "other").write_bytes(b"other\n")
    other = read_secret({"file": "other"}, tmp_path)
    with pytest.raises(ValueError, match="secret") as caught:
        refresh({tmp_path / "other": b"new", tmp_path / "secret": bad})
    assert (secret.value, other.value) == (b"old", b"other")
    assert "hunter2" not in str(caught.value)


def test_what_is_read_anew_is_newer(secret: Secret, tmp_path: Path) -> None:
    refresh({tmp_path / "secret": b"told"})
    (tmp_path / "secret").write_bytes(b"newest\n")
    assert read_secret({"file": "secret"}, tmp_path).value == b"newest"


def test_the_environment_does_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTER_TEST_SECRET", "s3cret")
    secret = read_secret({"env": "PORTER_TEST_SECRET"}, tmp_path)
    refresh({Path("PORTER_TEST_SECRET"): b"new"})
    assert secret.value == b"s3cret"
