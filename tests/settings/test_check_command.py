from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from proxy.cli.check import check
from proxy.cli.schema import schema
from proxy.settings.reference import schema_json


@pytest.fixture
def good(folder: Path, minimal: str) -> Path:
    file = folder / "porter.yaml"
    login = "  login: {method: master, name: porter, password: {file: master.password}}\n"
    file.write_text(minimal + login + 'metrics: {address: "127.0.0.1:9142"}\ntimeouts: {login: 90s}\n')
    return file


@pytest.fixture
def bad(folder: Path, minimal: str) -> Path:
    file = folder / "porter.yaml"
    file.write_text(minimal.replace("tls.crt", '"[red]none[/red].crt"') + "log: {level: loud}\n")
    return file


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_good_settings(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(good, False) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = [line.split() for line in out.splitlines()]
    assert ["listener", "[::]:993", "tls", "implicit"] in rows
    assert ["backend", "dovecot-1", "imaps://10.0.0.11:993", "weight", "1"] in rows
    assert ["identity", "file", str(good.with_name("users.yaml"))] in rows
    assert ["login", "master"] in rows
    assert ["admin", "off"] in rows
    assert ["metrics", "127.0.0.1:9142"] in rows
    assert ["timeouts.login", "90s", "2m"] in rows
    assert "mail.example.org, 192.0.2.1  ends " in out
    assert out.endswith("porter.yaml: no mistakes\n")
    assert "s3cret" not in out


def test_good_settings_as_json(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(good, True) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "s3cret" not in out
    document = json.loads(out)
    assert document["ok"] is True
    listener = {"address": "[::]:993", "tls": "implicit", "trusted_networks": [], "client_certificates": None}
    assert document["listeners"] == [listener]
    assert "connect" not in document
    assert document["certificates"][0]["names"] == ["mail.example.org", "192.0.2.1"]
    assert datetime.fromisoformat(document["certificates"][0]["not_after"]) > datetime.now(UTC)
    assert document["backends"] == [{"name": "dovecot-1", "url": "imaps://10.0.0.11:993", "weight": 1}]
    assert (document["admin"], document["metrics"]) == (None, "127.0.0.1:9142")
    assert {"key": "timeouts.login", "value": "90s", "default": "2m"} in document["differs"]


def test_where_sources_stand(folder: Path, minimal: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "porter.yaml").write_text(
        minimal.replace("tls: implicit}", "tls: implicit, client_certificates: {ca: ca.pem, required: true}}").replace(
            "  - file: {path: users.yaml}\n",
            """\
  - ldap: {urls: ["ldaps://a.example", "ldaps://b.example:3636"], user_dn: "uid={name},dc=example"}
  - oauth: {issuer: "https://id.example", audience: imap}
  - oauth:
      audience: imap
      introspection: {url: "https://id.example/ask?key=k3y", client_id: porter, client_secret: {file: master.password}}
  - http: {url: "http://127.0.0.1:9000/auth?key=k3y"}
""",
        )
        + "  login: {method: master, name: porter, password: {file: master.password}}\n"
    )
    assert check(folder / "porter.yaml", False) == 0
    out, _ = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert ["identity", "ldap", "ldaps://a.example", "ldaps://b.example:3636"] in rows
    assert ["identity", "oauth", "https://id.example"] in rows
    assert ["identity", "oauth", "https://id.example/ask"] in rows
    assert ["identity", "http", "http://127.0.0.1:9000/auth"] in rows
    assert "[::]:993  tls implicit, client certificates required, by san.email" in out


def test_mistakes(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(bad, False) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f'{bad}:4: tls.certificates[0].certificate: no such file: "[red]none[/red].crt"',
        f'{bad}:10: log.level: expected debug, info, warning or error, not "loud"',
        "2 mistakes",
    ]


def test_mistakes_as_json(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(bad, True) == 1
    out, err = capsys.readouterr()
    assert err == ""
    document = json.loads(out)
    assert document["ok"] is False
    assert document["mistakes"][1] == {
        "file": str(bad),
        "line": 10,
        "key": "log.level",
        "problem": 'expected debug, info, warning or error, not "loud"',
    }


def test_mistakes_of_a_users_file(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    users = good.with_name("users.yaml")
    users.write_text(users.read_text() + "bob@example.org:\n  hash: x\n  backend: dovecot-9\n")
    assert check(good, False) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"{users}:3: bob@example.org.hash: not an argon2id hash; `imap-porter hash-password` makes one",
        f'{users}:4: bob@example.org.backend: no such backend: "dovecot-9"; backends.servers has dovecot-1',
        "2 mistakes",
    ]
    assert check(good, True) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert [(each["file"], each["line"], each["key"]) for each in document["mistakes"]] == [
        (str(users), 3, "bob@example.org.hash"),
        (str(users), 4, "bob@example.org.backend"),
    ]


@pytest.mark.parametrize(("days", "words"), [(-2, "ended "), (5, "in 4 days"), (90, "in 89 days")])
def test_end_of_a_certificate(good: Path, capsys: pytest.CaptureFixture[str], days: int, words: str) -> None:
    now = datetime.now(UTC)
    issued = trustme.CA().issue_cert(
        "b.example", not_before=now - timedelta(days=9), not_after=now + timedelta(days=days)
    )
    issued.cert_chain_pems[0].write_to_path(good.with_name("tls.crt"))
    issued.private_key_pem.write_to_path(good.with_name("tls.key"))
    assert check(good, False) == 0
    assert words in capsys.readouterr().out


def test_nothing_differs(folder: Path, minimal: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "porter.yaml").write_text(minimal)
    assert check(folder / "porter.yaml", False) == 0
    assert "differs from the default" not in capsys.readouterr().out


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    schema()
    assert capsys.readouterr().out == schema_json()
