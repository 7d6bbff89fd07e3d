"""Children are born, die and are replaced; sockets outlive all of them."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.app.children import Backoff
from proxy.app.succession import Patience
from tests.app.master.fake_roles import PATIENCE
from tests.app.master.stage import Caller, Mastered, refuses, settings_of, who_answers
from tests.servers.ports import LOOPBACK, Ports

Start = Callable[..., Mastered]
Call = Callable[[int | str], Caller]
NOBODY = 65534


def test_a_household_begins_and_ends(master: Start, port: int) -> None:
    running = master(settings_of(port))
    running.wait_for("master.started")
    assert who_answers(port) == {"w1.0", "w1.1"}
    assert sorted(running.pids()) == ["s1", "w1.0", "w1.1"]
    assert [line["links"] for line in running.log("fake.steward")] == [["w1.0", "w1.1"]]
    assert {line["row"] for line in running.log("fake.worker")} == {0, 1}
    running.wait_until(lambda: running.heard("s1") == [["begin"]], "a steward who begins")
    assert running.heard("w1.0") == [["accept"]]
    assert running.stop() == 0
    assert running.heard("w1.0") == [["accept"], ["drain", 0.0, 30.0]]
    assert running.heard("s1")[1] == ["draining"]
    assert running.heard("s1")[-1] == ["stop"]
    assert [line["process"] for line in running.log("process.ended")][-1] == "s1"
    assert running.log("process.died") == []


def test_a_worker_who_is_killed_is_replaced_and_his_callers_wait(master: Start, port: int, call: Call) -> None:
    running = master(settings_of(port, workers=1))
    running.wait_for("master.started")
    first = call(port)
    assert first.name() == "w1.0"
    running.kill("w1.0", signal.SIGSTOP)
    waiting = call(port)  # queued: nobody accepts
    running.kill("w1.0")
    assert waiting.name() == "w1.0.2"
    assert first.line() == ""
    assert running.wait_for("process.died")[0]["how"] == "signal 9"
    assert running.wait_for("process.restarted", role="worker")[0]["process"] == "w1.0.2"
    running.wait_for("fake.link_ended", worker="w1.0")
    running.wait_until(lambda: len(running.heard("s1")) == 3, "news for the steward")
    assert running.heard("s1")[1:] == [["worker_gone", "w1.0"], ["worker", "w1.0.2"]]
    assert {line["row"] for line in running.log("fake.worker")} == {0}
    assert running.stop() == 0


def test_a_steward_who_is_killed_leaves_his_links_to_the_next(master: Start, port: int, call: Call) -> None:
    running = master(settings_of(port))
    running.wait_for("master.started")
    caller = call(port)
    assert caller.name()
    running.kill("s1")
    running.wait_for("fake.begun", 2)
    assert [line["links"] for line in running.log("fake.steward")] == [["w1.0", "w1.1"]] * 2
    assert running.log("fake.begun")[1]["history"] == []  # nobody could hand anything over
    assert caller.is_heard()
    assert running.log("process.restarted")[0]["role"] == "steward"
    # And he learns of the workers that come
    running.kill("w1.1")
    running.wait_for("fake.link_ended", worker="w1.1")
    assert running.stop() == 0


def test_what_the_steward_serves_outlives_him(master: Start, ports: Ports, call: Call, tmp_path: Path) -> None:
    mail, metrics, path = ports.take(), ports.take(), tmp_path / "admin"
    settings = settings_of(mail, metrics={"address": f"{LOOPBACK}:{metrics}"}, admin={"socket": str(path)})
    running = master(settings)
    running.wait_for("master.started")
    assert call(metrics).name() == "s1"
    stopped = running.kill("s1", signal.SIGSTOP)
    waiting = [call(metrics), call(str(path))]
    running.kill("s1")
    answers = [caller.line().split(" ") for caller in waiting]
    assert {name for name, _ in answers} == {"s1"}
    assert str(stopped) not in {pid for _, pid in answers}
    assert running.stop() == 0
    assert not path.exists()


WAITS = [
    ("dies young again and again", [0.0] * 9, [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0]),
    ("at most", [0.0] * 11, [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]),
    ("a long life makes good", [1.0, 1.0, 1.0, 10.0, 9.9, 500.0], [0.0, 0.1, 0.2, 0.0, 0.1, 0.0]),
]


@pytest.mark.parametrize(("name", "lives", "waits"), WAITS)
def test_back_off(name: str, lives: list[float], waits: list[float]) -> None:
    backoff = Backoff()
    assert [backoff.after(lived) for lived in lives] == pytest.approx(waits)


def test_one_who_crashes_again_and_again_holds_up_nobody(master: Start, port: int) -> None:
    running = master(settings_of(port))
    running.wait_for("master.started")
    running.order({"w1.0.2": ["crash"], "w1.0.3": ["crash"], "w1.0.4": ["crash"]})
    running.kill("w1.0")
    running.wait_for("fake.worker", process="w1.0.5")
    crashes = running.log("process.crashed")
    assert len(crashes) == 3
    assert "ordered to crash" in crashes[0]["traceback"]
    assert [line["how"] for line in running.log("process.died")] == ["signal 9"] + ["exit status 1"] * 3
    assert [line["restarts"] for line in running.log("process.restarted")] == [1, 2, 3, 4]
    running.wait_until(lambda: ["accept"] in running.heard("w1.0.5"), "a worker who accepts")
    assert who_answers(port) == {"w1.0.5", "w1.1"}
    assert running.stop() == 0


def test_one_who_says_nothing_is_replaced(master: Start, port: int) -> None:
    running = master(settings_of(port), orders={"w1.1": ["silent"]})
    running.wait_for("process.silent", process="w1.1")
    running.wait_for("process.restarted", process="w1.1.2")
    assert {line["process"] for line in running.log("process.silent")} == {"w1.1"}


@pytest.mark.parametrize(
    ("orders", "told"),
    [
        ({"w1.1": ["crash"]}, r"worker w1\.1 ended before it was ready: exit status 1"),
        ({"s1": ["crash"]}, r"steward s1 ended before it was ready: exit status 1"),
        ({"w1.0": ["never ready"]}, r"not ready after 1 s: w1\.0(, .*)?"),  # others may be late, too
    ],
)
def test_a_start_that_fails_leaves_nobody(master: Start, port: int, orders: dict[str, list[str]], told: str) -> None:
    patience = Patience(ready=1.0) if "never" in str(orders) else PATIENCE
    running = master(settings_of(port), orders=orders, patience=patience)
    assert running.exit_status() == 1
    assert re.fullmatch(told, running.log("master.start_failed")[0]["reason"])
    assert running.pids() == {}
    assert refuses(port)


def test_children_notice_that_the_master_is_gone(master: Start, port: int) -> None:
    running = master(settings_of(port))
    running.wait_for("master.started")
    os.kill(running.pid, signal.SIGKILL)
    running.exit_status()
    running.wait_for_children("fake.orphaned", 3)
    assert {line["process"] for line in running.log("fake.orphaned")} == {"s1", "w1.0", "w1.1"}


def test_a_signal_to_all_of_them_is_the_masters_alone(master: Start, port: int) -> None:
    """Ctrl-C at a terminal, a service manager that signals the control group."""
    running = master(settings_of(port))
    running.wait_for("master.started")
    for name in ("w1.0", "w1.1", "s1"):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            running.kill(name, number)
    assert who_answers(port) == {"w1.0", "w1.1"}
    running.send(signal.SIGINT)
    assert running.exit_status() == 0
    assert running.log("process.died") == []


def test_a_second_signal_ends_it_now(master: Start, port: int) -> None:
    running = master(settings_of(port), orders={"w1.0": ["deaf"]})
    running.wait_for("master.started")
    running.send(signal.SIGTERM)
    running.wait_for("process.ended", process="w1.1")
    running.send(signal.SIGTERM)
    assert running.exit_status() == 0
    assert running.heard("w1.0")[-1] == ["stop"]
    assert running.log("master.stopping_at_once")[0]["signal"] == "SIGTERM"
    assert running.log("process.died", process="w1.0")[0]["how"] == "signal 9"  # it did not stop, either


def test_there_is_an_end_to_draining(master: Start, port: int) -> None:
    timeouts = {"drain": "100ms", "drain_grace": "50ms"}
    running = master(settings_of(port, timeouts=timeouts), orders={"w1.0": ["deaf"]})
    running.wait_for("master.started")
    assert running.stop() == 0
    assert running.heard("w1.0") == [["accept"], ["drain", 0.05, 0.1], ["stop"]]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_rights_are_given_up(master: Start, port: int) -> None:
    running = master(settings_of(port, user="nobody"))
    running.wait_for("master.started")
    for pid in running.pids().values():
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert status["Uid"].split() == [str(NOBODY)] * 4
        assert status["Gid"].split() == [str(NOBODY)] * 4
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert next(line for line in limits.splitlines() if line.startswith("Max core")).split()[4:6] == ["0", "0"]
        # Not dumpable: what is in /proc of it is root's, not its own user's (prctl(2)).
        assert Path(f"/proc/{pid}/environ").stat().st_uid == 0
    own = dict(line.split(":\t", 1) for line in Path(f"/proc/{running.pid}/status").read_text().splitlines())
    assert own["Uid"].split() == ["0"] * 4


def test_a_child_has_nothing_that_is_not_its_own(master: Start, port: int) -> None:
    running = master(settings_of(port, metrics={"address": f"{LOOPBACK}:0"}))
    running.wait_for("master.started")
    sockets = {name: _sockets(pid) for name, pid in running.pids().items()}
    workers = [sockets["w1.0"], sockets["w1.1"]]
    assert [len(each) for each in workers] == [3, 3]  # control, link, listener
    assert not workers[0] & workers[1]
    assert len(sockets["s1"]) == 4  # control, two links, metrics
    assert not sockets["s1"] & (workers[0] | workers[1])
    assert len(list(Path(f"/proc/{running.pid}/task").iterdir())) == 1  # no thread would survive a fork
    # The master has the steward's ends of the links, but none of the workers'.
    own = _sockets(running.pid)
    assert [len(each & own) for each in workers] == [1, 1]  # the listener


def _sockets(pid: int) -> set[str]:
    names = (os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir())
    return {name for name in names if name.startswith("socket:")}
