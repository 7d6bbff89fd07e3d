"""`imap-porter route NAME`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxy.cli.route import EXIT_REFUSED, EXIT_SETTINGS, route
from proxy.routing.rendezvous import Member, Rendezvous

HASH = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA"
SERVERS = ("dovecot-1", "dovecot-2", "dovecot-3")
RING = Rendezvous([Member("dovecot-1"), Member("dovecot-2", 2), Member("dovecot-3", 0)])
SETTINGS = """
version: 1
listeners: [{address: "127.0.0.1:1143", tls: none, trusted_networks: ["127.0.0.0/8"]}]
names: {default_domain: example.org}
identity: [{file: {path: users.yaml}}, {backend: {}}]
routing: {hash: HASHED}
backends:
  servers:
    - {name: dovecot-1, url: "imap://127.0.0.1:1"}
    - {name: dovecot-2, url: "imap://127.0.0.1:2", weight: 2}
    - {name: dovecot-3, url: "imap://127.0.0.1:3", weight: 0}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "120")
    people = {"bob": ", backend: dovecot-3", "carol": "", "lost": ", backend: x"}
    users = "".join(f'{name}: {{hash: "{HASH}"{rest}}}\n' for name, rest in people.items())
    (tmp_path / "users.yaml").write_text(users)
    return write(tmp_path / "porter.yaml")


def write(path: Path, hashed: str = "name") -> Path:
    path.write_text(SETTINGS.replace("HASHED", hashed))
    return path


@pytest.mark.parametrize("name", ["Alice", "carol@EXAMPLE.org"])
def test_by_hash(name: str, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    canonical = "alice@example.org" if name == "Alice" else "carol@example.org"
    home, other = RING.order(canonical)
    assert route(name, config, json_output=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["canonical", "name", canonical]
    assert lines[1].split() == ["hash", "key", canonical]
    assert lines[2].split() == ["epoch", RING.epoch]
    rows = [line for line in lines if "│" in line]
    assert [next(each for each in SERVERS if each in row) for row in rows] == [home, other, "dovecot-3"]
    assert ["chosen" in row for row in rows] == [True, False, False]
    assert "no one by hash" in rows[-1]
    assert lines[-1] == f"{home}: the highest score"


def test_by_the_users_file(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert route("BOB", config, json_output=False) == 0
    out = capsys.readouterr().out
    assert "chosen, no one by hash" in out
    assert out.endswith("dovecot-3: named by source file\n")


def test_json(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert route("Alice", config, json_output=True) == 0
    printed = json.loads(capsys.readouterr().out)
    order = list(RING.order("alice@example.org"))
    assert printed == {
        "name": "alice@example.org",
        "key": "alice@example.org",
        "epoch": RING.epoch,
        "backend": order[0],
        "why": "hash",
        "order": order,
        "scores": [
            {"name": score.name, "weight": score.weight, "score": score.score}
            for score in RING.scores("alice@example.org")
        ],
    }
    assert route("bob", config, json_output=True) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["backend"], printed["why"], printed["order"]) == ("dovecot-3", "override", ["dovecot-3"])


def test_by_domain(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert route("Alice", write(config, "domain"), json_output=True) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["key"] == "example.org"
    assert printed["backend"] == RING.order("example.org")[0]


@pytest.mark.parametrize(("name", "problem"), [("a*b", "master separator"), ("", "empty"), ("lost", '"x"')])
def test_who_cannot_be_placed(name: str, problem: str, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert route(name, config, json_output=False) == EXIT_REFUSED
    out, err = capsys.readouterr()
    assert out == ""
    assert problem in err


def test_mistakes_in_the_settings(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text("version: 1\nlisteners: 3\n")
    assert route("alice", config, json_output=False) == EXIT_SETTINGS
    assert "porter.yaml:2: listeners" in capsys.readouterr().err


def test_mistakes_in_the_users_file(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "users.yaml").write_text("alice: {hash: x}\n")
    assert route("alice", config, json_output=False) == EXIT_SETTINGS
    assert "users.yaml:1: alice.hash: not an argon2id hash" in capsys.readouterr().err
