"""The rights that docs/fleet.md gives the fleet's user at its server are enough for all that a proxy asks there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from proxy.ledger.fleet import FleetLost, connect
from proxy.ledger.resident import NOTHING, Share
from proxy.settings.models import Fleet as FleetSettings
from tests.servers.own_valkey import fleet_settings
from tests.servers.valkey import Valkey

pytestmark = pytest.mark.server

PAGE = Path(__file__).parents[2] / "docs" / "fleet.md"
PASSWORD = "rights-pw-71c2"
HERE, THERE, GONE = Share("d1", 1, 1), Share("d2", 1, 1), Share("d1", 0, 0, left_seconds=0.0, sticky=True)
SAID = [["ann", "d1", 0.0, "ops", "ticket 4711", None]]


def rights() -> tuple[str, list[str]]:
    """The user of the page, and what he may."""
    (line,) = re.findall(r"^ *user (imap-porter on >PASSWORD .+)$", PAGE.read_text(), re.MULTILINE)
    name, *words = line.replace("PASSWORD", PASSWORD).split()
    return name, words


@pytest.fixture
def user(valkey: Valkey, tmp_path: Path) -> Iterator[FleetSettings]:
    """As this user one gets in."""
    name, words = rights()
    assert valkey.ask("ACL", "SETUSER", name, "reset", *words) == "OK"
    valkey.ask("ACL", "LOG", "RESET")
    (tmp_path / "password").write_text(PASSWORD)
    try:
        url = valkey.url.removesuffix("0") + "1"  # one that has to be selected
        yield fleet_settings(valkey, valkey=url, username=name, password={"file": str(tmp_path / "password")})
    finally:
        valkey.ask("ACL", "DELUSER", name)


async def ask_all(settings: FleetSettings) -> None:
    """Each request, and each branch of the scripts that asks for something else."""
    async with connect(settings, "a", "i", 900.0) as a, connect(settings, "b", "j", 0.0) as b:
        for fleet in (a, b):
            await fleet.beat()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.run)
            nursery.start_soon(b.run)
            async with trio.open_nursery() as together:
                for name in ("ann", "bob"):
                    together.start_soon(lambda name: a.stand(name, HERE, most=3, firm=False), name)
            assert (await b.stand("ann", THERE, most=3, firm=False)).kind == "elsewhere"
            assert (await b.stand("ann", HERE, most=1, firm=False)).kind == "full"
            assert await b.look("ann", ["a", "b"]) is not None
            assert await a.known_here() == {"ann", "bob"}
            await a.tell([("ann", HERE), ("bob", GONE)])
            await b.tell([("carol", THERE)])
            await b.tell([("carol", NOTHING)])  # nothing has to be remembered
            nursery.cancel_scope.cancel()
        await a.put_said({"ann": SAID})
        assert await a.restore_said({"ann": SAID, "bob": SAID}) == {"bob"}
        assert set(await b.said()) == {"ann", "bob"}
        assert await b.said(["ann", "dave"]) == {"ann": SAID, "dave": None}
        await a.forget_said({"ann": SAID, "bob": SAID})
        assert await b.newest() == "0-0"
        await a.say([("said", ["ann"]), ("close", [["ann", "d1"]])])
        assert [order.kind for order in await b.hear("0-0")] == ["said", "close"]
        assert len(await b.earlier()) == 2
        assert await b.newest() != "0-0"
        await b.leave()
        await b.tell([("ann", HERE)])
        await a.tell([("ann", HERE)])  # which throws away what one has said that has left
        await a.leave()


async def test_the_rights_are_enough(user: FleetSettings, valkey: Valkey) -> None:
    await ask_all(user)
    refused = re.findall(r'"object":"([^"]*)"', valkey.ask("--json", "ACL", "LOG"))
    assert [what for what in refused if what != "client|setinfo"] == []  # the page says so


@pytest.mark.parametrize("right", ["select", "hsetnx", "xrevrange"])
async def test_the_trial_would_notice(user: FleetSettings, valkey: Valkey, right: str) -> None:
    valkey.ask("ACL", "SETUSER", rights()[0], f"-{right}")
    with pytest.raises(FleetLost, match=f"no permissions to run the '{right}' command"):
        await ask_all(user)
