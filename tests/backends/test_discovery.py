"""Asking DNS: ordinary answers and odd ones, on UDP and TCP, and that nothing of it ends the asking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import dns.message
import dns.rcode
import dns.resolver
import dns.rrset
import pytest
import trio
import trio.testing

from proxy.backends.discovered import MOST_HOSTS, Found
from proxy.backends.discovery import Discovery, look_once
from proxy.model import Endpoint
from proxy.observe.metrics import METRICS
from proxy.settings.models import Discovery as Settings
from tests.servers.dns_server import Answer, Answering, AnyAnswer, Records, refusal

Shown = dict[str, tuple[str, ...]]
NAME = "dovecot.test"
SERVICE = "_imaps._tcp.test"
LEAST, MOST = 5.0, 300.0


class Stage:
    """A discovery, the server that it asks, and what it has told."""

    def __init__(self, server: AnyAnswer, settings: Settings, *, pinned: bool = False) -> None:
        self.server = server
        self.reports: list[Shown] = []
        self.discovery = Discovery(settings, self._report, pinned=pinned)

    def _report(self, found: Sequence[Found]) -> None:
        self.reports.append({each.server.name: each.addresses for each in found})

    def answers(self, records: Answering) -> None:
        self.server.answer = records


@pytest.fixture
async def server(nursery: trio.Nursery) -> AnyAnswer:
    made = AnyAnswer(Records({}))
    await nursery.start(made.serve)
    return made


@pytest.fixture
def stage(server: AnyAnswer) -> Stage:
    return Stage(server, settings(server))


def settings(server: AnyAnswer, **given: object) -> Settings:
    values = {"dns": NAME, "nameservers": (Endpoint("127.0.0.1", server.port),), **given}
    return Settings.model_validate(values, context=None)


def pods(*numbers: int, name: str = NAME, ttl: int = 30, v6: bool = False) -> Records:
    """A headless service with pods that have names, and the way back from their addresses."""
    addresses = {number: f"10.0.0.{number + 1}" for number in numbers}
    table: dict[str, object] = {f"{name}. A": (ttl, list(addresses.values()))}
    for number, address in addresses.items():
        table[f"dovecot-{number}.{name}. A"] = (ttl, [address])
        table[f"{number + 1}.0.0.10.in-addr.arpa. PTR"] = (ttl, [f"dovecot-{number}.{name}."])
    if v6:
        table[f"{name}. AAAA"] = (ttl, [f"fd00::{number + 1}" for number in numbers])
        for number in numbers:
            table[f"dovecot-{number}.{name}. AAAA"] = (ttl, [f"fd00::{number + 1}"])
            reverse = dns.reversename.from_address(f"fd00::{number + 1}").to_text()
            table[f"{reverse} PTR"] = (ttl, [f"dovecot-{number}.{name}."])
    return Records(table)  # type: ignore[arg-type]


def services(*targets: str, ttl: int = 30) -> Records:
    """SRV records: "0 0 993 mail1.test."; the hosts have an address each."""
    table: dict[str, object] = {f"{SERVICE}. SRV": (ttl, list(targets))}
    for number, target in enumerate(targets, start=1):
        table[f"{target.split()[-1].lower()} A"] = (ttl, [f"10.0.0.{number}"])
    return Records(table)  # type: ignore[arg-type]


def lookups(result: str) -> float:
    """How many rounds have ended so."""
    lines = METRICS.exposition()[0].decode().splitlines()
    (line,) = [line for line in lines if line.startswith(f'porter_discovery_lookups_total{{result="{result}"}}')]
    return float(line.split()[1])


# Ordinary answers


@pytest.mark.parametrize("given", [{}, {"ordinal_names": True}], ids=["pointers", "ordinals"])
async def test_pods(server: AnyAnswer, given: dict[str, object]) -> None:
    stage = Stage(server, settings(server, **given))
    stage.answers(pods(0, 1, 2, v6=True))
    assert await stage.discovery.look() == 30.0
    assert stage.reports == [{f"dovecot-{n}": (f"10.0.0.{n + 1}", f"fd00::{n + 1}") for n in range(3)}]


async def test_service(server: AnyAnswer) -> None:
    found: list[Found] = []
    discovery = Discovery(settings(server, dns=SERVICE, scheme="imap", weight=3), found.extend)
    server.answer = services("10 5 1993 mail1.test.", "20 0 993 Mail2.Other.test.")
    await discovery.look()
    assert [(each.server.name, str(each.server.url), each.server.weight, each.addresses) for each in found] == [
        ("mail1", "imap://mail1.test:1993", 3, ("10.0.0.1",)),
        ("mail2.other.test", "imap://mail2.other.test:993", 3, ("10.0.0.2",)),
    ]


async def test_an_alias(stage: Stage) -> None:
    def alias(query: dns.message.Message) -> Answer:
        answer = dns.message.make_response(query)
        answer.answer.append(dns.rrset.from_text(f"{NAME}.", 7, "IN", "CNAME", "real.test."))
        answer.answer.append(dns.rrset.from_text("real.test.", 60, "IN", "A", "10.0.0.1"))
        return answer

    records = pods(0)
    records.table[f"{NAME}. A"] = alias
    stage.answers(records)
    assert await stage.discovery.look() == 7.0
    assert stage.reports == [{"dovecot-0": ("10.0.0.1",)}]


async def test_what_is_the_same_is_told_once(stage: Stage) -> None:
    stage.answers(pods(0, 1))
    await stage.discovery.look()
    stage.answers(pods(1, 0))
    await stage.discovery.look()
    assert len(stage.reports) == 1


TTLS = [(0, LEAST), (4, LEAST), (5, 5.0), (77, 77.0), (300, 300.0), (86400, MOST)]


@pytest.mark.parametrize(("ttl", "seconds"), TTLS)
async def test_the_next_round_is_after_the_ttl(stage: Stage, ttl: int, seconds: float) -> None:
    stage.answers(pods(0, ttl=ttl))
    assert await stage.discovery.look() == seconds


async def test_the_shortest_ttl_counts(stage: Stage) -> None:
    records = pods(0, 1, ttl=200)
    records.table["2.0.0.10.in-addr.arpa. PTR"] = (50, [f"dovecot-1.{NAME}."])
    stage.answers(records)
    assert await stage.discovery.look() == 50.0


# Numbers


async def test_a_gap_is_a_backend_without_address(server: AnyAnswer) -> None:
    stage = Stage(server, settings(server, ordinal_names=True))
    stage.answers(pods(0, 2, ttl=200))
    assert await stage.discovery.look() == LEAST
    assert stage.reports == [{"dovecot-0": ("10.0.0.1",), "dovecot-1": (), "dovecot-2": ("10.0.0.3",)}]


async def test_a_wide_gap_is_crossed(server: AnyAnswer) -> None:
    stage = Stage(server, settings(server, ordinal_names=True))
    stage.answers(pods(0, 12, 25))
    await stage.discovery.look()
    (found,) = stage.reports
    assert list(found) == sorted(f"dovecot-{number}" for number in range(26))
    assert {name for name, addresses in found.items() if addresses} == {"dovecot-0", "dovecot-12", "dovecot-25"}


async def test_addresses_that_belong_to_no_number(server: AnyAnswer) -> None:
    stage = Stage(server, settings(server, ordinal_names=True))
    records = pods(0, 1)
    records.table[f"{NAME}. A"] = (30, ["10.0.0.1", "10.0.0.2", "10.9.9.9"])
    stage.answers(records)
    before = lookups("incomplete")
    assert await stage.discovery.look() == LEAST
    assert stage.reports == [{"dovecot-0": ("10.0.0.1",), "dovecot-1": ("10.0.0.2",)}]
    assert lookups("incomplete") == before + 1
    assert len(server.asked) < 50  # the numbers end


async def test_the_last_pod_starts_again(server: AnyAnswer, mock_clock: trio.testing.MockClock) -> None:
    stage = Stage(server, settings(server, ordinal_names=True, keep=600.0))
    stage.answers(pods(0, 1))
    await stage.discovery.look()
    stage.answers(pods(0))
    await stage.discovery.look()
    assert stage.reports[-1] == {"dovecot-0": ("10.0.0.1",), "dovecot-1": ()}
    mock_clock.jump(599)
    await stage.discovery.look()
    assert len(stage.reports) == 2
    mock_clock.jump(2)
    await stage.discovery.look()
    assert stage.reports[-1] == {"dovecot-0": ("10.0.0.1",)}


# What is listed no more


async def test_who_is_listed_no_more_has_the_addresses_of_its_name(server: AnyAnswer) -> None:
    stage = Stage(server, settings(server, dns=SERVICE))
    both = services("0 0 993 mail1.test.", "0 0 993 mail2.test.")
    stage.answers(both)
    await stage.discovery.look()
    both.table[f"{SERVICE}. SRV"] = (30, ["0 0 993 mail1.test."])
    both.table["mail2.test. A"] = (30, ["10.0.0.22"])
    await stage.discovery.look()
    assert stage.reports[-1] == {"mail1": ("10.0.0.1",), "mail2": ("10.0.0.22",)}
    del both.table["mail2.test. A"]
    await stage.discovery.look()
    assert stage.reports[-1] == {"mail1": ("10.0.0.1",), "mail2": ()}


async def test_a_pod_with_a_new_address_is_the_same(stage: Stage) -> None:
    stage.answers(pods(0, 1))
    await stage.discovery.look()
    records = pods(0)
    records.table[f"{NAME}. A"] = (30, ["10.0.0.1", "10.0.0.77"])
    records.table[f"dovecot-1.{NAME}. A"] = (30, ["10.0.0.77"])
    records.table["77.0.0.10.in-addr.arpa. PTR"] = (30, [f"dovecot-1.{NAME}."])
    stage.answers(records)
    await stage.discovery.look()
    assert stage.reports[1:] == [{"dovecot-0": ("10.0.0.1",), "dovecot-1": ("10.0.0.77",)}]


# Whom to believe


@pytest.mark.parametrize("pinned", [False, True])
async def test_a_service_of_foreign_hosts(server: AnyAnswer, pinned: bool) -> None:
    stage = Stage(server, settings(server, dns=SERVICE), pinned=pinned)
    server.answer = services("0 0 993 mail1.test.", "0 0 993 mail1.evil.example.")
    before = lookups("incomplete")
    await stage.discovery.look()
    foreign = {"mail1.evil.example": ("10.0.0.2",)} if pinned else {}
    assert stage.reports == [{"mail1": ("10.0.0.1",), **foreign}]
    assert lookups("incomplete") == before + (not pinned)
    found = await look_once(settings(server, dns=SERVICE), pinned=pinned)
    assert len(found) == 1 + pinned


@pytest.mark.parametrize("pinned", [False, True])
async def test_addresses_with_foreign_names(server: AnyAnswer, pinned: bool) -> None:
    stage = Stage(server, settings(server), pinned=pinned)
    records = pods(0, 1)
    records.table["2.0.0.10.in-addr.arpa. PTR"] = (30, ["mail.evil.example."])
    records.table["mail.evil.example. A"] = (30, ["10.0.0.2"])
    server.answer = records
    await stage.discovery.look()
    foreign = {"mail.evil.example": ("10.0.0.2",)} if pinned else {}
    assert stage.reports == [{"dovecot-0": ("10.0.0.1",), **foreign}]


async def test_a_pointer_to_a_name_that_has_another_address(stage: Stage) -> None:
    records = pods(0, 1)
    records.table["2.0.0.10.in-addr.arpa. PTR"] = (30, [f"dovecot-0.{NAME}."])
    stage.answers(records)
    before = lookups("incomplete")
    assert await stage.discovery.look() == LEAST
    assert stage.reports == [{"dovecot-0": ("10.0.0.1",)}]
    assert lookups("incomplete") == before + 1


async def test_a_pointer_to_a_name_that_there_is_not(stage: Stage) -> None:
    records = pods(0, 1)
    del records.table[f"dovecot-1.{NAME}. A"]
    stage.answers(records)
    await stage.discovery.look()
    assert stage.reports == [{"dovecot-0": ("10.0.0.1",)}]


async def test_a_name_that_is_denied_by_mistake_keeps_its_listed_address(stage: Stage) -> None:
    records = pods(0, 1)
    stage.answers(records)
    await stage.discovery.look()
    del records.table[f"dovecot-1.{NAME}. A"]
    assert await stage.discovery.look() == LEAST
    assert len(stage.reports) == 1


async def test_a_name_that_moved_has_its_old_address_no_more(stage: Stage) -> None:
    """Though that is still listed, and still leads to it."""
    records = pods(0, 1)
    stage.answers(records)
    await stage.discovery.look()
    records.table[f"dovecot-1.{NAME}. A"] = (30, ["10.0.0.9"])
    await stage.discovery.look()
    assert stage.reports[-1] == {"dovecot-0": ("10.0.0.1",), "dovecot-1": ("10.0.0.9",)}


async def test_a_name_that_nobody_answers_for(server: AnyAnswer) -> None:
    """Who was there stays as he was; who is new is not believed yet."""
    stage = Stage(server, settings(server, keep=0.0))
    records = pods(0, 1)
    stage.answers(records)
    await stage.discovery.look()
    records = pods(0, 1, 2)
    for number in (1, 2):
        del records.table[f"dovecot-{number}.{NAME}. A"]
        records.table[f"dovecot-{number}.{NAME}. *"] = servfail
    stage.answers(records)
    assert await stage.discovery.look() == LEAST
    assert len(stage.reports) == 1


# Outages and odd answers


def servfail(query: dns.message.Message) -> Answer:
    return refusal(query, dns.rcode.SERVFAIL)


def loop(query: dns.message.Message) -> Answer:
    answer = dns.message.make_response(query)
    name = query.question[0].name
    answer.answer.append(dns.rrset.from_text(name, 30, "IN", "CNAME", "x.test."))
    answer.answer.append(dns.rrset.from_text("x.test.", 30, "IN", "CNAME", name.to_text()))
    return answer


def cut(query: dns.message.Message) -> Answer:
    return dns.message.make_response(query).to_wire()[:-3]


def of_another_question(query: dns.message.Message) -> Answer:
    return dns.message.make_response(dns.message.make_query("elsewhere.test.", "A", id=query.id))


def endless_aliases(query: dns.message.Message) -> Answer:
    answer = dns.message.make_response(query)
    name = query.question[0].name.to_text()
    for number in range(40):
        answer.answer.append(dns.rrset.from_text(name, 30, "IN", "CNAME", f"n{number}.test."))
        name = f"n{number}.test."
    answer.answer.append(dns.rrset.from_text(name, 30, "IN", "A", "10.0.0.1"))
    return answer


ODD = [
    ("servfail", servfail, "failed"),
    ("refused", lambda query: refusal(query, dns.rcode.REFUSED), "failed"),
    ("no such name", lambda query: refusal(query, dns.rcode.NXDOMAIN), "empty"),
    ("no records", lambda query: refusal(query, dns.rcode.NOERROR), "empty"),
    ("aliases in a circle", loop, "failed"),
    ("aliases without end", endless_aliases, "failed"),
    ("silence", lambda query: None, "failed"),
    ("half an answer", cut, "failed"),
    ("no message", lambda query: b"\x00", "failed"),
    ("an answer to something else", of_another_question, "failed"),
]


@pytest.mark.parametrize(("what", "answer", "result"), ODD, ids=[each[0] for each in ODD])
@pytest.mark.parametrize(
    "given", [{}, {"ordinal_names": True}, {"dns": SERVICE}], ids=["pointers", "ordinals", "service"]
)
async def test_all_stays_when_dns_fails(
    server: AnyAnswer,
    mock_clock: trio.testing.MockClock,
    what: str,
    answer: Answering,
    result: str,
    given: dict[str, object],
) -> None:
    stage = Stage(server, settings(server, keep=0.0, **given))
    good = services("0 0 993 mail1.test.") if given.get("dns") else pods(0, 1)
    stage.answers(good)
    await stage.discovery.look()
    server.answer, before = answer, lookups(result)
    mock_clock.rate = 20 if result == "failed" else 0  # some are waited for
    assert await stage.discovery.look() == LEAST
    mock_clock.rate = 0
    assert lookups(result) == before + 1
    stage.answers(good)
    await stage.discovery.look()
    assert len(stage.reports) == 1


@pytest.mark.parametrize(("what", "answer", "result"), ODD, ids=[each[0] for each in ODD])
async def test_nothing_is_told_before_there_is_a_good_answer(
    stage: Stage, mock_clock: trio.testing.MockClock, what: str, answer: Answering, result: str
) -> None:
    mock_clock.rate = 20
    stage.answers(answer)
    await stage.discovery.look()
    assert stage.reports == []


async def test_one_question_of_many_fails(server: AnyAnswer) -> None:
    stage = Stage(server, settings(server, dns=SERVICE))
    records = services("0 0 993 mail1.test.", "0 0 993 mail2.test.")
    stage.answers(records)
    await stage.discovery.look()
    records.table |= {"mail1.test. A": (30, ["10.0.0.11"]), "mail2.test. *": servfail}
    del records.table["mail2.test. A"]
    assert await stage.discovery.look() == LEAST
    assert stage.reports[-1] == {"mail1": ("10.0.0.11",), "mail2": ("10.0.0.2",)}


@pytest.mark.parametrize("given", [{}, {"ordinal_names": True}], ids=["pointers", "ordinals"])
async def test_all_questions_of_the_second_step_fail(server: AnyAnswer, given: dict[str, object]) -> None:
    stage = Stage(server, settings(server, **given))
    stage.answers(pods(0, 1))
    await stage.discovery.look()
    before = lookups("failed")
    stage.answers(Records({f"{NAME}. A": (30, ["10.0.0.8", "10.0.0.9"])}))
    for name in ("dovecot-0." + NAME, "dovecot-1." + NAME, "8.0.0.10.in-addr.arpa", "9.0.0.10.in-addr.arpa"):
        server.answer.table[f"{name}. *"] = servfail  # type: ignore[attr-defined]
    for number in range(2, 20):
        server.answer.table[f"dovecot-{number}.{NAME}. *"] = servfail  # type: ignore[attr-defined]
    assert await stage.discovery.look() == LEAST
    assert lookups("failed") == before + 1
    assert len(stage.reports) == 1


async def test_one_family_fails(server: AnyAnswer) -> None:
    """Some name servers know nothing of AAAA: what is missing then is not gone."""
    stage = Stage(server, settings(server, keep=0.0))
    records = pods(0, 1, v6=True)
    records.table[f"{NAME}. A"] = (30, ["10.0.0.1"])
    del records.table[f"dovecot-1.{NAME}. A"]
    stage.answers(records)
    await stage.discovery.look()
    for name in (NAME, f"dovecot-1.{NAME}"):
        records.table[f"{name}. AAAA"] = servfail
    assert await stage.discovery.look() == LEAST
    assert stage.reports == [
        {"dovecot-0": ("10.0.0.1", "fd00::1"), "dovecot-1": ("fd00::2",)},
        {"dovecot-0": ("10.0.0.1",), "dovecot-1": ("fd00::2",)},
    ]


async def test_an_address_without_a_name_is_left_out(stage: Stage) -> None:
    records = pods(0, 1)
    del records.table["2.0.0.10.in-addr.arpa. PTR"]
    stage.answers(records)
    await stage.discovery.look()
    assert stage.reports == [{"dovecot-0": ("10.0.0.1",)}]


@pytest.mark.parametrize(
    "target", ["mail\\032x.test.", "*.test.", "10.0.0.9.", "10-0-0-9.test.", f"{'a' * 63}.b.test."]
)
async def test_a_target_that_can_be_no_backend(server: AnyAnswer, target: str) -> None:
    stage = Stage(server, settings(server, dns=SERVICE))
    stage.answers(services("0 0 993 mail1.test.", f"0 0 993 {target}"))
    before = lookups("incomplete")
    await stage.discovery.look()
    assert stage.reports == [{"mail1": ("10.0.0.1",)}]
    assert lookups("incomplete") == before + 1


async def test_what_does_not_fit_a_datagram_comes_by_tcp(server: AnyAnswer) -> None:
    stage = Stage(server, settings(server, dns=SERVICE))
    stage.answers(services(*(f"0 0 993 mail{number}.test." for number in range(60))))
    await stage.discovery.look()
    assert len(stage.reports[0]) == 60
    assert f"tcp {SERVICE}. SRV" in server.asked


@pytest.mark.parametrize("given", [{}, {"ordinal_names": True}, {"dns": SERVICE}])
async def test_thousands_of_records(server: AnyAnswer, given: dict[str, object]) -> None:
    stage = Stage(server, settings(server, **given))
    many = range(MOST_HOSTS + 1)
    addresses = [f"10.1.{number // 250}.{number % 250}" for number in many]
    targets = [f"0 0 993 n{number}.test." for number in many]
    stage.answers(Records({f"{NAME}. A": (30, addresses), f"{SERVICE}. SRV": (30, targets)}))
    before = lookups("failed")
    assert await stage.discovery.look() == LEAST
    assert (lookups("failed"), stage.reports) == (before + 1, [])
    assert len(server.asked) <= 4  # nobody asks for what each of them is


async def test_a_name_server_that_is_not_there(refusing: int, mock_clock: trio.testing.MockClock) -> None:
    mock_clock.rate = 20
    nobody = AnyAnswer(Records({}), refusing)
    stage = Stage(nobody, settings(nobody))
    assert await stage.discovery.look() == LEAST
    assert stage.reports == []


async def test_the_next_name_server_is_asked(
    server: AnyAnswer, refusing: int, mock_clock: trio.testing.MockClock
) -> None:
    mock_clock.rate = 5
    both = (Endpoint("127.0.0.1", refusing), Endpoint("127.0.0.1", server.port))
    stage = Stage(server, settings(server, nameservers=both))
    stage.answers(pods(0))
    await stage.discovery.look()
    assert stage.reports == [{"dovecot-0": ("10.0.0.1",)}]


@pytest.mark.parametrize("text", ["", "nameserver nowhere\n", None])
async def test_no_name_server_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None) -> None:
    """/etc/resolv.conf is read each time: it may be there later."""
    file = tmp_path / "resolv.conf"
    if text is not None:
        file.write_text(text)
    read = dns.resolver.BaseResolver.read_resolv_conf
    monkeypatch.setattr(dns.resolver.BaseResolver, "read_resolv_conf", lambda self, _: read(self, str(file)))
    reports: list[object] = []
    discovery = Discovery(Settings(dns=NAME), reports.append)
    before = lookups("failed")
    assert await discovery.look() == LEAST
    assert (lookups("failed"), reports) == (before + 1, [])


# The log, and asking for ever


async def test_trouble_is_logged_once(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    for answer in (pods(0), servfail, servfail, pods(0), pods(0), Records({})):
        stage.server.answer = answer
        await stage.discovery.look()
    events = [line.split()[2] for line in capfd.readouterr().err.splitlines()]
    assert events == ["discovery.changed", "discovery.failed", "discovery.recovered", "discovery.failed"]


async def test_asks_for_ever(nursery: trio.Nursery, server: AnyAnswer, mock_clock: trio.testing.MockClock) -> None:
    """Neither DNS nor a mistake of ours ends it."""
    told = trio.Event()
    crashes, failures = 1, 4  # two questions a round

    def report(found: Sequence[Found]) -> None:
        nonlocal crashes
        if crashes:
            crashes, server.answer = 0, fail_for_a_while
            raise RuntimeError("a mistake")
        told.set()

    def fail_for_a_while(query: dns.message.Message) -> Answer:
        nonlocal failures
        failures -= 1
        if not failures:
            server.answer = pods(0)
        return servfail(query)

    server.answer = pods(0)
    before = lookups("failed")
    await nursery.start(Discovery(settings(server), report).run)
    assert not told.is_set()
    mock_clock.autojump_threshold = 0.05
    with trio.fail_after(1000):
        await told.wait()
    assert lookups("failed") > before
    assert not failures
    nursery.cancel_scope.cancel()


async def test_started_after_a_bad_round_too(nursery: trio.Nursery, stage: Stage) -> None:
    stage.server.answer = servfail
    await nursery.start(stage.discovery.run)
    assert stage.reports == []
    nursery.cancel_scope.cancel()
