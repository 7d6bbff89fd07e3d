"""`imap-porter test-login` where no server is needed: what sources say, what it comes to, what is shown of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from proxy.auth.passwords import Parameters, hash_password
from proxy.auth.scram_keys import make_scram_keys, scram_text
from proxy.cli.main import app
from proxy.cli.terminal import EXIT_INTERRUPTED, EXIT_SETTINGS
from proxy.cli.test_login import EXIT_REFUSED, EXIT_UNAVAILABLE, try_login
from tests.servers.ports import LOOPBACK

Write = Callable[..., Path]
Piped = Callable[[bytes], None]
Try = Callable[..., tuple[int, dict[str, Any]]]

SECRET = b"secret-5v1k"
OTHER_SECRET = b"other-8s3d"
FIRST = {"file": {"path": "users.yaml"}}
KEYED = {"file": {"path": "keyed.yaml"}}
SECOND = {"file": {"path": "more.yaml"}}
MASTER = {"login": {"method": "master", "name": "porter", "password": {"file": "master"}}}
# All of it would change a terminal, or vanish as markup.
HOSTILE = "[red]\x1b]0;owned\x07\x1b[31m\u202e\x9b2J\r\n[/red]"


def cheap_hash(secret: bytes) -> str:
    return hash_password(secret, Parameters(memory_kib=8, time=1, parallelism=1))


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    users = {
        "ann": {"hash": cheap_hash(SECRET), "backend": "d1", "attributes": {"department": HOSTILE}},
        "both": {"hash": cheap_hash(SECRET)},
    }
    keyed = users | {"keys": {"scram": scram_text(make_scram_keys(SECRET, 4096))}}
    more = {"both": {"hash": cheap_hash(OTHER_SECRET)}, "late": {"hash": cheap_hash(SECRET)}}
    (tmp_path / "users.yaml").write_text(yaml.safe_dump(users))
    (tmp_path / "keyed.yaml").write_text(yaml.safe_dump(keyed))
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(more))
    (tmp_path / "master").write_text("mpass-2x9q\n")


@pytest.fixture
def outage(dead_port: int) -> dict[str, Any]:
    """A source that never can say."""
    return {"http": {"url": f"http://{LOOPBACK}:{dead_port}/auth"}}


@pytest.fixture
def log_in(piped: Piped, capsys: pytest.CaptureFixture[str]) -> Try:
    """Try one and give the exit status and what was printed as JSON; no secret is in it."""

    def run(
        config: Path, name: str, secret: bytes = SECRET, mechanism: str = "LOGIN", *, ask_all: bool = False
    ) -> tuple[int, dict[str, Any]]:
        piped(secret + b"\n")
        status = try_login(name, mechanism, "192.0.2.7", config, ask_all=ask_all, json_output=True)
        out, err = capsys.readouterr()
        assert out.isascii()
        assert secret.decode() not in out + err
        return status, json.loads(out)

    return run


def answers(document: dict[str, Any]) -> dict[str, str]:
    return {row["source"]: row["answer"] for row in document["sources"]}


def whys(document: dict[str, Any]) -> dict[str, str]:
    return {row["source"]: row["why"] for row in document["sources"]}


# Secret and name, then what each source answers, the outcome and the exit status. The backend is dead.
CASES = [
    ("right", "ann", SECRET, ["yes", "not asked"], "unavailable", EXIT_UNAVAILABLE),
    ("wrong", "ann", b"wrong-1q2w", ["no", "not asked"], "authentication_failed", EXIT_REFUSED),
    ("the first that knows the name decides", "both", OTHER_SECRET, ["no", "not asked"], "authentication_failed", 2),
    ("the second knows the name", "late", SECRET, ["not mine", "yes"], "unavailable", EXIT_UNAVAILABLE),
    ("nobody knows it", "nobody", SECRET, ["not mine", "not mine"], "authentication_failed", EXIT_REFUSED),
    ("no name", "a*b", SECRET, ["not asked", "not asked"], "authentication_failed", EXIT_REFUSED),
]


@pytest.mark.parametrize(("what", "name", "secret", "said", "outcome", "status"), CASES, ids=[row[0] for row in CASES])
def test_what_sources_say(
    what: str, name: str, secret: bytes, said: list[str], outcome: str, status: int, write: Write, log_in: Try
) -> None:
    found, document = log_in(write([FIRST, SECOND]), name, secret)
    assert (found, document["outcome"]) == (status, outcome)
    assert list(answers(document).values()) == said
    assert (document["identity"] is None) == ("yes" not in said)


def test_an_outage_outweighs_a_later_no(outage: dict[str, Any], write: Write, log_in: Try) -> None:
    config = write([outage, FIRST])
    status, document = log_in(config, "ann", b"wrong-1q2w")
    assert (status, document["outcome"]) == (EXIT_UNAVAILABLE, "unavailable")
    assert answers(document) == {"http": "can't say now", "file": "no"}
    assert document["reply"] == "NO [UNAVAILABLE] Account is temporarily unavailable."
    status, document = log_in(config, "ann")
    assert answers(document) == {"http": "can't say now", "file": "yes"}
    assert document["identity"]["source"] == "file"


def test_all_sources(write: Write, log_in: Try) -> None:
    config = write([FIRST, SECOND])
    status, document = log_in(config, "both", OTHER_SECRET)
    assert whys(document)["file-2"] == "file has answered"
    status, document = log_in(config, "both", OTHER_SECRET, ask_all=True)
    assert status == EXIT_REFUSED
    assert answers(document) == {"file": "no", "file-2": "yes"}
    assert [row["counts"] for row in document["sources"]] == [True, False]
    assert document["identity"] is None
    # What is no name is shown to nobody.
    status, document = log_in(config, "a*b", ask_all=True)
    assert answers(document) == {"file": "not asked", "file-2": "not asked"}


def test_sources_that_cannot_judge(outage: dict[str, Any], dead_port: int, write: Write, log_in: Try) -> None:
    issuer = {"oauth": {"issuer": f"http://{LOOPBACK}:{dead_port}", "audience": "imap"}}
    config = write([FIRST, issuer, outage], backends=MASTER)
    status, document = log_in(config, "ann", b"opaque-4t6y", "XOAUTH2", ask_all=True)
    assert answers(document) == {"file": "not asked", "oauth": "not mine", "http": "not asked"}
    assert whys(document)["file"] == "it cannot judge XOAUTH2"
    assert status == EXIT_REFUSED


@pytest.mark.parametrize(
    ("name", "secret", "said", "outcome"),
    [
        ("keys", SECRET, "yes", "unavailable"),
        ("keys", b"wrong-1q2w", "no", "authentication_failed"),
        ("ann", SECRET, "no", "authentication_failed"),
        ("nobody", SECRET, "not mine", "authentication_failed"),
    ],
)
def test_scram_keys(name: str, secret: bytes, said: str, outcome: str, write: Write, log_in: Try) -> None:
    _, document = log_in(write([KEYED], backends=MASTER), name, secret, "SCRAM-SHA-256")
    assert (answers(document), document["outcome"]) == ({"file": said}, outcome)
    assert (document["route"] is None) == (said != "yes")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ann", "it knows the name and has no SCRAM keys for it"),
        ("keys", "the password does not fit its SCRAM keys"),
    ],
)
def test_scram_has_one_reason(name: str, why: str, write: Write, log_in: Try) -> None:
    config = write([SECOND, KEYED], backends=MASTER)
    _, document = log_in(config, name, b"wrong-1q2w", "SCRAM-SHA-256")
    assert (whys(document)["file-2"], document["detail"]) == (why, f"file-2: {why}")
    _, document = log_in(config, "nobody", b"wrong-1q2w", "SCRAM-SHA-256")
    told = whys(document)
    assert document["detail"] == f"file: {told['file']}; file-2: {told['file-2']}"


def test_mechanisms_on_the_command_line(write: Write) -> None:
    config = str(write([FIRST]))
    run = CliRunner().invoke
    refused = run(app, ["test-login", "ann", "-c", config, "--mechanism", "FOO"], env={"COLUMNS": "200"})
    assert refused.exit_code == 2
    assert "'FOO' is not one of LOGIN, PLAIN, XOAUTH2, OAUTHBEARER, EXTERNAL, SCRAM-SHA-256." in refused.output
    assert "Value error" not in refused.output
    tried = run(app, ["test-login", "ann", "-c", config, "--mechanism", "plain", "--json"], input=SECRET)
    assert json.loads(tried.stdout)["mechanism"] == "PLAIN"


def test_the_backends_reply(write: Write, log_in: Try, dead_port: int) -> None:
    _, document = log_in(write([FIRST]), "ann")
    assert document["route"] == {"backend": "d1", "why": "override"}
    backend = document["backend"]
    assert (backend["name"], backend["ok"], backend["step"]) == ("d1", False, "connect")
    assert f"{LOOPBACK}:{dead_port}" in backend["detail"]
    assert document["identity"] == {
        "name": "ann",
        "source": "file",
        "backend": "d1",
        "attributes": {"department": HOSTILE},
        "verified": True,
        "expires": None,
        "backend_password": False,
    }
    _, document = log_in(write([{"backend": {}}]), "Ann")
    assert (document["name"], document["route"]["why"]) == ("ann", "hash")
    assert whys(document) == {"backend": "the backend decides"}


def test_the_deadline_of_the_whole_login(mute_port: int, write: Write, log_in: Try) -> None:
    config = write(
        [{"backend": {}}],
        backends={"servers": [{"name": "d1", "url": f"imap://{LOOPBACK}:{mute_port}"}]},
        timeouts={"login": "200ms"},
        limits={"failed_login_delay": "0s"},
    )
    status, document = log_in(config, "ann")
    assert (status, document["outcome"]) == (EXIT_UNAVAILABLE, "login_timeout")
    assert document["reply"] == "* BYE Not logged in within the time allowed."
    assert document["detail"] == "not done within timeouts.login, 200ms"
    assert (document["route"]["backend"], document["backend"]) == ("d1", None)


@pytest.mark.parametrize(
    ("mechanism", "problem"),
    [
        ("XOAUTH2", "no identity source can judge it"),
        ("EXTERNAL", "no listener has client_certificates"),
        ("SCRAM-SHA-256", "backends.login.method master or authzid"),
    ],
)
def test_what_clients_are_not_offered(
    mechanism: str, problem: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    # Standard input is pytest's own and cannot be read: the secret is not asked for.
    assert try_login("ann", mechanism, LOOPBACK, write([FIRST]), ask_all=False, json_output=False) == EXIT_REFUSED
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{mechanism} is not offered" in err
    assert problem in err


def test_shown_to_people(write: Write, piped: Piped, capsys: pytest.CaptureFixture[str]) -> None:
    piped(SECRET)
    status = try_login("Ann", "PLAIN", LOOPBACK, write([FIRST, SECOND]), ask_all=True, json_output=False)
    assert status == EXIT_UNAVAILABLE
    out, err = capsys.readouterr()
    assert err == ""
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["canonical", "name", "ann"]
    assert ["source", "answer", "ms"] in rows
    answered = next(row for row in rows if row[:2] == ["file", "yes"])
    assert answered[2].isdigit()
    assert answered[3] == "ann"
    assert next(row for row in rows if row[:1] == ["file-2"])[1:3] == ["not", "mine"]
    assert "identity     ann, from file" in out
    assert 'backend      d1, named by source file ("d1")' in out
    assert "its reply    unavailable, at connect: cannot connect to" in out
    assert "client gets  NO [UNAVAILABLE] Account is temporarily unavailable." in out


def test_foreign_text_neither_acts_nor_vanishes(write: Write, piped: Piped, capsys: pytest.CaptureFixture[str]) -> None:
    piped(SECRET)
    try_login("ann", "LOGIN", LOOPBACK, write([FIRST]), ask_all=False, json_output=False)
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.split("\n"))
    assert r"department: [red]\x1b]0;owned\x07\x1b[31m\u202e\x9b2J\r\n[/red]" in out
    piped(SECRET)
    try_login(HOSTILE, "LOGIN", LOOPBACK, write([FIRST]), ask_all=False, json_output=False)
    assert all(line.isprintable() for line in capsys.readouterr().out.split("\n"))


def test_a_hostile_backend(
    hostile_backend: int, write: Write, piped: Piped, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(SECRET)
    config = write([FIRST], backends={"servers": [{"name": "d1", "url": f"imap://{LOOPBACK}:{hostile_backend}"}]})
    assert try_login("ann", "LOGIN", LOOPBACK, config, ask_all=False, json_output=False) == EXIT_REFUSED
    out, err = capsys.readouterr()
    assert all(line.isprintable() for line in (out + err).split("\n"))
    assert "its reply    authentication_failed, at login: " in out
    assert "[red]" in out


def test_mistakes_in_the_settings(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config = write([{"file": {"path": "none.yaml"}}])
    assert try_login("ann", "LOGIN", LOOPBACK, config, ask_all=False, json_output=False) == EXIT_SETTINGS
    out, err = capsys.readouterr()
    assert out == ""
    assert "identity[0].file.path: no such file" in err
    assert try_login("ann", "LOGIN", LOOPBACK, config, ask_all=False, json_output=True) == EXIT_SETTINGS
    out, err = capsys.readouterr()
    assert (json.loads(out)["ok"], err) == (False, "")


def test_no_secret(
    write: Write, piped: Piped, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(b"\n")
    assert try_login("ann", "LOGIN", LOOPBACK, write([FIRST]), ask_all=False, json_output=False) == EXIT_REFUSED
    out, err = capsys.readouterr()
    assert (out, err) == ("", "The password is empty.\n")

    def interrupted(*arguments: object, **options: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr("proxy.cli.test_login.read_secret", interrupted)
    assert try_login("ann", "LOGIN", LOOPBACK, write([FIRST]), ask_all=False, json_output=False) == EXIT_INTERRUPTED
