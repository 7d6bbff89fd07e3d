"""What a service manager does with us: it opens sockets, listens to us, replaces the program."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy.app.notify import Notifier
from proxy.app.upgrade import Inheritance, check_command, inherited
from tests.app.master.stage import Caller, Mastered, settings_of, who_answers
from tests.servers.ports import LOOPBACK, Ports

Start = Callable[..., Mastered]
Call = Callable[[int | str], Caller]


@pytest.fixture
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path_factory.mktemp("systemd") / "notify"))
        sock.settimeout(10)
        yield sock


def hear(manager: socket.socket) -> dict[str, str]:
    lines = manager.recv(4096).decode().splitlines()
    return dict(line.split("=", 1) for line in lines)


def hear_until(manager: socket.socket, key: str) -> dict[str, str]:
    """What is said up to and with this key, pings left out."""
    while True:
        said = hear(manager)
        if key in said:
            return said
        assert said == {"WATCHDOG": "1"}


# --- notifications ---


def test_every_turn_of_life_is_told(master: Start, port: int, manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": manager.getsockname()}
    running = master(settings_of(port), environment=environment)
    assert hear(manager) == {"READY": "1", "STATUS": "serving, generation 1, 2 workers"}
    before = time.monotonic_ns() // 1000
    running.reload()
    said = hear(manager)
    assert said["RELOADING"] == "1"
    assert before <= int(said["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert hear(manager) == {"READY": "1", "STATUS": "serving, generation 2, 2 workers"}
    running.reload(settings_of(port, workers=0), "settings.rejected")
    assert hear(manager)["RELOADING"] == "1"
    said = hear(manager)
    assert said["READY"] == "1"
    assert said["STATUS"].startswith("the settings were not reloaded: ")
    running.stop()
    # drain, and what is beyond it in these tests
    assert hear(manager) == {"STOPPING": "1", "STATUS": "draining", "EXTEND_TIMEOUT_USEC": "31000000"}


def test_the_watchdog_is_fed(master: Start, port: int, manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "400000"}
    master(settings_of(port), environment=environment)
    hear_until(manager, "READY")
    for _ in range(3):
        assert hear(manager) == {"WATCHDOG": "1"}


WATCHDOGS = [
    ({}, None),
    ({"WATCHDOG_USEC": "30000000"}, 15.0),
    ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
    ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
    ({"WATCHDOG_USEC": "soon"}, None),
]


@pytest.mark.parametrize(("environment", "seconds"), WATCHDOGS)
def test_how_often_it_is_fed(environment: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environment).ping_seconds == seconds


def test_an_abstract_address() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"imap-porter-test-{os.getpid()}"
        sock.bind("\0" + name)
        sock.settimeout(5)
        Notifier({"NOTIFY_SOCKET": "@" + name}).status("well")
        assert sock.recv(100) == b"STATUS=well"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nowhere/notify"}])
def test_nobody_listens(environment: dict[str, str]) -> None:
    Notifier(environment).ready("well")


# --- sockets that it has opened ---


def test_a_given_socket_is_shared_by_all_workers(master: Start, ports: Ports, call: Call) -> None:
    given, own = ports.take(), ports.take()
    settings = settings_of(own)
    settings["listeners"] = [
        {**settings["listeners"][0], "address": f"{LOOPBACK}:{given}"},
        {**settings["listeners"][0], "address": f"{LOOPBACK}:{own}"},
    ]
    with socket.create_server((LOOPBACK, given)) as sock:
        waiting = call(given)  # before we are started at all
        running = master(settings, descriptors=[sock])
    running.wait_for("master.started")
    assert waiting.name() in ("w1.0", "w1.1")
    assert [line["sockets"] for line in running.log("fake.worker")] == [2, 2]
    assert who_answers(own) == {"w1.0", "w1.1"}
    # It stays, even while no setting names it.
    running.reload(settings_of(own))
    late = call(given)
    running.reload({**settings, "workers": 3})
    assert late.name().startswith("w3.")
    assert running.log("sockets.given_in_vain") == []
    assert running.stop() == 0


def test_given_sockets_of_every_kind(master: Start, ports: Ports, call: Call, tmp_path: Path) -> None:
    """One for administrators, one that no setting names, one that is of no use."""
    port, strange = ports.take(), ports.take()
    path = tmp_path / "admin"
    with (
        socket.socket(socket.AF_UNIX) as admin,
        socket.create_server((LOOPBACK, strange)) as unnamed,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as useless,
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as everywhere,
    ):
        admin.bind(str(path))
        admin.listen()
        settings = settings_of(port, admin={"socket": str(path)})
        settings["listeners"].append({**settings["listeners"][0], "address": f"[::]:{everywhere.getsockname()[1]}"})
        running = master(settings, descriptors=[admin, unnamed, useless, everywhere])
        running.wait_for("master.started")
        vain = [(line["descriptor"], line["address"]) for line in running.log("sockets.given_in_vain")]
        assert vain == [(4, f"{LOOPBACK}:{strange}"), (5, "")]
        assert call(everywhere.getsockname()[1]).name() in ("w1.0", "w1.1")
        assert call(str(path)).name() == "s1"
        assert running.stop() == 0
    assert path.exists()  # it is the service manager's


def test_sockets_for_somebody_else_are_not_touched(master: Start, port: int) -> None:
    running = master(settings_of(port), environment={"LISTEN_PID": "1", "LISTEN_FDS": "2"})
    running.wait_for("master.started")
    assert running.log("sockets.given_in_vain") == []


# --- a new program ---


def test_an_upgrade_keeps_process_sockets_and_sessions(
    master: Start, port: int, manager: socket.socket, tmp_path_factory: pytest.TempPathFactory, call: Call
) -> None:
    path = tmp_path_factory.mktemp("run") / "admin"
    settings = settings_of(port, admin={"socket": str(path)})
    running = master(settings, executed=True, environment={"NOTIFY_SOCKET": manager.getsockname()})
    running.wait_for("master.started")
    running.kill("w1.1")
    running.wait_until(lambda: ["accept"] in running.heard("w1.1.2"), "a worker who accepts")
    caller = call(port)
    name = caller.name()
    before = running.pids()
    running.send(signal.SIGUSR2)
    line = running.wait_for("master.upgraded")[0]
    assert (line["pid"], line["generation"]) == (running.pid, 2)
    assert running.log("master.upgrading")
    running.wait_until_accepting(2)
    assert who_answers(port) == {"w2.0", "w2.1"}
    assert caller.is_heard()
    assert running.pids()[name] == before[name]
    assert running.wait_for("fake.begun", process="s2")[0]["history"] == ["s1"]
    rows = {line["process"]: line["row"] for line in running.log("fake.worker")}
    assert rows["w2.0"] not in (rows["w1.0"], rows["w1.1.2"])
    # The new program looks after old and new.
    caller.close()
    running.wait_for("process.ended", process=name)
    running.kill("w2.0")
    running.wait_for("process.restarted", process="w2.0.2")
    assert [key for _ in range(3) for key in hear(manager)][::2] == ["READY", "RELOADING", "RELOADING"]
    # A second one, then the end.
    running.send(signal.SIGUSR2)
    running.wait_for("master.upgraded", 2)
    running.wait_until_accepting(3)
    assert running.stop() == 0
    assert [line["how"] for line in running.log("process.died")] == ["signal 9"] * 2
    assert not path.exists()
    assert running.log("fake.orphaned") == []


def test_a_program_that_is_broken_is_not_upgraded_to(master: Start, port: int, tmp_path: Path) -> None:
    running = master(settings_of(port), executed=True)
    running.wait_for("master.started")
    (tmp_path / "broken").touch()
    running.send(signal.SIGUSR2)
    assert running.wait_for("master.upgrade_refused")[0]["reason"].startswith("exit status 1")
    assert who_answers(port) == {"w1.0", "w1.1"}
    assert running.stop() == 0
    assert running.log("master.upgrading") == []


def test_the_end_comes_before_the_new_program(master: Start, port: int) -> None:
    running = master(settings_of(port), executed=True)
    running.wait_for("master.started")
    running.send(signal.SIGUSR2)
    running.wait_for("master.upgrade_asked")
    assert running.stop() == 0
    assert running.log("master.upgrading") == []


def test_settings_that_the_new_program_rejects(master: Start, port: int) -> None:
    """They change between its check and its start: it goes on with the old children, and replaces them when it can."""
    running = master(settings_of(port), executed=True)
    running.wait_for("master.started")
    running.write(settings_of(port, workers=0))
    running.send(signal.SIGUSR2)
    running.wait_for("settings.rejected")
    assert who_answers(port) == {"w1.0", "w1.1"}
    running.write(settings_of(port))
    running.kill("w1.0")  # nobody can be started by the old settings: the new ones are tried
    running.wait_for("master.upgraded")
    assert who_answers(port) == {"w2.0", "w2.1"}
    assert running.stop() == 0


def test_what_cannot_be_executed_is_not_the_end(master: Start, port: int) -> None:
    """Not started by the verb `serve`: this test's own process has been forked."""
    running = master(settings_of(port))
    running.wait_for("master.started")
    running.send(signal.SIGUSR2)
    running.wait_for("master.upgrade_refused")
    assert who_answers(port) == {"w1.0", "w1.1"}
    assert running.stop() == 0


def test_how_the_new_program_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    started = ["python3", "-I", "/usr/bin/imap-porter", "serve", "-c", "serve"]
    monkeypatch.setattr(sys, "orig_argv", started)
    expected = [sys.executable, "-I", "/usr/bin/imap-porter", "check", "-c", "serve"]
    assert check_command(Path("serve")) == expected


def test_a_board_of_another_version_is_replaced() -> None:
    descriptor = os.memfd_create("board")
    board, same = Inheritance({"board": descriptor}).board()
    assert not same
    assert board.take_row() == 0
    again, same = Inheritance({"board": os.dup(board.descriptor)}).board()
    assert same
    assert again.take_row() == 1
    for each in (board, again):
        os.close(each.descriptor)


def test_an_inheritance_of_somebody_else() -> None:
    assert inherited({}) is None
    descriptor = os.memfd_create("inherited")
    os.write(descriptor, b'{"pid": 1}')
    environment = {"IMAP_PORTER_INHERITED": str(descriptor)}
    assert inherited(environment) is None
    assert environment == {}
