"""What several proxies know of users together, at a real server: each verdict, each error, whatever stands there."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

from proxy.ledger import fleet as module
from proxy.ledger.fleet import DEAD_SECONDS, Fleet, FleetLost, NameTaken, Verdict, connect
from proxy.ledger.resident import NOTHING, Share
from proxy.settings.models import Fleet as FleetSettings
from tests.servers.own_valkey import fleet_settings
from tests.servers.ports import Ports
from tests.servers.valkey import PASSWORD, Valkey

pytestmark = pytest.mark.server

PIN_SECONDS = 900.0
PATIENCE_SECONDS = 20.0
USER = "imap-porter:user:"


@asynccontextmanager
async def member(
    valkey: Valkey,
    name: str = "a",
    *,
    instance: str = "i",
    settings: FleetSettings | None = None,
    pin_seconds: float = PIN_SECONDS,
) -> AsyncIterator[Fleet]:
    """One that lives, and asks."""
    async with connect(settings or fleet_settings(valkey), name, instance, pin_seconds) as fleet:
        await fleet.beat()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fleet.run)
            yield fleet
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def two(valkey: Valkey) -> AsyncIterator[tuple[Fleet, Fleet]]:
    async with member(valkey, "a") as a, member(valkey, "b") as b:
        yield a, b


async def stand(fleet: Fleet, share: Share, name: str = "ann", *, most: int = 3, firm: bool = False) -> Verdict:
    return await fleet.stand(name, share, most=most, firm=firm)


async def tell(fleet: Fleet, share: Share, name: str = "ann") -> Verdict:
    (verdict,) = await fleet.tell([(name, share)])
    return verdict


def known(valkey: Valkey, name: str = "ann") -> dict[str, str]:
    """All that stands there of a user; when he left, as a whole number of seconds ago."""
    words = valkey.ask("--json", "HGETALL", USER + name)
    user: dict[str, str] = json.loads(words) or {}
    if "@left" in user:
        user["@left"] = str(round(time.time() - float(user["@left"])))
    return user


def lifetime(valkey: Valkey, key: str) -> int:
    return int(valkey.ask("TTL", key))


def die(valkey: Valkey, name: str, seconds: float = DEAD_SECONDS + 5) -> None:
    """A member was heard of that long ago."""
    valkey.ask("HSET", "imap-porter:members", name, str(time.time() - seconds))


# --- what the fleet says of a user ---

HERE = Share("d1", 1, 1)
# What another member has of him before, what is said here, and the answer.
VERDICTS: list[tuple[str, list[Share], Share, dict[str, Any], Verdict]] = [
    ("nobody knows him", [], HERE, {}, Verdict("in", "d1")),
    ("he is there", [Share("d1", 2, 1)], HERE, {}, Verdict("in", "d1", 2, 1)),
    ("he is elsewhere", [Share("d2", 2, 1)], HERE, {}, Verdict("elsewhere", "d2", 2, 1)),
    ("elsewhere, whatever is decided", [Share("d2", 1, 1)], HERE, {"firm": True}, Verdict("elsewhere", "d2", 1, 1)),
    ("elsewhere, and he would have too many", [Share("d2", 3, 3)], HERE, {}, Verdict("elsewhere", "d2", 3, 3)),
    ("he was there", [Share("d1", 1, 1), Share("d1", 0, 0, 5.0, True)], HERE, {}, Verdict("in", "d1", 0, 0, 5.0, True)),
    (
        "he was elsewhere",
        [Share("d2", 1, 1), Share("d2", 0, 0, 5.0, True)],
        HERE,
        {},
        Verdict("was", "d2", 0, 0, 5.0, True),
    ),
    ("and need not go back", [Share("d2", 0, 0, 5.0, False)], HERE, {}, Verdict("was", "d2", 0, 0, 5.0, False)),
    ("and that has been decided on", [Share("d2", 0, 0, 5.0, True)], HERE, {"firm": True}, Verdict("in", "d1")),
    ("too long ago", [Share("d2", 0, 0, PIN_SECONDS + 1, True)], HERE, {}, Verdict("in", "d1")),
    ("nothing is left of him", [Share("d2", 1, 1), NOTHING], HERE, {}, Verdict("in", "d1")),
    ("as many as he may have", [Share("d1", 2, 2)], HERE, {}, Verdict("in", "d1", 2, 2)),
    ("one too many", [Share("d1", 3, 3)], HERE, {}, Verdict("full", "d1", 3, 3)),
    ("only those count that count", [Share("d1", 9, 2)], Share("d1", 5, 1), {}, Verdict("in", "d1", 9, 2)),
    ("no matter how many", [Share("d1", 9, 9)], Share("d1", 1, 0), {"most": -1}, Verdict("in", "d1", 9, 9)),
    ("none at all", [], HERE, {"most": 0}, Verdict("full", "")),
    ("he has left", [Share("d1", 1, 1)], Share("d1", 0, 0, 2.0, True), {}, Verdict("out", "d1", 1, 1)),
    ("he never was there", [], NOTHING, {}, Verdict("out", "")),
]


@pytest.mark.parametrize(
    ("before", "share", "more", "verdict"), [row[1:] for row in VERDICTS], ids=[r[0] for r in VERDICTS]
)
async def test_verdict(
    valkey: Valkey, before: list[Share], share: Share, more: dict[str, Any], verdict: Verdict
) -> None:
    async with two(valkey) as (a, b):
        for each in before:
            await tell(a, each)
        stood = known(valkey)
        found = await stand(b, share, **more)
        assert replace(found, seconds=0.0) == replace(verdict, seconds=0.0)
        assert verdict.seconds <= found.seconds < verdict.seconds + PATIENCE_SECONDS
        if verdict.kind not in ("in", "out"):
            assert known(valkey) == stood, "nothing has changed"


async def test_what_is_told_holds_whatever_the_limits(valkey: Valkey) -> None:
    async with two(valkey) as (a, b):
        await tell(a, Share("d1", 9, 9))
        assert await tell(b, Share("d1", 8, 8)) == Verdict("in", "d1", 9, 9)
        assert await tell(b, Share("d2", 8, 8)) == Verdict("elsewhere", "d1", 9, 9)
        assert known(valkey) == {"@backend": "d1", "a": "9 9", "b": "8 8"}


async def test_what_one_has_of_himself_never_hinders_him(valkey: Valkey) -> None:
    """It is said absolutely: twice is once, and another backend is another word about the same sessions."""
    async with member(valkey) as a:
        for share in (Share("d1", 3, 3), Share("d1", 3, 3), Share("d2", 3, 3)):
            assert await stand(a, share) == Verdict("in", share.backend)
            assert known(valkey) == {"@backend": share.backend, "a": "3 3"}


async def test_the_last_one_to_leave_is_remembered(valkey: Valkey) -> None:
    async with two(valkey) as (a, b):
        await tell(a, HERE)
        await tell(b, HERE)
        assert await tell(a, Share("d1", 0, 0, 0.0, False)) == Verdict("out", "d1", 1, 1)
        assert known(valkey) == {"@backend": "d1", "b": "1 1", "@left": "0", "@sticky": "0"}
        await tell(b, Share("d1", 0, 0, 30.0, True))
        assert known(valkey) == {"@backend": "d1", "@left": "0", "@sticky": "0"}, "that was earlier"
        await tell(b, HERE)
        await tell(b, Share("d1", 0, 0, 30.0, True))
        assert known(valkey) == {"@backend": "d1", "@left": "30", "@sticky": "1"}
        await tell(a, Share("d3", 0, 0, 60.0, False))
        assert known(valkey)["@backend"] == "d1", "that was earlier"
        await tell(a, Share("d3", 0, 0, 10.0, False))
        assert known(valkey) == {"@backend": "d3", "@left": "10", "@sticky": "0"}


async def test_what_stands_there_goes_when_it_is_of_no_use(valkey: Valkey) -> None:
    async with member(valkey) as a:
        await stand(a, HERE)
        for key in (USER + "ann", "imap-porter:here:a"):
            assert module.KEEP_SECONDS - 60 < lifetime(valkey, key) <= module.KEEP_SECONDS
        await tell(a, Share("d1", 0, 0, 60.0, True))
        assert PIN_SECONDS - 120 < lifetime(valkey, USER + "ann") <= PIN_SECONDS - 59
        assert valkey.ask("EXISTS", "imap-porter:here:a") == "0"
        await tell(a, Share("d1", 0, 0, 30.0, True))
        assert lifetime(valkey, USER + "ann") > PIN_SECONDS - 90
        for share in (Share("d1", 0, 0, PIN_SECONDS, True), NOTHING):
            await stand(a, HERE)
            await tell(a, share)
            assert valkey.ask("EXISTS", USER + "ann") == "0"
    async with member(valkey, pin_seconds=0.0) as a:
        await tell(a, HERE)
        await tell(a, Share("d1", 0, 0, 0.0, True))
        assert valkey.ask("EXISTS", USER + "ann") == "0"


async def test_whom_the_fleet_believes_to_be_here(valkey: Valkey) -> None:
    async with two(valkey) as (a, b):
        await a.tell([("ann", HERE), ("bob", HERE)])
        await b.tell([("ann", HERE), ("cid", HERE)])
        assert (await a.known_here(), await b.known_here()) == ({"ann", "bob"}, {"ann", "cid"})
        await a.tell([("ann", NOTHING), ("bob", NOTHING)])
        assert (await a.known_here(), await b.known_here()) == (set(), {"ann", "cid"})


# --- members that are dead ---


async def test_the_sessions_of_a_dead_member_do_not_count(valkey: Valkey) -> None:
    async with two(valkey) as (a, b):
        await tell(a, Share("d1", 3, 3))
        assert (await stand(b, HERE)).kind == "full"
        die(valkey, "a")
        found = await stand(b, HERE)
        assert (found.kind, found.backend, found.others, found.sticky) == ("in", "d1", 0, True)
        assert known(valkey) == {"@backend": "d1", "b": "1 1"}


async def test_whoever_was_at_a_dead_member_has_just_left(valkey: Valkey) -> None:
    async with two(valkey) as (a, b):
        await tell(a, Share("d1", 3, 3))
        die(valkey, "a")
        found = await stand(b, Share("d2", 1, 1))
        assert (found.kind, found.backend, found.sticky) == ("was", "d1", True)
        assert found.seconds < PATIENCE_SECONDS
        assert known(valkey).keys() == {"@backend", "@left", "@sticky"}
        again = await stand(b, Share("d2", 1, 1))
        assert (again.kind, again.backend) == ("was", "d1")
        assert again.seconds >= found.seconds
        assert (await stand(b, Share("d2", 1, 1), firm=True)).kind == "in"
        assert known(valkey) == {"@backend": "d2", "b": "1 1"}


async def test_one_that_nobody_knows_is_dead(valkey: Valkey) -> None:
    valkey.ask("HSET", USER + "ann", "@backend", "d1", "z", "4 4")
    async with two(valkey) as (a, b):
        await tell(a, Share("d1", 1, 1))
        assert await stand(b, HERE) == Verdict("in", "d1", 1, 1)
        assert known(valkey) == {"@backend": "d1", "a": "1 1", "b": "1 1"}


async def test_who_comes_back_says_again_what_he_has(valkey: Valkey) -> None:
    async with two(valkey) as (a, b):
        await tell(a, HERE)
        die(valkey, "a")
        await stand(b, HERE)
        await a.beat()
        assert await tell(a, HERE) == Verdict("in", "d1", 1, 1)
        assert (await b.known_here(), known(valkey)["a"]) == ({"ann"}, "1 1")


async def test_members_live_by_their_beats(valkey: Valkey) -> None:
    async with two(valkey) as (a, b):
        beat = await a.beat()
        assert (beat.members, beat.life) == (("a", "b"), (await b.beat()).life)
        assert abs(beat.now - time.time()) < PATIENCE_SECONDS
        die(valkey, "b")
        valkey.ask("HSET", "imap-porter:members", "old", str(time.time() - 90_000))
        valkey.ask("HSET", "imap-porter:instances", "old", "x")
        assert (await a.beat()).members == ("a",)
        assert valkey.ask("HKEYS", "imap-porter:members").split() == ["a", "b"]
        assert valkey.ask("HEXISTS", "imap-porter:instances", "old") == "0"
        assert (await b.beat()).members == ("a", "b")
        await b.leave()
        assert (await a.beat()).members == ("a",)


async def test_another_life_begins_where_all_is_lost(valkey: Valkey) -> None:
    async with member(valkey) as a:
        before = await a.beat()
        valkey.ask("FLUSHDB")
        after = await a.beat()
        assert before.life
        assert after.life not in ("", before.life)


async def test_a_name_is_taken_once(valkey: Valkey) -> None:
    async with member(valkey, instance="one") as a:
        with pytest.raises(NameTaken, match=r'^another proxy is called "a" \(fleet.name\), and was heard of \d s ago$'):
            async with member(valkey, instance="two"):
                raise AssertionError
        async with member(valkey, instance="one") as next_generation:
            assert (await next_generation.beat()).members == ("a",)
        async with connect(fleet_settings(valkey), "a", "two", PIN_SECONDS) as other:
            await other.leave()  # it is not there
            assert (await a.beat()).members == ("a",)
            die(valkey, "a")
            assert (await other.beat()).members == ("a",)
            with pytest.raises(NameTaken):
                await a.beat()


# --- what is known of a user, changing nothing ---


async def test_a_look(valkey: Valkey) -> None:
    async with two(valkey) as (a, b):
        everybody = ("a", "b")
        assert await b.look("ann", everybody) is None
        await tell(a, Share("d1", 2, 1))
        assert await b.look("ann", everybody) == Verdict("elsewhere", "d1", 2, 1)
        assert await b.look("ann", ("b",)) is None, "the other one is dead"
        assert await a.look("ann", everybody) is None, "he is here, which is known better"
        await tell(a, Share("d1", 0, 0, 7.0, True))
        found = await b.look("ann", everybody)
        assert found is not None
        assert replace(found, seconds=0.0) == Verdict("was", "d1", sticky=True)
        assert 6.0 < found.seconds < 7.0 + PATIENCE_SECONDS


# --- what administrators say ---


async def test_what_is_said_of_users(valkey: Valkey) -> None:
    rows = [["ann", "d1", None, "a full disk", "ops", 5.0, 1]]
    async with two(valkey) as (a, b):
        assert await a.said() == {}
        await a.put_said({"ann": rows, "bob": [["bob", None, 9.5, "", "", 5, 2]]})
        assert await b.said() == {"ann": rows, "bob": [["bob", None, 9.5, "", "", 5, 2]]}
        assert await b.said(["ann", "nobody"]) == {"ann": rows, "nobody": None}
        await a.put_said({})
        assert await b.said([]) == {}


async def test_what_is_said_is_restored_where_nothing_is(valkey: Valkey) -> None:
    async with two(valkey) as (a, b):
        await a.put_said({"ann": [1], "bob": []})
        assert await b.restore_said({"ann": [2], "bob": [2], "cid": [2], "dan": [3]}) == {"cid", "dan"}
        assert await a.said() == {"ann": [1], "bob": [], "cid": [2], "dan": [3]}
        assert await b.restore_said({"cid": [2]}) == set(), "that it is the same is no matter"
        assert await b.restore_said({}) == set()


async def test_of_two_who_restore_one_does(valkey: Valkey) -> None:
    said = {f"u{number}": [number] for number in range(100)}
    restored: dict[str, set[str]] = {}
    async with two(valkey) as (a, b):

        async def restore(name: str, fleet: Fleet) -> None:
            restored[name] = await fleet.restore_said({user: [*rows, name] for user, rows in said.items()})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(restore, "a", a)
            nursery.start_soon(restore, "b", b)
        assert restored["a"] | restored["b"] == set(said)
        assert not restored["a"] & restored["b"]
        assert await a.said() == {user: [*rows, "a" if user in restored["a"] else "b"] for user, rows in said.items()}


async def test_what_is_said_is_forgotten_if_it_was_that(valkey: Valkey) -> None:
    rows = [["ann", "d1", None, 'a "full" d\u00efsk \u4f8b', "ops", 5.5, 1]]
    async with two(valkey) as (a, b):
        await a.put_said({"ann": rows, "bob": [1]})
        await b.forget_said({"ann": rows, "bob": [2], "nobody": rows})
        assert await a.said() == {"bob": [1]}, "something else is said of him by now"
        await b.forget_said({"ann": rows})
        await b.forget_said({})
        assert await a.said() == {"bob": [1]}
        # By what was read, as it is done.
        await b.forget_said(await b.said())
        assert await a.said() == {}
        assert valkey.ask("EXISTS", "imap-porter:said") == "0"


# --- orders ---


async def test_orders_are_heard_in_their_order(valkey: Valkey) -> None:
    async with two(valkey) as (a, b):
        assert (await b.newest(), await b.earlier()) == ("0-0", [])
        start = await b.newest()
        await a.say([("close", ["ann"]), ("kick", {"user": "bob"})])
        heard = await b.hear(start)
        assert [(each.member, each.kind, each.body) for each in heard] == [
            ("a", "close", ["ann"]),
            ("a", "kick", {"user": "bob"}),
        ]
        assert all(abs(each.said_at - time.time()) < PATIENCE_SECONDS for each in heard)
        assert (await b.newest(), await a.earlier()) == (heard[-1].id, heard)
        assert await a.earlier(heard[0].id) == heard[1:]
        await a.say([])


async def test_hearing_waits(valkey: Valkey, nursery: trio.Nursery) -> None:
    async with two(valkey) as (a, b):
        heard: list[Any] = []

        async def hear() -> None:
            heard.extend(await b.hear("0-0"))

        nursery.start_soon(hear)
        await trio.sleep(0.2)
        assert await stand(b, HERE), "nobody waits for it"
        await a.say([("close", [])])
        with trio.fail_after(PATIENCE_SECONDS):
            while not heard:  # noqa: ASYNC110 - a server's doing
                await trio.sleep(0.01)
        assert [each.kind for each in heard] == ["close"]


async def test_nothing_is_said_for_a_while(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LISTEN_SECONDS", 0.1)
    async with member(valkey) as a:
        assert await a.hear("0-0") == []


async def test_orders_are_trimmed(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_ORDERS", 200)
    async with member(valkey) as a:
        for _ in range(5):
            await a.say([("failures", [number]) for number in range(200)])
        assert 200 <= int(valkey.ask("XLEN", "imap-porter:orders")) < 500  # whole nodes of a hundred go
        pages, heard = 0, "0-0"
        while orders := await a.earlier(heard):
            pages, heard = pages + 1, orders[-1].id
        assert pages > 1
        assert heard == await a.newest()


# --- what goes wrong ---


@asynccontextmanager
async def short(*, begins_anew: Valkey | None = None) -> AsyncIterator[None]:
    """Whatever is lost is lost soon; the server is as it was afterwards."""
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            yield
    finally:
        if begins_anew is not None:
            begins_anew.stop()
            begins_anew.start()


async def lost(settings: FleetSettings) -> str:
    """Why there is no connection."""
    with pytest.raises(FleetLost) as caught:
        async with short(), connect(settings, "a", "i", PIN_SECONDS):
            raise AssertionError
    text = str(caught.value)
    assert text.startswith(f"{settings.valkey}: ")
    assert len(text) < 300
    return text


async def test_nobody_listens(valkey: Valkey) -> None:
    ports = Ports()
    try:
        await lost(fleet_settings(valkey, valkey=f"redis://127.0.0.1:{ports.take()}"))
    finally:
        ports.close()


async def test_a_host_that_nobody_knows(valkey: Valkey) -> None:
    await lost(fleet_settings(valkey, valkey="redis://valkey.invalid", insecure=True))


async def test_a_wrong_password(valkey: Valkey, tmp_path: Any) -> None:
    (tmp_path / "wrong").write_text("not-the-right-one\n")
    text = await lost(fleet_settings(valkey, password={"file": str(tmp_path / "wrong")}))
    assert "not-the-right-one" not in text
    assert PASSWORD not in text
    assert "WRONGPASS" in text or "invalid username-password pair" in text
    await lost(fleet_settings(valkey, username="nobody"))
    await lost(FleetSettings.model_validate({"valkey": valkey.url}))


async def test_a_database_that_is_not_there(valkey: Valkey) -> None:
    await lost(fleet_settings(valkey, valkey=valkey.url.replace("/0", "/9999")))


async def test_tls(valkey: Valkey) -> None:
    ca = str(valkey.folder.parent / "pki" / "ca.pem")
    async with member(valkey, settings=fleet_settings(valkey, valkey=valkey.tls_url, ca=ca)) as a:
        assert (await stand(a, HERE)).kind == "in"
    wrong = str(valkey.folder.parent / "pki" / "wrong-ca.pem")
    assert "certificate" in await lost(fleet_settings(valkey, valkey=valkey.tls_url, ca=wrong))
    assert "certificate" in await lost(fleet_settings(valkey, valkey=valkey.tls_url))
    await lost(fleet_settings(valkey, valkey=valkey.tls_url.replace(str(valkey.tls_port), str(valkey.port)), ca=ca))
    await lost(fleet_settings(valkey, valkey=valkey.url.replace(str(valkey.port), str(valkey.tls_port))))


REQUESTS: dict[str, Callable[[Fleet], Awaitable[Any]]] = {
    "stand": lambda fleet: stand(fleet, HERE),
    "tell": lambda fleet: tell(fleet, HERE),
    "tell of many": lambda fleet: fleet.tell([("ann", HERE), ("bob", HERE)]),
    "look": lambda fleet: fleet.look("ann", ("a", "b")),
    "known_here": lambda fleet: fleet.known_here(),
    "beat": lambda fleet: fleet.beat(),
    "leave": lambda fleet: fleet.leave(),
    "said": lambda fleet: fleet.said(),
    "said of some": lambda fleet: fleet.said(["ann"]),
    "put_said": lambda fleet: fleet.put_said({"ann": [1], "bob": []}),
    "restore_said": lambda fleet: fleet.restore_said({"ann": [1], "bob": []}),
    "forget_said": lambda fleet: fleet.forget_said({"ann": [1], "bob": []}),
    "say": lambda fleet: fleet.say([("close", ["ann"])]),
    "earlier": lambda fleet: fleet.earlier(),
    "newest": lambda fleet: fleet.newest(),
    "hear": lambda fleet: fleet.hear("0-0"),
}


@asynccontextmanager
async def asked(valkey: Valkey) -> AsyncIterator[Fleet]:
    """A connection whose `run` may end as it likes."""
    async with connect(fleet_settings(valkey), "a", "i", PIN_SECONDS) as fleet, trio.open_nursery() as nursery:

        async def run() -> None:
            with pytest.raises(FleetLost):
                await fleet.run()

        nursery.start_soon(run)
        await fleet.beat()
        yield fleet
        nursery.cancel_scope.cancel()


async def test_a_server_that_dies(valkey: Valkey) -> None:
    async with short(begins_anew=valkey), asked(valkey) as fleet:
        valkey.stop()
        for request in REQUESTS.values():
            with pytest.raises(FleetLost):
                await request(fleet)


@pytest.mark.parametrize("what", ["hear", "stand", "tell"])
async def test_a_server_that_dies_under_a_request(valkey: Valkey, what: str) -> None:
    async with short(begins_anew=valkey), asked(valkey) as fleet, trio.open_nursery() as nursery:

        async def request() -> None:
            with pytest.raises(FleetLost):
                await REQUESTS[what](fleet)

        if what != "hear":  # nobody answers that one anyway
            valkey.send(signal.SIGSTOP)
        nursery.start_soon(request)
        await trio.sleep(0.2)
        valkey.send(signal.SIGKILL)  # stop() lets it go on before that, long enough for an answer
        valkey.stop()


async def test_a_server_that_is_frozen(valkey: Valkey) -> None:
    """All of them at once: each has its second."""
    async with short(), asked(valkey) as fleet:
        valkey.send(signal.SIGSTOP)
        try:
            async with trio.open_nursery() as nursery:
                for request in REQUESTS.values():

                    async def fails(request: Callable[[Fleet], Awaitable[Any]] = request) -> None:
                        with pytest.raises(FleetLost):
                            await request(fleet)

                    nursery.start_soon(fails)
            with pytest.raises(FleetLost):
                async with connect(fleet_settings(valkey), "b", "i", PIN_SECONDS):
                    raise AssertionError
        finally:
            valkey.send(signal.SIGCONT)


async def test_one_who_takes_the_fleet_for_lost_is_told_so_as_it_was(valkey: Valkey) -> None:
    """Whatever happens in the block comes out of it as it is, and alone."""
    for problem in (FleetLost("x"), ValueError("y"), KeyError("z")):
        with pytest.raises(type(problem)) as caught:
            async with connect(fleet_settings(valkey), "a", "i", PIN_SECONDS):
                raise problem
        assert caught.value is problem
    with trio.move_on_after(0.1) as scope:
        async with connect(fleet_settings(valkey), "a", "i", PIN_SECONDS):
            await trio.sleep_forever()
    assert scope.cancelled_caught


# --- whatever stands there ---

WRONG: dict[str, tuple[str, ...]] = {
    "user: a string": ("SET", USER + "ann", "x"),
    "user: no numbers": ("HSET", USER + "ann", "@backend", "d1", "b", "many more", "@left", "never", "@sticky", "?"),
    "user: a count alone": ("HSET", USER + "ann", "@backend", "d1", "b", "7"),
    "user: huge": ("HSET", USER + "ann", "@backend", "d1", "b", "9" * 400 + " " + "9" * 400),
    "user: no backend": ("HSET", USER + "ann", "b", "1 1"),
    "user: infinite": ("HSET", USER + "ann", "@backend", "d2", "@left", "inf"),
    "user: nan": ("HSET", USER + "ann", "@backend", "d2", "@left", "nan"),
    "user: no UTF-8": ("HSET", USER + "ann", "@backend", "\udcff\udcfe", "b", "1 1"),
    "here: a string": ("SET", "imap-porter:here:a", "x"),
    "here: no UTF-8": ("SADD", "imap-porter:here:a", "\udcff"),
    "members: a list": ("RPUSH", "imap-porter:members", "x"),
    "members: no numbers": ("HSET", "imap-porter:members", "a", "x", "b", "", "c", "nan", "d", "inf", "e", "-inf"),
    "members: no UTF-8": ("HSET", "imap-porter:members", "\udcff", "99999999999"),
    "instances: a string": ("SET", "imap-porter:instances", "x"),
    "life: a hash": ("HSET", "imap-porter:life", "x", "y"),
    "said: a set": ("SADD", "imap-porter:said", "x"),
    "said: no JSON": ("HSET", "imap-porter:said", "ann", "{", "bob", "", "cid", "[1]"),
    "said: too deep": ("HSET", "imap-porter:said", "ann", "[" * 100_000),
    "said: huge numbers": ("HSET", "imap-porter:said", "ann", "[1" + "0" * 3_000 + ",1" + "0" * 9_000 + "]"),
    "said: no UTF-8": ("HSET", "imap-porter:said", "ann", "\udcff"),
    "orders: a string": ("SET", "imap-porter:orders", "x"),
    "orders: no JSON": ("XADD", "imap-porter:orders", "*", "member", "b", "kind", "close", "body", "{"),
    "orders: something else": ("XADD", "imap-porter:orders", "*", "x", "y"),
    "orders: too deep": ("XADD", "imap-porter:orders", "*", "body", "[" * 100_000),
    "orders: no UTF-8": ("XADD", "imap-porter:orders", "*", "body", "\udcff"),
    "orders: the last id": ("XADD", "imap-porter:orders", "18446744073709551615-18446744073709551615", "x", "y"),
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG)
async def test_what_makes_no_sense(valkey: Valkey, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is passed over, or the fleet is lost: nothing else, and soon. It is as before once that is gone."""
    monkeypatch.setattr(module, "_LISTEN_SECONDS", 0.1)
    for what, request in REQUESTS.items():
        valkey.ask("FLUSHALL")
        async with (
            short(),
            connect(fleet_settings(valkey), "a", "i", PIN_SECONDS) as fleet,
            trio.open_nursery() as nursery,
        ):

            async def run(fleet: Fleet = fleet) -> None:
                try:
                    await fleet.run()
                except FleetLost:
                    pass

            nursery.start_soon(run)
            valkey.ask(*words)
            try:
                answer = await request(fleet)
            except FleetLost:
                pass
            else:
                assert not isinstance(answer, Verdict) or answer.others >= 0, what
            nursery.cancel_scope.cancel()
        valkey.ask("DEL", words[1])
        async with short(), member(valkey) as fleet:
            await request(fleet)
            assert (await stand(fleet, HERE, "dan")).kind == "in", what


