"""`imap-porter test-login` and `check --connect` as processes, on a real directory and a real backend."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.servers.accounts import MASTER, MASTER_PASSWORD, USERS
from tests.servers.dovecot import Dovecot
from tests.servers.own_valkey import run_valkey
from tests.servers.pki import Pki
from tests.servers.ports import LOOPBACK
from tests.servers.slapd import PEOPLE, SERVICE_DN, SERVICE_PASSWORD, Slapd, person

Write = Callable[..., Path]

pytestmark = pytest.mark.server

COMMAND = (sys.executable, "-m", "proxy")
KNOWN_TO_NOBODY = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA"


def run(*arguments: str | Path, secret: str = "") -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(
        command,
        input=f"{secret}\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )


def directory(url: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """An `ldap` source that asks this server."""
    (folder / "ldap.password").write_text(SERVICE_PASSWORD)
    settings = {
        "urls": [url],
        "bind": {"dn": SERVICE_DN, "password": {"file": "ldap.password"}},
        "search": {"base": PEOPLE, "filter": "(uid={name})"},
        "attributes": {"name": "uid", "host": "mailHost", "title": "title"},
        "timeout": "2s",
    }
    return {"ldap": {**settings, **changes}}


@pytest.fixture
def backends(dovecot: Dovecot, pki: Pki, tmp_path: Path) -> dict[str, Any]:
    """One backend, to which the proxy logs in as the master user."""
    (tmp_path / "master").write_text(MASTER_PASSWORD)
    return {
        "servers": [{"name": "d1", "url": f"imap+starttls://localhost:{dovecot.imap_port}"}],
        "tls": {"ca": str(pki.ca)},
        "login": {"method": "master", "name": MASTER, "password": {"file": "master"}},
    }


@pytest.fixture
def mute() -> Iterator[socket.socket]:
    """Accepts connections and says nothing."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        listener.settimeout(30)
        yield listener


