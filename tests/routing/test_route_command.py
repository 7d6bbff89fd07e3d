"""`imap-porter route NAME`."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.admin.placement import route_document
from proxy.cli import running
from proxy.cli.route import route
from proxy.cli.running import EXIT_REFUSED, EXIT_UNAVAILABLE
from proxy.cli.terminal import EXIT_OK, EXIT_SETTINGS
from proxy.ledger.resident import Phase, Whereabouts
from proxy.model import Identity
from proxy.routing.cluster import Cluster
from proxy.settings.loader import load
from tests.admin.houses import FakeHouse, open_house

HASH = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA"
SERVERS = ("dovecot-1", "dovecot-2", "dovecot-3", "gold-1")
SETTINGS = """
version: 1
listeners: [{address: "127.0.0.1:1143", tls: none, trusted_networks: ["127.0.0.0/8"]}]
names: {default_domain: example.org}
identity: [{file: {path: users.yaml}}, {backend: {}}]
routing:
  hash: HASHED
  overrides: {dave@example.org: dovecot-3}
  tags: {domains: {gold.example: gold}}
backends:
  servers:
    - {name: dovecot-1, url: "imap://127.0.0.1:1"}
    - {name: dovecot-2, url: "imap://127.0.0.1:2", weight: 2}
    - {name: dovecot-3, url: "imap://127.0.0.1:3", weight: 0}
    - {name: gold-1, url: "imap://127.0.0.1:4", tag: gold}