async def test_said_among_what_makes_no_sense(valkey: Valkey) -> None:
    async with member(valkey) as a:
        await a.put_said({"ann": [1]})
        valkey.ask("HSET", "imap-porter:said", "bob", "{", "cid", "[" * 100_000, "dan", "1" + "0" * 400)
        assert await a.said() == {"ann": [1], "bob": None, "cid": None, "dan": None}
        assert await a.said(["bob", "ann"]) == {"ann": [1], "bob": None}


async def test_orders_among_those_that_make_no_sense(valkey: Valkey) -> None:
    async with member(valkey) as a:
        valkey.ask("XADD", "imap-porter:orders", "*", "x", "y")
        valkey.ask("XADD", "imap-porter:orders", "*", "member", "b", "kind", "close", "body", "[1" + "0" * 400 + "]")
        await a.say([("close", ["ann"])])
        assert [(each.kind, each.body) for each in await a.earlier()] == [("", None), ("", None), ("close", ["ann"])]


async def test_what_the_server_says_can_be_read(valkey: Valkey) -> None:
    """And not only what it was asked."""
    try:
        async with connect(fleet_settings(valkey), "a", "i", PIN_SECONDS) as fleet:
            await fleet.tell([("ann", HERE), ("bob", HERE)])
            await fleet.put_said({"ann": [1]})
            valkey.ask("CONFIG", "SET", "maxmemory", "1")
            for request in ("beat", "tell", "tell of many", "say", "put_said", "restore_said"):
                with pytest.raises(FleetLost, match=f"^{valkey.url}: OOM"):
                    await REQUESTS[request](fleet)
            await fleet.tell([("ann", NOTHING), ("bob", NOTHING)])
            await fleet.forget_said({"ann": [1]})
            assert await fleet.known_here() == set(), "what makes room is possible still"
            assert await fleet.said() == {}
            await fleet.leave()
    finally:
        valkey.ask("CONFIG", "SET", "maxmemory", "0")


