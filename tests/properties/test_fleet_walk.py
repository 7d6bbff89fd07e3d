"""Whatever users, administrators and servers do at several proxies of a fleet: once all is quiet each user is at one
backend, has no more sessions than he may, and the fleet knows of all of them; and as long as nobody loses the fleet,
nobody is ever let in at a second backend. The seed chooses the steps; when each of them meets the others is up to the
machine, so that a seed which has failed need not fail again.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter

import pytest
import trio

from proxy.ledger.fleet import DEAD_SECONDS, FleetLost
from proxy.ledger.guests import Guest
from proxy.outcome import Refused
from tests.app.fleet_proxies import PATIENCE_SECONDS, Proxy, make_brisk, new_proxy
from tests.servers.own_valkey import ask
from tests.servers.valkey import Valkey

pytestmark = pytest.mark.server

MEMBERS = "abc"
NAMES = ("ann", "bob", "cid")
BACKENDS = ("d1", "d2")
MOST = 4
STEPS = 60
AT_ONCE = 12  # steps; then all is quiet for a moment


class Walk:
    """Proxies, and what they should know."""

    def __init__(self, seed: int, valkey: Valkey, nursery: trio.Nursery, *, calm: bool) -> None:
        self._random, self._valkey, self._nursery, self._calm = random.Random(seed), valkey, nursery, calm
        self.proxies: dict[str, Proxy] = {}
        self._logins = 0  # under way
        self._done: list[str] = []

    async def begin(self, name: str) -> None:
        proxy = new_proxy(name, self._valkey, self._nursery, limits={"connections_per_user": MOST})
        proxy.kicks_end = True
        self.proxies[name] = proxy
        await self._nursery.start(proxy.run)

    async def run(self) -> None:
        for name in MEMBERS:
            await self.begin(name)
        for number in range(STEPS):
            await self._step()
            if number % AT_ONCE == AT_ONCE - 1:
                await self._be_quiet()
        for proxy in self.proxies.values():
            for name in NAMES:
                proxy.registry.release_user(name)
        for proxy in self.proxies.values():
            proxy.end(*proxy.registry.guests)
        await self._be_quiet()
        assert await self._known() == {}
        self._nursery.cancel_scope.cancel()

    # --- what happens ---

    async def _step(self) -> None:
        chance = self._random
        proxy = self.proxies[chance.choice(MEMBERS)]
        name, backend = chance.choice(NAMES), chance.choice(BACKENDS)
        kinds = (
            ["log_in"] * 6 + ["leave"] * 4 + ["fail", "give_up", "weigh", "state", "move", "hold", "release", "kick"]
        )
        if not self._calm:
            kinds += ["lose", "lose", "crash", "flush", "silence"]
        kind = chance.choice(kinds)
        self._done.append(f"{proxy.name} {kind} {name} {backend}")
        guests = [guest for guest in proxy.registry.guests if guest.name == name]
        match kind:
            case "log_in":
                for _ in range(chance.randint(1, 3)):
                    override, verified = chance.choice((None, None, None, backend)), chance.random() < 0.7
                    self._nursery.start_soon(self._log_in, proxy, name, override, verified)
            case "leave":
                proxy.end(*guests[: chance.randint(1, 3)])
            case "fail":
                self._nursery.start_soon(self._fail, proxy, name)
            case "give_up":
                with trio.move_on_after(chance.random() * 0.01):
                    await self._fail(proxy, name)
            case "weigh":
                proxy.registry.cluster.set_weight(backend, chance.choice((0, 1, 5)), 0.0)
            case "state":
                proxy.registry.undrain(backend)
                proxy.registry.cluster.set_state(backend, chance.choice(("up", "up", "drain")), 0.0)
            case "move":
                proxy.registry.move(name, backend, until=None, reason="r", by="b")
            case "hold":
                proxy.registry.hold(name, until=None, reason="r", by="b")
            case "release":
                proxy.registry.release_user(name)
            case "kick":
                proxy.kick_here(name)
                proxy.member.kick({"user": name})
            case "lose":
                proxy.member._lose(FleetLost("a step's doing"))
            case "crash":
                await proxy.stop()
                proxy.end(*proxy.registry.guests)
                await self.begin(proxy.name)
            case "flush":
                await ask(self._valkey, "FLUSHALL")
            case "silence":  # others may take it for dead, until its next beat
                heard = str(time.time() - DEAD_SECONDS - 5)
                await ask(self._valkey, "HSET", "imap-porter:members", proxy.name, heard)
            case _:
                raise AssertionError(kind)
        await trio.sleep(chance.choice((0.0, 0.0, 0.0, 0.01, 0.05)))

    async def _log_in(self, proxy: Proxy, name: str, override: str | None, verified: bool) -> None:
        self._logins += 1
        try:
            with trio.move_on_after(PATIENCE_SECONDS):
                guest = await proxy.admit(name, override, verified=verified)
                if self._calm:
                    self._check_backends(name)
                self._confirm(proxy, guest)
        except Refused:
            pass
        finally:
            self._logins -= 1

    @staticmethod
    def _confirm(proxy: Proxy, guest: Guest) -> None:
        try:
            proxy.registry.confirm(guest.id)
        except Refused:
            proxy.end(guest)

    async def _fail(self, proxy: Proxy, name: str) -> None:
        self._logins += 1
        try:
            guest = await proxy.admit(name, verified=False)
            proxy.end(guest, opened=False)
        except Refused:
            pass
        finally:
            self._logins -= 1

    # --- what holds ---

    def _check_backends(self, name: str) -> None:
        backends = {backend for proxy in self.proxies.values() for backend in proxy.live.get(name, ())}
        assert len(backends) <= 1, (name, [proxy.live for proxy in self.proxies.values()], self._done)

    async def _known(self) -> dict[str, dict[str, str]]:
        """What stands at the server of users with sessions."""
        known = {}
        for name in NAMES:
            user = json.loads(await ask(self._valkey, "--json", "HGETALL", f"imap-porter:user:{name}")) or {}
            if members := {field: value for field, value in user.items() if not field.startswith("@")}:
                known[name] = {"@backend": user["@backend"], **members}
        return known

    def _true(self) -> dict[str, dict[str, str]]:
        """As _known(), by what there is."""
        true: dict[str, dict[str, str]] = {}
        for proxy in self.proxies.values():
            for name, backends in proxy.live.items():
                true.setdefault(name, {})["@backend"] = backends[0]
                true[name][proxy.name] = f"{len(backends)} {len(backends)}"
        return true

    async def _be_quiet(self) -> None:
        """All that was begun is over, which comes by itself."""
        true = known = {}
        with trio.move_on_after(2 * PATIENCE_SECONDS) as scope:
            while True:
                members = [proxy.member for proxy in self.proxies.values()]
                busy = any(member._logins._unproved or member._logins.telling or not member.is_up for member in members)
                quiet = not self._logins and not busy
                true, known = self._true(), await self._known()
                if quiet and true == known == self._true() and self._agreed():
                    break
                await trio.sleep(0.02)
        said = [proxy.registry.directions.memory() for proxy in self.proxies.values()]
        problems = [proxy.member.status()["error"] for proxy in self.proxies.values()]
        about = json.dumps([true, known, self._logins, said, problems, self._done])
        assert not scope.cancelled_caught, about
        for name in NAMES:
            self._check_backends(name)
            if self._calm:
                counted = Counter(guest.name for proxy in self.proxies.values() for guest in proxy.registry.guests)
                assert counted[name] <= MOST, about
        for proxy in self.proxies.values():
            assert proxy.member._logins._turns == {}
            assert proxy.member._logins._deciding == {}
            assert len(proxy.registry.guests) == len(proxy.registry.ledger)

    def _agreed(self) -> bool:
        """All know the same of what administrators say."""
        said = [sorted(proxy.registry.directions.memory(), key=repr) for proxy in self.proxies.values()]
        return all(each == said[0] for each in said)


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    make_brisk(monkeypatch)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("calm", [True, False], ids=["calm", "rough"])
async def test_several_proxies_are_of_one_mind(valkey: Valkey, calm: bool, seed: int) -> None:
    async with trio.open_nursery() as nursery:
        await Walk(seed, valkey, nursery, calm=calm).run()
