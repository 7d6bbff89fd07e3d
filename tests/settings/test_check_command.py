from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from proxy.cli.check import check
from proxy.cli.schema import schema
from proxy.settings.reference import schema_json

SPECIAL = """
version: 1
listeners:
  - {address: "[::]:993", tls: implicit, proxy_protocol: {trusted_networks: ["10.0.0.0/8"]},
     id_address: {trusted_networks: ["10.0.0.8/32", "10.0.0.9/32"]}}
  - {address: "127.0.0.1:4190", tls: none, protocol: socketmap, trusted_networks: ["127.0.0.0/8"],
     domains: [example.org]}
tls: {certificates: [{certificate: tls.crt, private_key: tls.key}]}
identity: [{file: {path: users.yaml}}]
backends:
  client_address: id
  servers:
    - {name: d1, url: "imaps://10.0.0.11"}
    - {name: d2, url: "imaps://10.0.0.12", weight: 2, tag: gold, state: drain, client_address: proxy_v2}
    - {name: d3, url: "imaps://10.0.0.13", client_address: none}
  discovery: {dns: dovecot.mail.example, scheme: imap, port: 10143, tag: gold, weight: 3}
  health: {login: {name: probe, password: {file: master.password}}}
admin: {socket: admin.sock}
"""
SPECIAL_ROWS = (
    "listener [::]:993 tls implicit, PROXY header from 10.0.0.0/8, ID with an address from 10.0.0.8/32, 10.0.0.9/32",
    "listener 127.0.0.1:4190 socketmap tls none, for example.org, only from 127.0.0.0/8",
    "backend d1 imaps://10.0.0.11:993 weight 1, client address by id",
    "backend d2 imaps://10.0.0.12:993 weight 2, pool gold, state drain, client address by proxy_v2",
    "backend d3 imaps://10.0.0.13:993 weight 1",
    "discovery dovecot.mail.example imap port 10143 weight 3, pool gold, client address by id",
    "health login probe",
)


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
    assert ["admin", "socket", "off"] in rows
    assert not any(row[:1] == ["discovery"] or row[:2] == ["health", "login"] for row in rows)
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
    assert document["listeners"] == [
        {
            "address": "[::]:993",
            "tls": "implicit",
            "protocol": "imap",
            "trusted_networks": [],
            "domains": [],
            "proxy_protocol": None,
            "id_address": None,
            "websocket": None,
            "client_certificates": None,
        }
    ]
    assert "connect" not in document
    assert document["certificates"][0]["names"] == ["mail.example.org", "192.0.2.1"]
    assert datetime.fromisoformat(document["certificates"][0]["not_after"]) > datetime.now(UTC)
    (backend,) = document["backends"]
    assert (backend["name"], backend["url"], backend["weight"]) == ("dovecot-1", "imaps://10.0.0.11:993", 1)
    assert (document["admin"], document["metrics"]) == (None, "127.0.0.1:9142")
    assert (document["admin_socket"], document["discovery"], document["health_login"]) == (None, None, None)
    assert {"key": "timeouts.login", "value": "90s", "default": "2m"} in document["differs"]


def test_what_is_special(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good.write_text(SPECIAL)
    assert check(good, False) == 0
    out, _ = capsys.readouterr()
    assert "s3cret" not in out
    rows = [" ".join(line.split()) for line in out.splitlines()]
    for row in SPECIAL_ROWS:
        assert row in rows
    assert f"admin socket {good.with_name('admin.sock')}" in rows
    assert check(good, True) == 0
    out, _ = capsys.readouterr()
    assert "s3cret" not in out
    document = json.loads(out)
    assert (document["admin_socket"], document["health_login"]) == (str(good.with_name("admin.sock")), "probe")
    assert (document["discovery"]["dns"], document["discovery"]["scheme"]) == ("dovecot.mail.example", "imap")


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