NAMES = [
    "with spaces",
    "{x}y{",
    "a\nb\r\n",
    "\x00",
    "𝓪𝓷𝓷@例え.jp",
    "é" * 128,
    "x" * 256,
    "@backend",
    "*",
    "%s",
    "a:b",
    "-",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
async def test_names(valkey: Valkey, name: str) -> None:
    async with two(valkey) as (a, b):
        assert (await stand(a, HERE, name)).kind == "in"
        assert await stand(b, Share("d2", 1, 1), name) == Verdict("elsewhere", "d1", 1, 1)
        assert (await a.known_here(), await b.known_here()) == ({name}, set())
        assert await b.look(name, ("a", "b")) == Verdict("elsewhere", "d1", 1, 1)
        await a.put_said({name: [name]})
        assert await b.said() == await b.said([name]) == {name: [name]}
        await a.say([("close", [name])])
        assert [order.body for order in await b.earlier()] == [[name]]
        await tell(a, NOTHING, name)
        assert await a.known_here() == set()
        assert await b.look(name, ("a", "b")) is None


# --- who gives up ---


async def test_who_gives_up_leaves_nothing_that_is_asked_later(valkey: Valkey) -> None:
    async with connect(fleet_settings(valkey), "a", "i", PIN_SECONDS) as fleet:
        await fleet.beat()
        with trio.move_on_after(0.05) as scope:
            await stand(fleet, HERE)  # nobody runs
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fleet.run)
            assert (await stand(fleet, HERE, "bob")).kind == "in"
            assert await fleet.known_here() == {"bob"}
            nursery.cancel_scope.cancel()


