from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest

from proxy.settings.models import BackendLogin
from proxy.settings.secret import MAX_BYTES, Secret, read_secret


def test_the_first_line_of_a_file(tmp_path: Path) -> None:
    for data in (b"s3cret", b"s3cret\n", b"s3cret\r\n", b"s3cret\nsecond\n"):
        (tmp_path / "secret").write_bytes(data)
        secret = read_secret({"file": "secret"}, tmp_path)
        assert secret.value == b"s3cret"
        assert (secret.kind, secret.place) == ("file", str(tmp_path / "secret"))


def test_spaces_and_any_octets_stay(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b" \xff \n")
    assert read_secret({"file": "secret"}, tmp_path).value == b" \xff "


def test_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTER_TEST_SECRET", "s3cret")
    assert read_secret({"env": "PORTER_TEST_SECRET"}, tmp_path).value == b"s3cret"


MISTAKES: list[tuple[object, str]] = [
    ("hunter2", r"never written into the settings file; write \{file: PATH\} or \{env: NAME\}"),
    (12345, "never written into the settings file"),
    (None, "never written into the settings file"),
    ({}, "expected one of file and env"),
    ({"value": "hunter2"}, "expected one of file and env"),
    ({"file": "a", "env": "b"}, "expected one of file and env"),
    ({"file": None}, "expected a path as text"),
    ({"file": ""}, "expected a path as text"),
    ({"file": "a\0b"}, "expected a path as text"),
    ({"env": 5}, "expected a variable name as text"),
    ({"env": "PORTER_TEST_NOT_SET"}, 'no variable "PORTER_TEST_NOT_SET"'),
    ({"file": "missing"}, "no such file"),
    ({"file": "."}, "cannot be read"),
    ({"file": "empty"}, "holds no secret"),
    ({"file": "blank"}, "holds no secret"),
    ({"file": "nul"}, "holds a NUL octet"),
    ({"file": "large"}, "larger than"),
]


@pytest.mark.parametrize(("value", "problem"), MISTAKES)
def test_mistake(tmp_path: Path, value: object, problem: str) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "blank").write_bytes(b"\r\nhunter2\n")
    (tmp_path / "nul").write_bytes(b"hunter2\0\n")
    (tmp_path / "large").write_bytes(b"x" * (MAX_BYTES + 1))
    with pytest.raises(ValueError, match=problem) as caught:
        read_secret(value, tmp_path)
    assert "hunter2" not in str(caught.value)


@pytest.fixture
def secret() -> Secret:
    return Secret("file", "/run/secrets/master", b"hunter2")


def test_it_shows_its_place_alone(secret: Secret) -> None:
    login = BackendLogin(method="master", name="porter", password=secret)
    dump = login.model_dump()
    for shown in (repr(secret), str(secret), f"{secret}", repr(login), str(login), repr(dump), login.model_dump_json()):
        assert "/run/secrets/master" in shown
        assert "hunter2" not in shown
    assert repr(secret) == "Secret(file:/run/secrets/master)"
    assert login.model_dump(mode="json")["password"] == {"file": "/run/secrets/master"}


def test_it_is_not_pickled_nor_written_as_json(secret: Secret) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(secret, protocol)
    with pytest.raises(TypeError, match="not JSON serializable"):
        json.dumps(secret)
    with pytest.raises(TypeError):
        vars(secret)


def test_it_does_not_change(secret: Secret) -> None:
    with pytest.raises(AttributeError):
        secret.value = b"other"
    with pytest.raises(AttributeError):
        del secret.value
    assert copy.copy(secret) is secret
    assert copy.deepcopy(secret) is secret


def test_equal_when_place_and_value_are(secret: Secret) -> None:
    assert secret == Secret("file", "/run/secrets/master", b"hunter2")
    assert hash(secret) == hash(Secret("file", "/run/secrets/master", b"hunter2"))
    assert secret != Secret("file", "/run/secrets/master", b"hunter3")
    assert secret != Secret("file", "/run/secrets/other", b"hunter2")
    assert secret != b"hunter2"
