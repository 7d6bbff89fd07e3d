"""What a whole steward shows administrators, on the socket and on the address."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme

from proxy.admin.verbs import VERBS
from proxy.auth.passwords import Parameters, hash_password
from tests.app.fake_workers import PATIENCE_SECONDS, settings_of
from tests.app.test_steward import Household

TOKEN = "s3cret-token"
HASH = hash_password(TOKEN.encode(), Parameters(memory_kib=8, time=1, parallelism=1))
ADMIN = {"address": "127.0.0.1:9143", "tokens": [{"name": "office", "role": "viewer", "hash": HASH}]}


@pytest.fixture
async def household(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Household]:
    with ExitStack() as stack:
        made = Household(nursery, tmp_path, stack)
        yield made
        for reign in made.reigns:
            await reign.kill()
            reign.close()
        for worker in made.workers:
            worker.close()


async def look(household: Household, verb: str, **values: Any) -> dict[str, Any]:
    """What is answered, which is what its type says."""
    question = VERBS[verb].ask(**values)
    status, answer = await household.ask(VERBS[verb].target(question))
    assert status == 200, answer
    VERBS[verb].answer.model_validate(answer)
    document: dict[str, Any] = answer
    return document


async def test_generations(household: Household) -> None:
    reign = await household.begin()
    processes = [
        {"process": name, "role": role, "generation": generation, "pid": 1, "state": "accepting", "restarts": 0}
        for name, role, generation in (
            ("w1.0", "worker", 1),
            ("w1.1", "worker", 1),
            ("w0.0", "worker", 0),
            ("s", "s", 1),
        )
    ]
    reign.say(["status", {"generation": 1, "processes": processes}])
    reign.say(["metrics", []])
    await household.workers[0].admit("a", "ann")
    generations = (await look(household, "generations"))["generations"]
    assert [(each["generation"], each["state"], each["workers"], each["sessions"]) for each in generations] == [
        (1, "current", 2, 1),
        (0, "old", 1, 0),
    ]


async def test_limits(household: Household) -> None:
    await household.begin()
    limits = {each["limit"]: each for each in (await look(household, "limits"))["limits"]}
    assert limits["connections_per_user"]["value"] == settings_of().limits.connections_per_user
    assert set(limits["commands_per_user"]["reached"]) == {"delay", "refuse", "disconnect"}


async def test_settings_hide_their_secrets(household: Household) -> None:
    await household.begin(settings_of(admin=ADMIN))
    answer = await look(household, "settings")
    assert answer["settings"]["admin"]["tokens"] == [{"name": "office", "role": "viewer", "hash": "(hidden)"}]
    assert HASH not in json.dumps(answer)
    assert "backends.health.interval" in {each["key"] for each in answer["differs"]}


# One that asks others for the names, with what they ask for in return.
SERVICES = [
    {"http": {"url": "https://a.example/auth?key=S3CRET-1", "headers": {"Authorization": "Bearer S3CRET-2"}}},
    {"http": {"url": "https://b.example/auth", "headers": {"X-Key": {"env": "PORTER_TEST_KEY"}}}},
    {
        "oauth": {
            "issuer": "https://c.example",
            "jwks_url": "https://c.example/keys?key=S3CRET-3",
            "audience": "mail",
            "introspection": {
                "url": "https://c.example/ask?key=S3CRET-4",
                "client_id": "porter",
                "client_secret": {"env": "PORTER_TEST_KEY"},
            },
        }
    },
]


async def test_settings_hide_what_web_services_want(household: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTER_TEST_KEY", "S3CRET-5")
    await household.begin(settings_of(identity=SERVICES))
    answer = await look(household, "settings")
    assert "S3CRET" not in json.dumps(answer)
    one, two, three = answer["settings"]["identity"]
    assert one["http"]["url"] == "https://a.example/auth?(hidden)"
    assert one["http"]["headers"] == {"Authorization": "(hidden)"}
    assert two["http"]["url"] == "https://b.example/auth"
    assert two["http"]["headers"] == {"X-Key": {"env": "PORTER_TEST_KEY"}}, "where it is, which is no secret"
    assert three["oauth"]["jwks_url"] == "https://c.example/keys?(hidden)"
    assert three["oauth"]["introspection"]["url"] == "https://c.example/ask?(hidden)"
    differs = {each["key"]: each["value"] for each in answer["differs"]}
    assert differs["identity[0].http.headers"] == {"Authorization": "(hidden)"}
    assert differs["identity[1].http.headers"] == {"X-Key": {"env": "PORTER_TEST_KEY"}}
    assert differs["identity[2].oauth.jwks_url"] == "https://c.example/keys?(hidden)"


async def test_figures(household: Household) -> None:
    await household.begin()
    for session_id in ("a", "b"):
        await household.workers[0].admit(session_id, "ann")
    household.workers[0].confirm("a")
    await trio.testing.wait_all_tasks_blocked()
    figures = await look(household, "figures")
    assert figures["sessions"] == 2
    assert sum(backend["sessions"] for backend in figures["backends"].values()) == 1, "the other one logs in"
    counts = [count for _, count in figures["login_seconds"]["buckets"]]
    assert counts == sorted(counts)
    assert counts[-1] == figures["login_seconds"]["count"]


async def test_figures_of_workers(household: Household) -> None:
    """By the names that the other pages have."""
    reign = await household.begin()
    workers = [
        {"process": name, "role": role, "generation": generation, "pid": 1, "state": "accepting", "restarts": 0}
        for name, role, generation in (("w0.0", "worker", 0), ("w1.0", "worker", 1), ("s1", "steward", 1))
    ]
    reign.say(["status", {"generation": 1, "processes": workers}])
    reign.say(["metrics", []])
    for place in ("worker-0", "worker-7"):
        household.workers[0].tell(
            ["metrics", [["porter_process_resident_bytes", [place], 5.0]]],
            ["metrics", [["porter_event_loop_delay_seconds", [place], [[], 0.0]]]],
        )
    await trio.testing.wait_all_tasks_blocked()
    told = {each["process"]: each["resident_bytes"] for each in (await look(household, "figures"))["workers"]}
    told.pop("master", None)  # this very process, if a test before has counted there
    assert told == {"w1.0": 5.0, "worker-7": 5.0}, "of the generation that serves; who is not there keeps his place"


async def ask(stream: trio.abc.Stream, target: str, *headers: str, method: str = "GET") -> int:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *headers, "", ""]
    with trio.fail_after(PATIENCE_SECONDS):
        await stream.send_all("\r\n".join(lines).encode())
        answer = b"".join([chunk async for chunk in stream])
    return int(answer.split(b" ")[1])


ON_THE_ADDRESS = [
    ("/livez", "GET", 200, 200),
    ("/readyz", "GET", 200, 200),
    ("/", "GET", 200, 200),
    ("/v1/backends", "GET", 401, 200),
    ("/v1/reload", "POST", 401, 403),
]


@pytest.mark.parametrize(
    ("target", "method", "without", "with_"), ON_THE_ADDRESS, ids=[row[0] for row in ON_THE_ADDRESS]
)
async def test_on_the_address(household: Household, target: str, method: str, without: int, with_: int) -> None:
    await household.begin(settings_of(admin=ADMIN))
    for headers, status in (([], without), ([f"Authorization: Bearer {TOKEN}"], with_)):
        async with await trio.open_tcp_stream(*household.admin.getsockname()) as stream:
            assert await ask(stream, target, *headers, method=method) == status


async def test_tls_on_the_address(household: Household) -> None:
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    await household.begin(settings_of(admin=ADMIN), admin_tls=server)
    raw = await trio.open_tcp_stream(*household.admin.getsockname())
    stream = trio.SSLStream(raw, client, server_hostname="localhost", https_compatible=True)
    assert await ask(stream, "/v1/backends", f"Authorization: Bearer {TOKEN}") == 200
    await stream.aclose()