async def test_who_gives_up_does_not_hinder_those_who_do_not(valkey: Valkey) -> None:
    async with member(valkey) as a, trio.open_nursery() as nursery:
        found: list[str] = []

        async def patient(name: str) -> None:
            found.append((await stand(a, HERE, name)).kind)

        async def impatient(name: str) -> None:
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel, scope)
                await stand(a, HERE, name)

        async def cancel(scope: trio.CancelScope) -> None:
            scope.cancel()

        for number in range(100):
            nursery.start_soon(patient, f"p{number}")
            nursery.start_soon(impatient, f"i{number}")
        with trio.fail_after(PATIENCE_SECONDS):
            while len(found) < 100:  # noqa: ASYNC110 - a server's doing
                await trio.sleep(0.01)
        assert set(found) == {"in"}


async def test_who_gives_up_looking_keeps_nobody_waiting(valkey: Valkey) -> None:
    """Whoever waits for the connection may go away without taking the turn of those behind."""
    async with member(valkey) as a, trio.open_nursery() as nursery:
        many = [(f"u{number}", HERE) for number in range(200)]
        for _ in range(20):
            nursery.start_soon(a.tell, many)
            await trio.lowlevel.checkpoint()
            with trio.move_on_after(0.0005):
                await a.look("ann", ("b",))
            assert await a.beat()