admin: {socket: admin.sock}
"""
ALONE = "by the settings and users' files alone, without sessions, health and DNS: "


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "120")
    people = {"bob": ", backend: dovecot-3", "carol": "", "lost": ", backend: x", "tess": ", attributes: {tag: gold}"}
    users = "".join(f'{name}: {{hash: "{HASH}"{rest}}}\n' for name, rest in people.items())
    (tmp_path / "users.yaml").write_text(users)
    return write(tmp_path / "porter.yaml")


def write(path: Path, hashed: str = "name", text: str = SETTINGS) -> Path:
    path.write_text(text.replace("HASHED", hashed))
    return path


def cluster(config: Path) -> Cluster:
    settings = load(config)
    return Cluster(settings.backends, settings.routing, 0.0)


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


# --- by the settings alone ---


@pytest.mark.parametrize("name", ["Alice", "carol@EXAMPLE.org"])
def test_by_hash(name: str, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    canonical = "alice@example.org" if name == "Alice" else "carol@example.org"
    explanation = cluster(config).explain(Identity(canonical, ""))
    assert route(name, config, json_output=False) == EXIT_OK
    lines = capsys.readouterr().out.splitlines()
    words = [line.split() for line in lines]
    assert words[0] == ["canonical", "name", canonical]
    assert ["pool", "without", "a", "tag"] in words
    assert ["hash", "key", canonical] in words
    assert ["epoch", explanation.epoch] in words
    assert not any(row[:1] == ["sessions"] for row in words)
    head = words.index(["backend", "weight", "score", "state", "health"])
    rows = words[head + 1 : head + 4]
    assert [row[0] for row in rows] == [each.name for each in explanation.order]
    assert [row[3] for row in rows] == ["up", "up", "up"]
    assert rows[2][0] == "dovecot-3"
    assert "no one by hash" in lines[head + 3]
    assert lines[-2] == f"{explanation.placement.home}: {explanation.why}"
    socket = config.with_name("admin.sock")
    assert lines[-1] == f"{ALONE}the proxy is not running: nobody listens on {socket}"


ELSEWHERE = [
    ("BOB", "dovecot-3", "override", "override dovecot-3, by source file"),
    ("dave", "dovecot-3", "override", "override dovecot-3, by routing.overrides"),
    ("tess", "gold-1", "hash", "pool gold, by attribute tag"),
    ("x@gold.example", "gold-1", "hash", "pool gold, by routing.tags.domains"),
]


@pytest.mark.parametrize(("name", "backend", "why", "row"), ELSEWHERE, ids=[row[0] for row in ELSEWHERE])
def test_elsewhere(
    name: str, backend: str, why: str, row: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert route(name, config, json_output=False) == EXIT_OK
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert row in lines
    assert any(line.startswith(f"{backend}: ") for line in lines)
    assert route(name, config, json_output=True) == EXIT_OK
    document = printed(capsys)
    assert (document["backend"], document["why"]) == (backend, why)


def test_json(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert route("carol", config, json_output=True) == EXIT_OK
    identity = Identity("carol@example.org", "file")
    explanation = cluster(config).explain(identity)
    home = explanation.placement.home
    assert printed(capsys) == {
        "ok": True,
        "name": "carol@example.org",
        "source": "file",
        "pool": "",
        "pool_from": "",
        "override": "",
        "override_from": "",
        "key": "carol@example.org",
        "epoch": explanation.epoch,
        "order": [
            {
                "name": each.name,
                "weight": each.weight,
                "state": "up",
                "up": None,
                "score": each.score,
                "notes": list(each.notes),
            }
            for each in explanation.order
        ],
        "home": home,
        "why": "hash",
        "whereabouts": None,
        "backend": home,
        "reason": explanation.why,
        "running": False,
        "unasked": f"the proxy is not running: nobody listens on {config.with_name('admin.sock')}",
    }


def test_by_domain(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert route("Alice", write(config, "domain"), json_output=True) == EXIT_OK
    document = printed(capsys)
    assert document["key"] == "example.org"
    assert document["backend"] == cluster(config).place(Identity("bob@example.org", "")).home


def test_no_socket(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(config, text=SETTINGS.replace("admin: {socket: admin.sock}", ""))
    assert route("Alice", config, json_output=False) == EXIT_OK
    assert capsys.readouterr().out.splitlines()[-1] == f"{ALONE}admin.socket is not set"


@pytest.mark.parametrize(("name", "problem"), [("a*b", "master separator"), ("", "empty"), ("lost", '"x"')])
def test_who_cannot_be_placed(name: str, problem: str, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert route(name, config, json_output=False) == EXIT_REFUSED
    out, err = capsys.readouterr()
    assert out == ""
    assert problem in err
    assert "authentication_failed" not in err
    assert "unavailable" not in err
    assert route(name, config, json_output=True) == EXIT_REFUSED
    document = printed(capsys)
    assert document["ok"] is False
    assert problem in document["problem"]


def test_whose_backend_is_down(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(config, text=SETTINGS.replace("tag: gold", "tag: gold, state: down"))
    assert route("tess", config, json_output=False) == EXIT_REFUSED
    assert "refused: gold-1: " in capsys.readouterr().out


def test_mistakes_in_the_settings(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text("version: 1\nlisteners: 3\n")
    assert route("alice", config, json_output=False) == EXIT_SETTINGS
    assert "porter.yaml:2: listeners" in capsys.readouterr().err


def test_mistakes_in_the_users_file(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "users.yaml").write_text("alice: {hash: x}\n")
    assert route("alice", config, json_output=False) == EXIT_SETTINGS
    assert "users.yaml:1: alice.hash: not an argon2id hash" in capsys.readouterr().err


# --- asked of the running proxy ---


def known(config: Path, whereabouts: Whereabouts | None, down: str = "") -> Mapping[str, Any]:
    """What a proxy says of alice."""
    backends = cluster(config)
    if down:
        backends.set_state(down, "down", 0.0)
    identity = Identity("alice@example.org", "ldap")
    return route_document(identity, backends.explain(identity), whereabouts, 1000.0)


async def asked(config: Path, document: Mapping[str, Any], *, json_output: bool = False) -> int:
    house = FakeHouse()
    house.routes = {"Alice": document}
    async with open_house(config.with_name("admin.sock"), house):
        return await trio.to_thread.run_sync(lambda: route("Alice", config, json_output))


@pytest.fixture
def home(config: Path) -> str:
    return cluster(config).place(Identity("alice@example.org", "")).home


LIVES = [
    (None, "none", "{home}: the highest score of those that take new homes"),
    (
        Whereabouts("dovecot-3", 2, 400.0),
        "2 at dovecot-3, for 10m",
        "dovecot-3: he has sessions there",
    ),
    (
        Whereabouts("dovecot-3", 0, 700.0, 1600.0),
        "none; at dovecot-3 until 5m ago, sticky for 10m",
        "dovecot-3: he was there lately",
    ),
    (
        Whereabouts("dovecot-3", 1, 990.0, None, f"eviction: {Phase.SCHEDULED.value}"),
        "1 at dovecot-3, for 10s; he moves (eviction: waits for its turn), and new logins wait",
        "{home}: once he has left dovecot-3",
    ),
    (
        Whereabouts("dovecot-3", 1, 990.0, None, "drain: sessions are being closed"),
        "1 at dovecot-3, for 10s; he moves (drain: sessions are being closed), and new logins wait",
        "{home}: once he has left dovecot-3",
    ),
]


@pytest.mark.parametrize(("whereabouts", "sessions", "last"), LIVES, ids=[row[1] for row in LIVES])
async def test_the_running_proxy_knows_more(
    whereabouts: Whereabouts | None,
    sessions: str,
    last: str,
    config: Path,
    home: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert await asked(config, known(config, whereabouts)) == EXIT_OK
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "known to ldap" in lines
    assert f"sessions {sessions}" in lines
    assert next(line.split()[3:5] for line in lines if line.startswith(f"{home} ")) == ["up", "up"]
    assert lines[-1] == last.format(home=home)


async def test_sticky_that_does_not_hold(config: Path, home: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = known(config, Whereabouts("dovecot-3", 0, 700.0, 1600.0), down="dovecot-3")
    assert await asked(config, document) == EXIT_OK
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "sessions none; at dovecot-3 until 5m ago, sticky for 10m, which does not hold now" in lines
    assert lines[-1].startswith(f"{home}: ")


@pytest.mark.parametrize("json_output", [False, True])
def test_a_running_proxy_that_does_not_answer(
    json_output: bool, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "TIMEOUT_SECONDS", 0.05)
    path = config.with_name("admin.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert route("carol", config, json_output=json_output) == EXIT_UNAVAILABLE
    out, err = capsys.readouterr()
    problem = f"{path}: no answer within 0.05 s"
    if json_output:
        assert json.loads(out) == {"ok": False, "problem": problem}
    else:
        assert (out, err) == ("", f"{problem}\n")


async def test_the_running_proxy_for_scripts(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = known(config, Whereabouts("dovecot-3", 2, 400.0))
    assert await asked(config, document, json_output=True) == EXIT_OK
    assert printed(capsys) == {"ok": True, **document, "unasked": ""}


async def test_the_running_proxy_would_refuse(config: Path, home: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await asked(config, known(config, None, down=home)) == EXIT_REFUSED
    assert capsys.readouterr().out.splitlines()[-1] == f"refused: {home}: set down by an administrator"


async def test_the_running_proxy_knows_nobody(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with open_house(config.with_name("admin.sock"), FakeHouse()):
        assert await trio.to_thread.run_sync(lambda: route("no\u200bone", config, False)) == EXIT_REFUSED
    out, err = capsys.readouterr()
    assert (out, err) == ("", "nobody knows no\\u200bone\n")
