"""A new generation takes over, or nothing changes at all."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.app import renewal
from proxy.app.changes import changed_keys
from proxy.app.succession import Patience
from proxy.settings.models import Settings
from tests.app.master.stage import Caller, Mastered, refuses, settings_of, who_answers
from tests.servers.ports import LOOPBACK, Ports

Start = Callable[..., Mastered]
Call = Callable[[int | str], Caller]

AGED_SECONDS = 1.5  # what has changed within the last second counts as changed while it was read


def test_new_clients_go_to_the_new_and_sessions_stay_with_the_old(master: Start, port: int, call: Call) -> None:
    running = master(settings_of(port))
    running.wait_for("master.started")
    caller = call(port)
    name = caller.name()
    line = running.reload(settings_of(port, timeouts={"old_generation": "7m"}))
    assert (line["generation"], line["changed"]) == (2, ["timeouts.old_generation"])
    assert who_answers(port) == {"w2.0", "w2.1"}
    assert caller.is_heard()
    other = {"w1.0": "w1.1", "w1.1": "w1.0"}[name]
    running.wait_for("process.ended", process=other)
    assert running.heard(name) == [["accept"], ["retire", 420.0]]
    # The old steward has handed over before the new one began, who knows the workers of both generations.
    running.wait_for("process.ended", process="s1")
    assert running.heard("s1") == [["begin"], ["hand_over"]]
    assert running.wait_for("fake.begun", process="s2")[0]["history"] == ["s1"]
    assert running.log("fake.steward", process="s2")[0]["links"] == ["w1.0", "w1.1", "w2.0", "w2.1"]
    # A worker of an old generation is not replaced.
    running.kill(name)
    running.wait_for("process.died", process=name)
    running.wait_for("fake.link_ended", worker=name)
    assert sorted(running.pids()) == ["s2", "w2.0", "w2.1"]
    running.reload()
    assert running.wait_for("fake.begun", process="s3")[0]["history"] == ["s1", "s2"]
    assert running.stop() == 0
    assert running.log("process.restarted") == []


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (3, 1), (1, 3)])
def test_workers_grow_and_shrink(master: Start, port: int, before: int, after: int) -> None:
    running = master(settings_of(port, workers=before))
    running.wait_for("master.started")
    assert who_answers(port, 80) == {f"w1.{index}" for index in range(before)}
    running.reload(settings_of(port, workers=after))
    assert who_answers(port, 80) == {f"w2.{index}" for index in range(after)}
    held = {line["process"]: line["sockets"] for line in running.log("fake.worker")}
    assert sum(held[f"w2.{index}"] for index in range(after)) == max(before, after)
    running.reload(settings_of(port, workers=before))
    assert who_answers(port, 80) == {f"w3.{index}" for index in range(before)}


def test_listeners_come_and_go(master: Start, ports: Ports) -> None:
    here, there = ports.take(), ports.take()
    running = master(settings_of(here))
    running.wait_for("master.started")
    line = running.reload(settings_of(there))
    assert line["changed"] == ["listeners[0].address"]
    assert who_answers(there) == {"w2.0", "w2.1"}
    running.wait_for("process.ended", process="w1.1")
    running.wait_for("process.ended", process="w1.0")
    assert refuses(here)
    # What the other generation had left is there to be had again.
    running.reload(settings_of(here))
    assert who_answers(here) == {"w3.0", "w3.1"}


MISTAKES = [
    ("a key that nobody knows", {"worker": 3}, "worker: unknown setting"),
    ("a user that nobody knows", {"user": "nobody-knows-him"}, 'user: this machine has no user "nobody-knows-him"'),
    ("an address of elsewhere", {"metrics": {"address": "192.0.2.1:1"}}, "metrics.address: cannot listen on 192.0.2.1"),
]


@pytest.mark.parametrize(("name", "changes", "told"), MISTAKES)
def test_mistakes_change_nothing(master: Start, port: int, name: str, changes: dict[str, object], told: str) -> None:
    running = master(settings_of(port))
    running.wait_for("master.started")
    line = running.reload(settings_of(port, **changes), "settings.rejected")
    assert any(told in mistake for mistake in line["mistakes"]), line
    assert who_answers(port) == {"w1.0", "w1.1"}
    assert sorted(running.pids()) == ["s1", "w1.0", "w1.1"]
    running.reload(settings_of(port))  # and all is well again
    assert who_answers(port) == {"w2.0", "w2.1"}
    assert running.stop() == 0


def test_an_address_that_somebody_else_has(master: Start, ports: Ports) -> None:
    here, there = ports.take(), ports.take()
    running = master(settings_of(here))
    running.wait_for("master.started")
    with socket.create_server((LOOPBACK, there)):
        line = running.reload(settings_of(there), "settings.rejected")
    assert line["mistakes"] == [f"cannot listen on {LOOPBACK}:{there}: Address already in use"]
    assert who_answers(here) == {"w1.0", "w1.1"}


FAILURES = [
    ("a worker crashes", {"w2.1": ["crash"]}, "worker w2.1 ended before it was ready: exit status 1"),
    ("the steward crashes", {"s2": ["crash"]}, "steward s2 ended before it was ready: exit status 1"),
    ("a worker does not get ready", {"w2.0": ["never ready"]}, "not ready after 0.5 s: w2.0"),
]


@pytest.mark.parametrize(("name", "orders", "told"), FAILURES)
def test_processes_that_do_not_begin_change_nothing(
    master: Start, ports: Ports, call: Call, name: str, orders: dict[str, list[str]], told: str
) -> None:
    here, there = ports.take(), ports.take()
    running = master(settings_of(here), patience=Patience(ready=0.5))
    running.wait_for("master.started")
    caller = call(here)
    assert caller.name()
    running.order(orders)
    line = running.reload(settings_of(there, workers=4), "settings.reload_failed")
    assert line["reason"] == told
    running.wait_until(lambda: sorted(running.pids()) == ["s1", "w1.0", "w1.1"], "the old ones alone")
    assert who_answers(here) == {"w1.0", "w1.1"}
    assert refuses(there)
    assert caller.is_heard()
    # The old ones are still looked after, by the old settings.
    running.kill("w1.0")
    running.wait_for("process.restarted", process="w1.0.2")
    running.order({})
    assert running.reload()["generation"] == 3
    assert running.stop() == 0


def test_who_dies_meanwhile_does_not_hold_it_up(master: Start, port: int) -> None:
    """A worker and the steward of before die while the heirs get ready; what is born then is known to all."""
    running = master(settings_of(port), patience=Patience(ready=5.0))
    running.wait_for("master.started")
    running.order({"w2.0": ["never ready"]})
    running.send(signal.SIGHUP)
    running.wait_for("fake.steward", process="s2")
    running.kill("w1.0")
    running.wait_until(lambda: ["accept"] in running.heard("w1.0.2"), "a worker who accepts")
    running.wait_until(lambda: ["worker", "w1.0.2"] in running.heard("s2"), "an heir who knows him")
    running.kill("s1")
    running.wait_for("fake.begun", 2, process="s1")
    assert running.log("fake.steward", process="s1")[1]["links"] == ["w1.0.2", "w1.1"]
    assert running.log("fake.begun", process="s2") == []
    running.kill("w2.1")
    running.wait_for("settings.reload_failed")
    assert who_answers(port) == {"w1.0.2", "w1.1"}
    assert running.stop() == 0


def test_a_steward_who_keeps_what_he_knows(master: Start, port: int) -> None:
    running = master(settings_of(port), orders={"s1": ["keep it"]})
    running.wait_for("master.started")
    running.reload()
    assert running.wait_for("fake.begun", process="s2")[0]["history"] == []
    assert running.wait_for("process.died", process="s1")[0]["how"] == "signal 9"
    assert who_answers(port) == {"w2.0", "w2.1"}
    assert running.stop() == 0


def test_the_end_comes_before_the_heirs(master: Start, port: int) -> None:
    running = master(settings_of(port), orders={"w2.0": ["never ready"]})
    running.wait_for("master.started")
    running.send(signal.SIGHUP)
    running.wait_for("process.started", process="s2")
    assert running.stop() == 0
    assert running.heard("w1.0")[-1][0] == "drain"
    assert {line["process"] for line in running.log("process.died")} <= {"s2", "w2.0", "w2.1"}


def test_reloads_queue_up(master: Start, port: int) -> None:
    running = master(settings_of(port, workers=1))
    running.wait_for("master.started")
    for _ in range(5):
        running.send(signal.SIGHUP)
    running.wait_until(lambda: len(running.pids()) == 2 and "s1" not in running.pids(), "a new generation")
    assert running.stop() == 0


@pytest.fixture
def admin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "admin"


def test_whoever_asks_is_answered_before_the_steward_leaves(master: Start, port: int, admin: Path, call: Call) -> None:
    settings = settings_of(port, admin={"socket": str(admin)})
    running = master(settings)
    running.wait_for("master.started")

    def ask() -> str:
        caller = call(str(admin))
        caller.line()
        caller.socket.sendall(b"reload\n")
        return caller.line()

    assert ask() == "True generation 2; changed: nothing"
    running.wait_for("fake.begun", process="s2")
    running.write({**settings, "workers": 0})
    refused = ask()
    assert refused.startswith(f"False {running.config}:")
    assert "workers: expected auto or a number" in refused
    running.write(settings)
    running.order({"w3.0": ["crash"]})
    assert ask() == "False worker w3.0 ended before it was ready: exit status 1"
    assert running.stop() == 0
    assert not admin.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_admin_socket_is_the_users(master: Start, port: int, admin: Path) -> None:
    running = master(settings_of(port, user="nobody", admin={"socket": str(admin)}))
    running.wait_for("master.started")
    assert admin.stat().st_uid == 65534
    assert admin.stat().st_mode & 0o777 == 0o600


def test_files_that_change_are_handed_over(master: Start, port: int, tmp_path: Path) -> None:
    """To all who live; what is refused to nobody who comes later, and that is told once."""
    hashed = "$argon2id$v=19$m=65536,t=3,p=4$HkA/zSL2W0qjZNjG7qMXMw$3/9eBlhXj8hzpHI6P6TwKBVfjUyj+v7TJmpMROiHq5Q"
    users = tmp_path / "users.yaml"
    users.write_text(yaml.safe_dump({"ann@example.org": {"hash": hashed}}))
    settings = settings_of(port, identity=[{"file": {"path": "users.yaml"}}])
    time.sleep(AGED_SECONDS)
    running = master(settings, orders={"w1.0": ["refuse files"], "w1.1": ["refuse files"]})
    running.wait_for("master.started")
    text = yaml.safe_dump({"bob@example.org": {"hash": hashed}})
    users.write_text(text)
    lines = running.wait_for("fake.file", 3, text=text)
    assert {(line["process"], line["path"]) for line in lines} == {
        (name, str(users)) for name in ("w1.0", "w1.1", "s1")
    }
    running.wait_for("files.rejected")
    running.kill("s1")
    running.wait_for("process.restarted", role="steward")
    running.wait_until(lambda: running.heard("s1").count(["begin"]) == 2, "a steward who begins")
    assert len(running.log("fake.file", process="s1")) == 1, "what was refused is nothing for newcomers"
    assert len(running.log("files.rejected")) == 1
    time.sleep(AGED_SECONDS)
    running.reload()
    running.kill("w2.0")
    running.wait_for("process.restarted", process="w2.0.2")
    running.wait_until(lambda: ["accept"] in running.heard("w2.0.2"), "a worker who accepts")
    assert running.log("fake.file", process="w2.0.2") == []  # whose settings were read with the new file


CHANGES = [
    ("nothing", {}, []),
    ("one value", {"workers": 3}, ["workers"]),
    ("a value of a section in a list", {"backends": {"servers": [{"name": "a", "url": "imap://h:2"}]}},
     ["backends.servers[0].url"]),
    ("a longer list", {"backends": {"servers": [{"name": "a", "url": "imap://h:1"}, {"name": "b", "url": "imap://i"}]}},
     ["backends.servers"]),
    ("a section that was absent", {"backends": {"servers": [{"name": "a", "url": "imap://h:1"}],
                                                "discovery": {"dns": "d.example.org"}}}, ["backends.discovery"]),
    ("several", {"timeouts": {"drain": "1s", "idle": "45m"}, "user": "nobody"},
     ["user", "timeouts.idle", "timeouts.drain"]),
    ("a list of plain values", {"limits": {"exempt_networks": ["10.0.0.0/8"]}}, ["limits.exempt_networks"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "keys"), CHANGES)
def test_changed_keys(tmp_path: Path, name: str, changes: dict[str, object], keys: list[str]) -> None:
    before = settings_of(1143, backends={"servers": [{"name": "a", "url": "imap://h:1"}]})
    one, other = (
        Settings.model_validate(value, context={"folder": tmp_path}) for value in (before, {**before, **changes})
    )
    assert changed_keys(one, other) == keys


def test_a_changed_secret_is_told_by_its_key_alone(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    found = []
    for word in ("sesame", "mellon"):
        secret.write_text(word)
        login = {"method": "master", "name": "porter", "password": {"file": str(secret)}}
        servers = [{"name": "a", "url": "imap://h:1"}]
        value = settings_of(1143, backends={"servers": servers, "login": login})
        found.append(Settings.model_validate(value, context={"folder": tmp_path}))
    assert changed_keys(*found) == ["backends.login.password"]


def test_a_bug_in_reading_settings_ends_nothing(master: Start, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = renewal.preflight

    def flawed(settings: Settings, config: Path) -> None:
        if settings.workers == 3:
            raise RuntimeError("a bug")
        real(settings, config)

    monkeypatch.setattr(renewal, "preflight", flawed)
    running = master(settings_of(port))
    running.wait_for("master.started")
    line = running.reload(settings_of(port, workers=3), "settings.reload_failed")
    assert line["reason"] == "a bug: see the log"
    assert "RuntimeError: a bug" in running.log("settings.reload_crashed")[0]["traceback"]
    assert who_answers(port) == {"w1.0", "w1.1"}
    running.reload(settings_of(port, workers=1))
    assert who_answers(port) == {"w2.0"}  # nobody of the one that failed was ever named
    assert running.stop() == 0


def test_the_steward_hears_of_status_and_figures(master: Start, port: int) -> None:
    running = master(settings_of(port))
    running.wait_for("master.started")
    running.kill("w1.0")
    running.wait_for("process.restarted")
    running.reload(settings_of(port, workers=0), "settings.rejected")

    def told(kind: str) -> list[Any]:
        messages = [line["message"] for line in running.log("fake.heard", process="s1")]
        return [message[1] for message in messages if message[0] == kind]

    running.wait_until(lambda: bool(told("status")) and told("status")[-1]["last_reload"] != {}, "a status")
    status = told("status")[-1]
    assert status["generation"] == 1
    assert status["pid"] == running.pid
    rows = [(row["process"], row["role"], row["state"], row["restarts"]) for row in status["processes"]]
    assert sorted(rows) == [
        ("s1", "steward", "accepting", 0),
        ("w1.0.2", "worker", "accepting", 1),
        ("w1.1", "worker", "accepting", 0),
    ]
    assert status["last_reload"]["result"] == "rejected"
    assert "workers: expected auto or a number" in status["last_reload"]["text"]
    figures = {(name, *labels): value for change in told("metrics") for name, labels, value, *_ in change}
    assert figures["porter_reloads_total", "rejected"] == 1
    assert figures["porter_process_restarts_total", "worker"] == 1
    assert figures["porter_settings_last_reload_timestamp_seconds",] > 1_700_000_000
