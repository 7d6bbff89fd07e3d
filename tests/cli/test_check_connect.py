"""`imap-porter check --connect` where no server is needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.cli import connect
from proxy.cli.check import EXIT_PROBLEM, check
from proxy.cli.terminal import EXIT_SETTINGS
from tests.servers.ports import LOOPBACK

Write = Callable[..., Path]

HASH = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA"


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "users.yaml").write_text(f'ann: {{hash: "{HASH}"}}\n')


def test_what_is_out(write: Write, dead_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    web = f"http://{LOOPBACK}:{dead_port}"
    config = write([{"http": {"url": f"{web}/auth?key=k3y"}}, {"file": {"path": "users.yaml"}}])
    assert check(config, True, True) == EXIT_PROBLEM
    out, err = capsys.readouterr()
    assert err == ""
    document = json.loads(out)
    assert document["ok"] is False
    assert [(row["name"], row["ok"]) for row in document["connect"]] == [
        ("http", False),
        ("file", True),
        ("backend d1", False),
    ]
    http, file, backend = document["connect"]
    assert http["what"].startswith(f"{web}/auth")
    assert http["problem"]
    assert file["detail"] == "1 person"
    assert (backend["what"], backend["detail"]) == ("connect", "")
    assert f"{LOOPBACK}:{dead_port}" in backend["problem"]
    assert "k3y" not in json.dumps(document["connect"])


def test_shown_to_people(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(write([{"file": {"path": "users.yaml"}}]), False, True) == EXIT_PROBLEM
    out, err = capsys.readouterr()
    assert err == ""
    rows = [line.split() for line in out.splitlines()]
    assert next(row for row in rows if row[:1] == ["file"])[2:] == ["works", "0", "1", "person"]
    assert next(row for row in rows if row[:2] == ["backend", "d1"] and "connect" in row)[2:4] == ["connect", "problem"]
    assert out.endswith("porter.yaml: no mistakes, 1 problem\n")


def test_no_answer_in_time(
    write: Write, mute_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(connect, "PROBE_SECONDS", 0.05)
    server = {"name": "d1", "url": f"imap://{LOOPBACK}:{mute_port}"}
    assert check(write([{"backend": {}}], backends={"servers": [server]}), True, True) == EXIT_PROBLEM
    (row,) = json.loads(capsys.readouterr().out)["connect"]
    assert (row["name"], row["problem"]) == ("backend d1", "no answer within 0.05 s")


def test_a_hostile_backend(hostile_backend: int, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    server = {"name": "d1", "url": f"imap://{LOOPBACK}:{hostile_backend}"}
    check(write([{"backend": {}}], backends={"servers": [server]}), False, True)
    out, err = capsys.readouterr()
    assert all(line.isprintable() for line in (out + err).split("\n"))
    assert "backend d1" in out


def test_mistakes_come_first(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config = write([{"file": {"path": "none.yaml"}}])
    assert check(config, False, True) == EXIT_SETTINGS
    out, err = capsys.readouterr()
    assert out == ""
    assert "no such file" in err