def test_a_login_that_works(
    slapd: Slapd, dovecot: Dovecot, backends: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    dovecot.trace("bob")
    config = write([directory(slapd.url, tmp_path)], backends=backends)
    done = run("test-login", "Bob", "-c", config, "--json", secret=USERS["bob"])
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert (document["ok"], document["name"], document["reply"]) == (True, "bob", "OK Logged in.")
    (row,) = document["sources"]
    assert (row["source"], row["answer"]) == ("ldap", "yes")
    assert row["milliseconds"] > 0
    assert document["identity"]["attributes"] == {"host": "bob.backend.example"}
    backend = document["backend"]
    assert (backend["name"], backend["ok"], backend["step"]) == ("d1", True, "")
    assert "IDLE" in backend["capability"]
    # All that its session was told after the login: no mailbox is opened.
    assert [line.split(maxsplit=1)[1] for line in dovecot.received("bob").splitlines()] == [b"bye LOGOUT"]

    shown = run("test-login", "bob", "-c", config, secret=USERS["bob"])
    assert shown.returncode == 0
    assert "attribute    host: bob.backend.example" in shown.stdout
    assert "its reply    logged in," in shown.stdout
    assert USERS["bob"] not in shown.stdout + shown.stderr


def test_refused_by_the_directory(slapd: Slapd, backends: dict[str, Any], write: Write, tmp_path: Path) -> None:
    config = write([directory(slapd.url, tmp_path)], backends=backends)
    done = run("test-login", "bob", "-c", config, secret="wrong-7h2d")
    assert done.returncode == 2
    assert "NO [AUTHENTICATIONFAILED]" in done.stdout
    assert "wrong-7h2d" not in done.stdout + done.stderr


def test_a_dead_directory_before_a_file(
    slapd: Slapd, backends: dict[str, Any], write: Write, tmp_path: Path, dead_port: int
) -> None:
    (tmp_path / "users.yaml").write_text(f'alice: {{hash: "{KNOWN_TO_NOBODY}"}}\n')
    dead = directory(f"ldap://{LOOPBACK}:{dead_port}", tmp_path)
    config = write([dead, {"file": {"path": "users.yaml"}}, directory(slapd.url, tmp_path)], backends=backends)
    done = run("test-login", "alice", "-c", config, "--json", "--all", secret=USERS["alice"])
    assert done.returncode == 3
    document = json.loads(done.stdout)
    assert [(row["source"], row["answer"], row["counts"]) for row in document["sources"]] == [
        ("ldap", "can't say now", True),
        ("file", "no", True),
        ("ldap-2", "yes", False),
    ]
    assert f"{LOOPBACK}:{dead_port}" in document["sources"][0]["why"]
    assert document["outcome"] == "unavailable"


def test_a_frozen_directory(slapd: Slapd, backends: dict[str, Any], write: Write, tmp_path: Path) -> None:
    config = write([directory(slapd.url, tmp_path, timeout="1s")], backends=backends)
    slapd.freeze()
    try:
        login = run("test-login", "alice", "-c", config, secret=USERS["alice"])
        check = run("check", "--connect", "-c", config)
    finally:
        slapd.thaw()
    assert login.returncode == 3
    assert "can't say now" in login.stdout
    assert check.returncode == 1


def test_what_a_directory_says_of_a_name(
    slapd: Slapd, backends: dict[str, Any], write: Write, tmp_path: Path, pki: Pki
) -> None:
    listener = {"address": f"{LOOPBACK}:1993", "tls": "implicit", "client_certificates": {"ca": str(pki.ca)}}
    tls = {"certificates": [{"certificate": str(pki.certificate), "private_key": str(pki.private_key)}]}
    config = write([directory(slapd.url, tmp_path)], backends=backends, listeners=[listener], tls=tls)
    for name, status, said in (("alice", 0, "yes"), ("nobody", 2, "not mine")):
        done = run("test-login", name, "-c", config, "--mechanism", "external", "--json")
        assert done.returncode == status, done.stderr
        assert json.loads(done.stdout)["sources"][0]["answer"] == said


def test_markup_in_an_entry(slapd: Slapd, backends: dict[str, Any], write: Write, tmp_path: Path) -> None:
    slapd.add(person("mallory", "mpw-4c8z", title="[red]Dr[/red]"))
    try:
        config = write([directory(slapd.url, tmp_path)], backends=backends)
        done = run("test-login", "mallory", "-c", config, secret="mpw-4c8z")
    finally:
        slapd.delete(f"uid=mallory,{PEOPLE}")
    assert done.returncode == 3  # the backend doesn't know the name
    assert "attribute    title: [red]Dr[/red]" in done.stdout


def test_everything_answers(slapd: Slapd, backends: dict[str, Any], write: Write, tmp_path: Path) -> None:
    config = write([directory(slapd.url, tmp_path)], backends=backends)
    done = run("check", "--connect", "-c", config, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["ok"] is True
    assert {row["name"] for row in document["connect"]} == {"ldap", "backend d1"}
    for row in document["connect"]:
        assert row.keys() == {"name", "what", "ok", "problem", "detail", "milliseconds"}
        assert row["ok"], row
    shown = run("check", "--connect", "-c", config)
    assert shown.returncode == 0
    assert "works" in shown.stdout
    assert "problem" not in shown.stdout
    assert SERVICE_PASSWORD not in shown.stdout + shown.stderr


def test_problems_are_told(
    slapd: Slapd, backends: dict[str, Any], write: Write, tmp_path: Path, dead_port: int
) -> None:
    servers = [*backends["servers"], {"name": "d2", "url": f"imap://{LOOPBACK}:{dead_port}"}]
    config = write([directory(slapd.url, tmp_path)], backends={**backends, "servers": servers})
    (tmp_path / "ldap.password").write_text("wrong-7h2d")
    done = run("check", "--connect", "-c", config, "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["ok"] is False
    problems = {row["name"]: row for row in document["connect"] if not row["ok"]}
    assert problems.keys() == {"ldap", "backend d2"}
    assert problems["backend d2"]["what"] == "connect"
    assert "bind" in problems["ldap"]["what"]
    shown = run("check", "--connect", "-c", config)
    assert shown.returncode == 1
    assert shown.stdout.endswith("porter.yaml: no mistakes, 2 problems\n")
    # Without --connect nobody is asked.
    assert run("check", "-c", config).returncode == 0


@pytest.mark.parametrize("arguments", [("test-login", "ann"), ("check", "--connect")])
def test_interrupted(arguments: tuple[str, ...], mute: socket.socket, write: Write) -> None:
    server = {"name": "d1", "url": f"imap://{LOOPBACK}:{mute.getsockname()[1]}"}
    config = write([{"backend": {}}], backends={"servers": [server]})
    # A shell that runs the tests in the background has them ignore the signal, and their children would inherit that.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*COMMAND, *arguments, "-c", str(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, ours)
    with process:
        try:
            assert process.stdin is not None
            process.stdin.write("secret\n")
            process.stdin.flush()
            connection, _ = mute.accept()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
            connection.close()
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, "", "\n")


def test_a_fleet_is_tried_and_nobody_joins_it(backends: dict[str, Any], write: Write, tmp_path: Path) -> None:
    (tmp_path / "users.yaml").write_text(f'alice: {{hash: "{KNOWN_TO_NOBODY}"}}\n')
    (tmp_path / "wrong").write_text("wrong-7h2d")
    with contextmanager(run_valkey)() as server:

        def tried(password: Path) -> dict[str, Any]:
            fleet = {"valkey": server.url, "password": {"file": str(password)}, "name": "porter-1"}
            config = write([{"file": {"path": "users.yaml"}}], backends=backends, fleet=fleet)
            document = json.loads(run("check", "--connect", "-c", config, "--json").stdout)
            (row,) = [row for row in document["connect"] if row["name"] == "fleet"]
            return dict(row)

        row = tried(server.password_file)
        assert (row["what"], row["ok"], row["detail"]) == ("Valkey", True, f"{server.url}; no proxy is there yet")
        assert server.ask("KEYS", "*") == ""
        server.ask("HSET", "imap-porter:members", "porter-2", "0")
        assert tried(server.password_file)["detail"].endswith("proxies known there: porter-2")
        row = tried(tmp_path / "wrong")
        assert not row["ok"]
        assert server.url in row["problem"]
        assert "wrong-7h2d" not in str(row)
