"""The backends by name, while settings and discovery change which there are."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from proxy.backends.backend import Backend
from proxy.backends.pool import Pool
from proxy.model import Credentials, Identity
from proxy.observe.metrics import exposition
from proxy.outcome import Refused
from proxy.settings.models import Backends, Server, Timeouts
from tests.backends.conftest import LOOPBACK, Served

ANN = Identity("ann", "backend")
OFFERED = Credentials("LOGIN", "ann", "", b"right")


def server(name: str, url: str = "imap://192.0.2.1", **changes: Any) -> Server:
    return Server.model_validate({"name": name, "url": url, **changes})


def pool(*servers: Server) -> Pool:
    return Pool(Backends(servers=servers), Timeouts())


def names(made: Pool) -> list[str]:
    return [backend.name for backend in made]


def test_the_settings_come_first() -> None:
    made = pool(server("a"), server("b"))
    assert names(made) == ["a", "b"]
    assert made["a"].name == "a"
    with pytest.raises(KeyError):
        made["c"]


SAME = [{}, {"weight": 7}, {"state": "drain"}, {"state": "down"}, {"tag": "gold"}, {"lmtp": "192.0.2.1:24"}]
OTHER = [{"url": "imap://192.0.2.2"}, {"url": "imaps://192.0.2.1:143"}, {"client_address": "id"},
         {"tls": {"name": "a.example"}}]  # fmt: skip


@pytest.mark.parametrize("changes", SAME)
def test_a_backend_that_is_reached_as_before_stays(changes: dict[str, Any]) -> None:
    made = pool(server("a"), server("b"))
    before = made["a"]
    made.update([server("b"), server("a", **changes)])
    assert made["a"] is before


@pytest.mark.parametrize("changes", OTHER)
def test_a_backend_that_is_reached_otherwise_is_another(changes: dict[str, Any]) -> None:
    made = pool(server("a"))
    before = made["a"]
    made.update([server("a", **changes)])
    assert made["a"] is not before


def test_what_is_left_out_is_gone() -> None:
    made = pool(server("a"), server("b"))
    made.update([server("b"), server("c")])
    assert names(made) == ["b", "c"]


def series(name: str) -> set[str]:
    """The metrics that are exported of a backend."""
    return {
        sample.name
        for family in text_string_to_metric_families(exposition()[0].decode())
        for sample in family.samples
        if sample.labels.get("backend") == name
    }


OF_A_BACKEND = {
    "porter_backend_logins",
    "porter_backend_logins_waiting",
    "porter_backend_tls_handshakes_total",
}


@pytest.mark.parametrize("scheme", ["imap", "imaps"])
def test_nothing_is_exported_of_what_is_gone(scheme: str) -> None:
    gone, moved = server("exported-gone", f"{scheme}://192.0.2.1"), server("exported-moved", "imaps://192.0.2.1")
    made = pool(gone, moved)
    assert series("exported-gone") == OF_A_BACKEND - (
        {"porter_backend_tls_handshakes_total"} if scheme == "imap" else set()
    )
    made.update([server("exported-moved", "imaps://192.0.2.2")])
    assert series("exported-gone") == set()
    assert series("exported-moved") == OF_A_BACKEND
    made.update([gone])
    assert series("exported-gone") != set()


async def test_who_is_down_lets_nobody_in_until_it_is_up(serve: Served) -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"* BYE no\r\n")

    listening = await serve(greet)
    backend = pool(server("a", f"imap://{LOOPBACK}:{listening.port}"))["a"]
    backend.went_down("tls: no")
    with pytest.raises(Refused) as caught:
        await backend.open(ANN, OFFERED)
    assert (caught.value.step, caught.value.detail) == ("queue", "a is down: tls: no")
    assert listening.accepted == 0
    backend.recovered(trio.current_time())
    with pytest.raises(Refused) as caught, trio.fail_after(5):
        await backend.open(ANN, OFFERED)
    assert caught.value.step == "greeting"


async def test_a_backend_with_another_address_is_the_same(serve: Served) -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"* OK [CAPABILITY IMAP4rev1] ready\r\n")
        await stream.receive_some()

    listening = await serve(greet)
    found = server("pod-0", f"imap://pod-0.dovecot.example:{listening.port}")
    made = pool(found)
    before = made["pod-0"]
    made.update([found], {"pod-0": (LOOPBACK,)})
    assert made["pod-0"] is before
    with trio.fail_after(5):
        assert (await before.check().run()).capability == "IMAP4rev1"
    await listening.wait_until_gone()


async def test_a_login_under_way_goes_on_at_a_backend_that_is_dropped(serve: Served) -> None:
    go_on = trio.Event()

    async def part(stream: trio.SocketStream) -> None:
        await stream.send_all(b"* OK [CAPABILITY IMAP4rev1] ready\r\n")
        await stream.receive_some()
        go_on.set()
        await dropped.wait()
        await stream.send_all(b"p1 OK [CAPABILITY IMAP4rev1] in\r\n")

    dropped = trio.Event()
    listening = await serve(part)
    made = pool(server("a", f"imap://{LOOPBACK}:{listening.port}"))

    async def log_in(backend: Backend) -> None:
        session = await backend.open(ANN, OFFERED)
        session.stream.close()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log_in, made["a"])
            await go_on.wait()
            made.update([server("b")])
            dropped.set()
    assert names(made) == ["b"]


async def test_whoever_waits_is_told_of_each_change() -> None:
    made = pool(server("a"))
    told = 0

    async def wait() -> None:
        nonlocal told
        while True:
            await made.changed()
            told += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()
            made.update([server("a")])
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert told == 3