async def test_whoever_waits_hears_at_once_that_nobody_asks_any_more(valkey: Valkey) -> None:
    async with connect(fleet_settings(valkey), "a", "i", PIN_SECONDS) as fleet, trio.open_nursery() as nursery:
        running = trio.CancelScope()
        problems: list[FleetLost] = []

        async def run() -> None:
            with running:
                await fleet.run()

        async def waits(name: str) -> None:
            try:
                await stand(fleet, HERE, name)
            except FleetLost as exc:
                problems.append(exc)

        await fleet.beat()
        nursery.start_soon(run)
        valkey.send(signal.SIGSTOP)
        try:
            nursery.start_soon(waits, "ann")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(waits, "bob")
            await trio.testing.wait_all_tasks_blocked()
            running.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert len(problems) == 2
        finally:
            valkey.send(signal.SIGCONT)


async def test_many_ask_at_once(valkey: Valkey) -> None:
    async with two(valkey) as (a, b), trio.open_nursery() as nursery:
        found: dict[str, list[Verdict]] = {}

        async def one(fleet: Fleet, name: str, share: Share) -> None:
            found.setdefault(name, []).append(await stand(fleet, share, name))

        for number in range(300):
            nursery.start_soon(one, a, f"u{number}", Share("d1", 1, 1))
            nursery.start_soon(one, b, f"u{number}", Share("d2", 1, 1))
        with trio.fail_after(PATIENCE_SECONDS):
            while sum(map(len, found.values())) < 600:  # noqa: ASYNC110 - a server's doing
                await trio.sleep(0.01)
        for verdicts in found.values():
            assert sorted(verdict.kind for verdict in verdicts) == ["elsewhere", "in"], "one is first"
            assert len({verdict.backend for verdict in verdicts}) == 1
