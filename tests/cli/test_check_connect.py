"""`imap-porter check --connect`, in this process."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from proxy.backends.check import Told
from proxy.backends.way import Contexts, Way
from proxy.cli import connect
from proxy.cli.check import EXIT_PROBLEM, check
from proxy.cli.main import app
from proxy.cli.terminal import EXIT_OK, EXIT_SETTINGS
from proxy.settings.backend_models import BackendTls, ClientAddress, Server
from proxy.transport.tls_client import ServerCertificate
from tests.servers.accounts import USERS
from tests.servers.dovecot import Dovecot
from tests.servers.pki import Pki
from tests.servers.ports import LOOPBACK

Write = Callable[..., Path]

UNTOLD = "what it saw, this backend does not tell"
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
    sources = [{"http": {"url": f"http://{LOOPBACK}:{mute_port}/auth"}}]
    waits = {"backend_connect": "50ms", "backend_login": "50ms"}
    assert check(write(sources, backends={"servers": [server]}, timeouts=waits), True, True) == EXIT_PROBLEM
    http, backend = json.loads(capsys.readouterr().out)["connect"]
    assert (http["name"], http["problem"]) == ("http", "no answer within 0.05 s")
    # It is the backend that knows the step.
    assert (backend["name"], backend["what"]) == ("backend d1", "greeting")
    assert backend["problem"] == f"{LOOPBACK}:{mute_port} did not answer within 0.1 s"


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


def test_the_help_names_what_is_tried() -> None:
    told = CliRunner().invoke(app, ["check", "--help"]).stdout
    words = re.findall(r"\w+", told)
    assert {"DNS", "certificates", "login", "address"} <= set(words)


# --- what backends tell ---


@pytest.mark.server
@pytest.mark.parametrize("scheme", ["imaps", "imap+starttls", "imap"])
def test_a_backend_tells_of_itself(
    dovecot: Dovecot, pki: Pki, write: Write, capsys: pytest.CaptureFixture[str], scheme: str
) -> None:
    port = dovecot.imaps_port if scheme == "imaps" else dovecot.imap_port
    server = {"name": "d1", "url": f"{scheme}://localhost:{port}", "client_address": "id"}
    config = write([{"backend": {}}], backends={"servers": [server], "tls": {"ca": str(pki.ca)}})
    assert check(config, True, True) == EXIT_OK
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)["connect"]}
    assert re.fullmatch(r"Dovecot .*ready\.", rows["greeting"]["detail"])
    assert "AUTH=PLAIN" in rows["capability"]["detail"]
    assert rows["client address"]["detail"] == f"192.0.2.1 sent by id; {UNTOLD} (its greeting comes before the ID)"
    assert "probe login" not in rows
    assert ("certificate" in rows) is (scheme != "imap")
    if scheme != "imap":
        ends, names = rows["certificate"]["detail"].split("; ")
        assert re.fullmatch(r"ends \d{4}-\d\d-\d\d, in \d+ days", ends)
        assert names == "names localhost, *.test.example, 127.0.0.1, ::1"


PROBES = [
    (USERS["alice"], "", "alice is let in"),
    ("wrong-" + USERS["alice"], "health.login, alice: login: ", ""),
]


@pytest.mark.server
@pytest.mark.parametrize(("password", "problem", "detail"), PROBES, ids=["right", "wrong"])
def test_the_probe_login(
    dovecot: Dovecot,
    pki: Pki,
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    password: str,
    problem: str,
    detail: str,
) -> None:
    (tmp_path / "probe").write_text(password)
    backends = {
        "servers": [{"name": "d1", "url": f"imaps://localhost:{dovecot.imaps_port}"}],
        "tls": {"ca": str(pki.ca)},
        "health": {"login": {"name": "alice", "password": {"file": "probe"}}},
    }
    assert check(write([{"backend": {}}], backends=backends), True, True) == (EXIT_PROBLEM if problem else EXIT_OK)
    out = capsys.readouterr().out
    assert password not in out
    row = json.loads(out)["connect"][-1]
    assert (row["name"], row["what"], row["ok"], row["detail"]) == ("backend d1", "probe login", not problem, detail)
    assert row["problem"].startswith(problem)


def test_a_probe_login_without_an_answer(
    slow_login: int, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "probe").write_text("ppass-55tt")
    backends = {
        "servers": [{"name": "d1", "url": f"imap://{LOOPBACK}:{slow_login}"}],
        "health": {"timeout": "100ms", "login": {"name": "probe", "password": {"file": "probe"}}},
    }
    assert check(write([{"backend": {}}], backends=backends), True, True) == EXIT_PROBLEM
    row = json.loads(capsys.readouterr().out)["connect"][-1]
    assert row["problem"] == "health.login, probe: login: no answer within health.timeout, 0.1 s"


@pytest.mark.server
def test_a_backend_with_the_wrong_certificate(
    dovecot: Dovecot, pki: Pki, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    server = {"name": "d1", "url": f"imaps://localhost:{dovecot.imaps_port}", "tls": {"name": "imap.example.org"}}
    config = write([{"backend": {}}], backends={"servers": [server], "tls": {"ca": str(pki.ca)}})
    assert check(config, True, True) == EXIT_PROBLEM
    (row,) = json.loads(capsys.readouterr().out)["connect"]
    assert row["what"] == "tls"
    told = "certificate is not for imap.example.org: it names localhost, *.test.example, 127.0.0.1, ::1"
    assert told in row["problem"]


EXPECTED = ServerCertificate(("a.example", "b.example"), datetime.now(UTC) + timedelta(days=3, hours=1))
CERTIFICATES = [
    (EXPECTED, True, "ends {}, in 3 days; names a.example, b.example"),
    (EXPECTED, False, "ends {}, in 3 days; not verified; names a.example, b.example"),
    (replace(EXPECTED, name_problem="certificate is not for c: it names a"), False,
     "ends {}, in 3 days; not verified; certificate is not for c: it names a"),
    (replace(EXPECTED, names=(), not_after=datetime.now(UTC) - timedelta(days=2)), False,
     "ended {}; not verified; names no host"),
    (ServerCertificate((), None, "no"), False, "cannot be read, not verified"),
]  # fmt: skip


@pytest.mark.parametrize(("shown", "verified", "text"), CERTIFICATES)
def test_certificates_in_words(shown: ServerCertificate, verified: bool, text: str) -> None:
    day = "" if shown.not_after is None else f"{shown.not_after:%Y-%m-%d}"
    assert connect._certificate(shown, verified=verified) == text.format(day)


ADDRESSES = [
    ("none", "ready for 10.0.0.9", "", "none is sent"),
    ("id", "ready", "", f"192.0.2.1 sent by id; {UNTOLD} (its greeting comes before the ID)"),
    ("id", "ready for 10.0.0.9", "", f"192.0.2.1 sent by id; {UNTOLD} (its greeting comes before the ID)"),
    ("id", "ready for 10.0.0.9", "192.0.2.1", "192.0.2.1 sent by id; it saw 192.0.2.1"),
    ("id", "ready for 192.0.2.1", "10.0.0.9", "192.0.2.1 sent by id; it saw 10.0.0.9"),
    ("proxy_v1", "ready", "", f"192.0.2.1 sent by proxy_v1; {UNTOLD}"),
    ("proxy_v2", "ready for 192.0.2.1", "", "192.0.2.1 sent by proxy_v2; it saw 192.0.2.1"),
    ("proxy_v2", "ready for 10.0.0.9", "", "192.0.2.1 sent by proxy_v2; it saw 10.0.0.9"),
]


@pytest.mark.parametrize(("way", "greeting", "identification", "text"), ADDRESSES)
def test_addresses_in_words(way: ClientAddress, greeting: str, identification: str, text: str) -> None:
    told = Told("IMAP4rev1 ID", None, 0.0, greeting, identification, "10.0.0.9")
    assert connect._client_address(told, way) == text


@pytest.mark.parametrize(("capability", "problem"), [("IMAP4rev1 id", ""), ("IMAP4rev1", "does not offer ID")])
def test_a_backend_that_cannot_be_told(capability: str, problem: str) -> None:
    server = Server.model_validate({"name": "d1", "url": "imap://192.0.2.1"})
    way = Way(server, "id", BackendTls(), Contexts())
    *_, row = connect._what_it_told(Told(capability, None, 0.0), way)
    assert row.what == "client address"
    assert problem in row.problem
    assert bool(row.problem) is bool(problem)
