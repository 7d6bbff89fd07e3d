"""Who the backends are, as answers tell it over time: tables, and a walk in which nobody's name may change."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.backends.discovered import (
    MOST_HOSTS,
    Listing,
    Members,
    NothingListed,
    by_ordinals,
    by_pointers,
    by_service,
    confirmed,
    in_order,
    ordinal_host,
)
from proxy.settings.models import Discovery

DNS = "dovecot.mail.svc.cluster.local"
POD = "dovecot-{}.dovecot.mail.svc.cluster.local"
KEEP = 600.0
Shown = dict[str, tuple[str, ...]]


def settings(**given: object) -> Discovery:
    return Discovery.model_validate({"dns": DNS, **given}, context={"folder": "."})


def listing(
    hosts: Mapping[str, Collection[str] | None], *, loose: Collection[str] = (), complete: bool = True, port: int = 993
) -> Listing:
    """None: the question for his addresses failed."""
    addresses = {host: found for host, found in hosts.items() if found is not None}
    return Listing(dict.fromkeys(hosts, port), addresses, loose, complete)


def shown(members: Members) -> Shown:
    return {found.server.name: found.addresses for found in members.found}


NAMES = [
    ("right below the name", DNS, POD.format(0), "dovecot-0"),
    ("further below", DNS, "a.b." + DNS, "a.b." + DNS),
    ("elsewhere", DNS, "mail1.example.org", "mail1.example.org"),
    ("a longer label at the seam", DNS, "mail1.x" + DNS, "mail1.x" + DNS),
    ("below a service's name", "_imaps._tcp.example.org", "mail1.example.org", "mail1"),
    ("a service's target elsewhere", "_imaps._tcp.example.org", "mail1.example.net", "mail1.example.net"),
    ("a service's target further below", "_imaps._tcp.example.org", "mail1.dc.example.org", "mail1.dc.example.org"),
    ("the name itself", "mail.example.org", "mail.example.org", "mail.example.org"),
    ("no domain", "dovecot", "dovecot", "dovecot"),
    ("no domain, below", "dovecot", "dovecot-0.dovecot", "dovecot-0"),
]


@pytest.mark.parametrize(("what", "asked", "host", "name"), NAMES)
def test_names(what: str, asked: str, host: str, name: str) -> None:
    members = Members(settings(dns=asked, weight=7, tag="gold", scheme="imap+starttls"), pinned=True)
    assert members.take(listing({host: ["10.0.0.1"]}, port=1143), 0) == {}
    (found,) = members.found
    assert (found.server.name, str(found.server.url)) == (name, f"imap+starttls://{host}:1143")
    assert (found.server.weight, found.server.tag, found.server.state) == (7, "gold", "up")


def test_a_name_does_not_depend_on_the_company() -> None:
    members = Members(settings(dns="_imaps._tcp.example.org"), pinned=True)
    members.take(listing({"mail1.example.org": ["10.0.0.1"]}), 0)
    members.take(listing({"mail1.example.org": ["10.0.0.1"], "mail1.example.net": ["10.0.0.2"]}), 1)
    assert shown(members) == {"mail1": ("10.0.0.1",), "mail1.example.net": ("10.0.0.2",)}


UNUSABLE = [
    ("an IPv4 address with dashes", "10-0-0-1." + DNS, "made of an address"),
    ("an IPv6 address with dashes", "fd00--1." + DNS, "made of an address"),
    ("an address", "10.0.0.1", "made of an address"),
    ("a space", "mail\\0321.example.org", "no host and port"),
    ("a wildcard", "*.example.org", "no host and port"),
    ("no port of TCP", "zero.example.org", "port 0"),
    ("like an address to resolvers", "mail.1", "no host and port"),
    ("too long to be a name here", "a" * 60 + ".example.org", "1 to 64"),
    ("an underscore first", "_mail.example.org", "letter or digit first"),
]


@pytest.mark.parametrize(("what", "host", "why"), UNUSABLE)
def test_who_cannot_be_a_backend_is_left_out(what: str, host: str, why: str) -> None:
    members = Members(settings(), pinned=True)
    port = 0 if host.startswith("zero") else 993
    problems = members.take(Listing({host: port, "mail1.example.org": 993}, {"mail1.example.org": ["10.0.0.1"]}), 0)
    assert list(problems) == [host]
    assert why in problems[host]
    assert shown(members) == {"mail1.example.org": ("10.0.0.1",)}


def test_two_of_one_name() -> None:
    members = Members(settings(dns="_imaps._tcp.example"), pinned=True)
    members.take(listing({"mail1.example": ["10.0.0.1"]}), 0)
    problems = members.take(listing({"mail1": ["10.0.0.2"], "mail1.example": ["10.0.0.1"]}), 1)
    assert list(problems) == ["mail1"]
    assert shown(members) == {"mail1": ("10.0.0.1",)}


def test_of_two_of_one_name_the_one_below_is_meant() -> None:
    """Whichever came first."""
    for first in ({}, {"mail1": ["10.0.0.2"]}):
        members = Members(settings(dns="_imaps._tcp.example"), pinned=True)
        members.take(listing(first), 0)
        problems = members.take(listing({"mail1": ["10.0.0.2"], "mail1.example": ["10.0.0.1"]}), 1)
        assert problems == {"mail1": "it would be called mail1, as mail1.example is"}
        assert shown(members) == {"mail1": ("10.0.0.1",)}
        assert members.hosts == {"mail1.example"}


FOREIGN = [
    ("below", DNS, POD.format(0), True),
    ("further below", DNS, "a.b." + DNS, True),
    ("the name itself", "mail.example.org", "mail.example.org", True),
    ("below a service's domain", "_imaps._tcp.example.org", "mail1.dc.example.org", True),
    ("a service's domain", "_imaps._tcp.example.org", "example.org", True),
    ("a longer label at the seam", "example.org", "mail.badexample.org", False),
    ("above", "mail.example.org", "example.org", False),
    ("a sister", "_imaps._tcp.example.org", "mail1.example.net", False),
    ("bare", "_imaps._tcp.example.org", "mail1", False),
    ("below a service of no domain", "_imaps._tcp", "mail1.example.org", False),
]


@pytest.mark.parametrize(("what", "asked", "host", "taken"), FOREIGN)
def test_dns_does_not_choose_whom_to_trust(what: str, asked: str, host: str, taken: bool) -> None:
    domain = asked.removeprefix("_imaps._tcp").lstrip(".")
    problem = f"not below {domain}, and neither backends.tls.ca nor backends.tls.name is set"
    members = Members(settings(dns=asked))
    assert members.take(listing({host: ["10.0.0.1"]}), 0) == ({} if taken else {host: problem})
    assert len(members.found) == taken
    members = Members(settings(dns=asked), pinned=True)
    assert members.take(listing({host: ["10.0.0.1"]}), 0) == {}


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "::ffff:0.0.0.0", "::ffff:239.1.2.3"])
def test_addresses_that_are_nobodys(address: str) -> None:
    members = Members(settings())
    problems = members.take(listing({A: ["10.0.0.1", address], B: [address]}), 0)
    assert list(problems) == [address]
    assert shown(members) == {"dovecot-0": ("10.0.0.1",), "dovecot-1": ()}


A, B, C = POD.format(0), POD.format(1), POD.format(2)
LIFE: list[tuple[str, list[tuple[float, Listing]], Shown]] = [
    (
        "a new address",
        [(0, listing({A: ["10.0.0.1"]})), (1, listing({A: ["10.0.0.9"]}))],
        {"dovecot-0": ("10.0.0.9",)},
    ),
    (
        "two change places",
        [(0, listing({A: ["10.0.0.1"], B: ["10.0.0.2"]})), (1, listing({A: ["10.0.0.2"], B: ["10.0.0.1"]}))],
        {"dovecot-0": ("10.0.0.2",), "dovecot-1": ("10.0.0.1",)},
    ),
    (
        "a question failed: as before",
        [(0, listing({A: ["10.0.0.1"], B: ["10.0.0.2"]})), (1, listing({A: None, B: ["10.0.0.2"]}))],
        {"dovecot-0": ("10.0.0.1",), "dovecot-1": ("10.0.0.2",)},
    ),
    (
        "a question failed, and the address is another's now",
        [(0, listing({A: ["10.0.0.1"], B: ["10.0.0.2"]})), (1, listing({A: None, B: ["10.0.0.1"]}))],
        {"dovecot-0": ("10.0.0.1",), "dovecot-1": ("10.0.0.1",)},
    ),
    (
        "listed without an address: it counts, and is nowhere",
        [(0, listing({A: ["10.0.0.1"], B: ["10.0.0.2"]})), (1, listing({A: [], B: ["10.0.0.2"]}))],
        {"dovecot-0": (), "dovecot-1": ("10.0.0.2",)},
    ),
    (
        "its name is denied while its address is still listed",
        [(0, listing({A: ["10.0.0.1"]})), (1, listing({A: []}, loose=["10.0.0.1"]))],
        {"dovecot-0": ("10.0.0.1",)},
    ),
    (
        "listed no more, not for long",
        [(0, listing({A: ["10.0.0.1"], B: ["10.0.0.2"]})), (1, listing({A: ["10.0.0.1"]})),
         (KEEP, listing({A: ["10.0.0.1"]}))],
        {"dovecot-0": ("10.0.0.1",), "dovecot-1": ("10.0.0.2",)},
    ),
    (
        "listed no more, and its own name has nothing",
        [(0, listing({A: ["10.0.0.1"], B: ["10.0.0.2"]})),
         (1, Listing({A: 993}, {A: ["10.0.0.1"], B: []}))],
        {"dovecot-0": ("10.0.0.1",), "dovecot-1": ()},
    ),
    (
        "listed no more, for long",
        [(0, listing({A: ["10.0.0.1"], B: ["10.0.0.2"]})), (1, listing({A: ["10.0.0.1"]})),
         (1 + KEEP, listing({A: ["10.0.0.1"]}))],
        {"dovecot-0": ("10.0.0.1",)},
    ),
    (
        "back in between: counted anew",
        [(0, listing({A: ["10.0.0.1"], B: ["10.0.0.2"]})), (1, listing({A: ["10.0.0.1"]})),
         (300, listing({A: ["10.0.0.1"], B: ["10.0.0.3"]})), (301, listing({A: ["10.0.0.1"]})),
         (1 + KEEP, listing({A: ["10.0.0.1"]}))],
        {"dovecot-0": ("10.0.0.1",), "dovecot-1": ("10.0.0.3",)},
    ),
    (
        "missing in answers that are not whole",
        [(0, listing({A: ["10.0.0.1"], B: ["10.0.0.2"]})), (1, listing({A: ["10.0.0.1"]}, complete=False)),
         (1 + KEEP, listing({A: ["10.0.0.1"]}, complete=False)), (2 + KEEP, listing({A: ["10.0.0.1"]}))],
        {"dovecot-0": ("10.0.0.1",), "dovecot-1": ("10.0.0.2",)},
    ),
    (
        "its address is listed, its name is not",
        [(0, listing({A: ["10.0.0.1"], B: ["10.0.0.2"]})), (1, listing({A: ["10.0.0.1"]}, loose=["10.0.0.2"])),
         (1 + KEEP, listing({A: ["10.0.0.1"]}, loose=["10.0.0.2"]))],
        {"dovecot-0": ("10.0.0.1",), "dovecot-1": ("10.0.0.2",)},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("what", "rounds", "expected"), LIFE)
def test_life(what: str, rounds: list[tuple[float, Listing]], expected: Shown) -> None:
    members = Members(settings(keep="10m"))
    for now, answer in rounds:
        assert members.take(answer, now) == {}
    assert shown(members) == expected


def test_nothing_is_kept_where_the_settings_say_so() -> None:
    members = Members(settings(keep="0s"))
    members.take(listing({A: ["10.0.0.1"], B: ["10.0.0.2"]}), 0)
    members.take(listing({A: ["10.0.0.1"]}), 0)
    assert shown(members) == {"dovecot-0": ("10.0.0.1",)}


def test_an_answer_of_which_nothing_can_be_used_takes_nobody_away() -> None:
    members = Members(settings(keep="0s"))
    members.take(listing({A: ["10.0.0.1"]}), 0)
    assert members.take(listing({"10-0-0-9." + DNS: ["10.0.0.9"]}), 1) != {}
    assert list(shown(members)) == ["dovecot-0"]


def test_another_port_is_the_same_backend() -> None:
    members = Members(settings())
    members.take(listing({A: ["10.0.0.1"]}, port=993), 0)
    members.take(listing({A: ["10.0.0.1"]}, port=1993), 1)
    assert [(found.server.name, found.server.url.port) for found in members.found] == [("dovecot-0", 1993)]


def test_names_that_come_and_go_do_not_pile_up() -> None:
    members = Members(settings(), pinned=True)
    for now in range(12):
        members.take(listing({f"n{now}x{number}.example.org": [] for number in range(MOST_HOSTS // 10)}), now)
    assert len(members.found) == MOST_HOSTS
    names = shown(members)
    assert "n11x0.example.org" in names
    assert "n1x0.example.org" not in names


def test_addresses_are_in_order_and_bounded() -> None:
    shuffled = ["fd00::0:2", "10.0.0.10", "10.0.0.9", "fd00::2", "10.0.0.10"]
    assert in_order(shuffled) == ("10.0.0.9", "10.0.0.10", "fd00::2")
    members = Members(settings())
    members.take(listing({A: [f"10.0.{third}.1" for third in range(200)]}), 0)
    assert shown(members)["dovecot-0"] == tuple(f"10.0.{third}.1" for third in range(16))


SERVICES = [
    ("two", [("b.example.org", 1), ("a.example.org", 2)], {"a.example.org": 2, "b.example.org": 1}),
    ("the same with two ports", [("a.example.org", 993), ("a.example.org", 143)], {"a.example.org": 143}),
    ("beside a dot", [(".", 0), ("a.example.org", 2)], {"a.example.org": 2}),
]


@pytest.mark.parametrize(("what", "records", "hosts"), SERVICES)
def test_services(what: str, records: list[tuple[str, int]], hosts: dict[str, int]) -> None:
    assert by_service(records, settings(dns="_imap._tcp.example.org")) == hosts


@pytest.mark.parametrize(
    ("records", "result"),
    [([], "empty"), ([(".", 0)], "empty"), ([(f"n{n}.test", 1) for n in range(MOST_HOSTS + 1)], "failed")],
)
def test_services_that_are_none(records: list[tuple[str, int]], result: str) -> None:
    with pytest.raises(NothingListed) as raised:
        by_service(records, settings(dns="_imap._tcp.example.org"))
    assert raised.value.result == result


POINTERS = [
    ("one", ["mail1.example.org"], "mail1.example.org"),
    ("of several the one below what was asked for", ["another.example.org", A, "z.example.org"], A),
    ("of several the first", ["mail2.example.org", "mail1.example.org"], "mail1.example.org"),
    ("none that is made of the address", ["10-0-0-1.other.svc.cluster.local", "x.example.org"], "x.example.org"),
]


@pytest.mark.parametrize(("what", "names", "host"), POINTERS)
def test_pointers(what: str, names: list[str], host: str) -> None:
    assert by_pointers({"10.0.0.1": names}, settings()) == ({host: ["10.0.0.1"]}, {})


def test_pointers_of_both_families_and_of_none() -> None:
    names = {"10.0.0.1": [A], "fd00::1": [A], "10.0.0.2": [], "10.0.0.3": ["10-0-0-3." + DNS]}
    addresses, problems = by_pointers(names, settings())
    assert (addresses, sorted(problems)) == ({A: ["10.0.0.1", "fd00::1"]}, ["10.0.0.2", "10.0.0.3"])


@pytest.mark.parametrize("names", [{}, {"10.0.0.1": []}, {"10.0.0.1": ["10-0-0-1." + DNS]}])
def test_no_pointers(names: dict[str, list[str]]) -> None:
    with pytest.raises(NothingListed):
        by_pointers(names, settings())


CLAIMED = {A: ["10.0.0.1", "fd00::1"]}
Confirmation = tuple[dict[str, list[str]], list[str], Shown, list[str]]
CONFIRMED: list[tuple[str, Confirmation]] = [
    ("both", ({A: ["10.0.0.1", "fd00::1"]}, [A], {A: ("10.0.0.1", "fd00::1")}, [])),
    ("what is not listed does not count", ({A: ["10.0.0.1", "10.0.0.7", "fd00::1"]}, [A],
                                          {A: ("10.0.0.1", "fd00::1")}, [])),
    ("one of two", ({A: ["10.0.0.1"]}, [A], {A: ("10.0.0.1",)}, ["fd00::1"])),
]  # fmt: skip


@pytest.mark.parametrize(("what", "row"), CONFIRMED)
def test_names_confirm_what_leads_to_them(what: str, row: Confirmation) -> None:
    told, hosts, addresses, problems = row
    found = confirmed(CLAIMED, told, (), settings(port=143))
    assert found.hosts == dict.fromkeys(hosts, 143)
    assert {host: in_order(each) for host, each in found.addresses.items()} == addresses
    assert sorted(found.problems) == problems


def test_a_name_that_confirms_nothing_is_left_out() -> None:
    found = confirmed({A: ["10.0.0.1"], B: ["10.0.0.2"]}, {A: ["10.0.0.9"], B: ["10.0.0.2"]}, [A], settings())
    assert found.hosts == {B: 993}
    assert found.addresses == {A: ["10.0.0.9"], B: ["10.0.0.2"]}
    assert found.problems == {"10.0.0.1": f"it leads to {A}, which has not got it"}


def test_a_name_that_cannot_be_asked_is_believed_if_it_was_before() -> None:
    claimed = {A: ["10.0.0.1"], B: ["10.0.0.2"], C: ["10.0.0.3"]}
    found = confirmed(claimed, {C: ["10.0.0.3"]}, [A], settings())
    assert found.hosts == {A: 993, C: 993}
    assert found.addresses == {C: ["10.0.0.3"]}


@pytest.mark.parametrize("told", [{}, {A: []}, {A: ["10.0.0.9"]}])
def test_nothing_is_confirmed(told: dict[str, list[str]]) -> None:
    with pytest.raises(NothingListed):
        confirmed({A: ["10.0.0.1"]}, told, (), settings())


ORDINALS: list[tuple[str, list[list[str] | None], int]] = [
    ("all", [["1.1.1.1"], ["1.1.1.2"]], 2),
    ("a gap", [["1.1.1.1"], [], ["1.1.1.3"]], 3),
    ("a gap at the beginning", [[], ["1.1.1.2"]], 2),
    ("a gap that nobody knows of", [["1.1.1.1"], None, ["1.1.1.3"]], 3),
    ("nothing behind the last", [["1.1.1.1"], [], []], 1),
]


@pytest.mark.parametrize(("what", "addresses", "count"), ORDINALS)
def test_ordinals(what: str, addresses: list[list[str] | None], count: int) -> None:
    chosen = settings(ordinal_names=True)
    told = {ordinal_host(chosen, number): found for number, found in enumerate(addresses) if found is not None}
    assert by_ordinals(told, chosen) == {POD.format(number): 993 for number in range(count)}


def test_no_ordinals() -> None:
    with pytest.raises(NothingListed):
        by_ordinals({A: [], B: []}, settings(ordinal_names=True))


def test_the_prefix_of_ordinals() -> None:
    assert ordinal_host(settings(ordinal_names=True, ordinal_prefix="Backend"), 3) == f"backend-3.{DNS}"


hosts_with_addresses = st.dictionaries(
    st.integers(0, 4).map(POD.format), st.none() | st.frozensets(st.integers(1, 6).map("10.0.0.{}".format), max_size=2)
)
rounds = st.lists(
    st.tuples(hosts_with_addresses, st.frozensets(st.integers(1, 6).map("10.0.0.{}".format)), st.booleans())
)


@given(rounds=rounds)
def test_whatever_answers_say(rounds: list[tuple[dict[str, frozenset[str] | None], frozenset[str], bool]]) -> None:
    """Nobody who is listed is missing, nobody leaves early, and nobody is elsewhere than he was told to be last."""
    members = Members(settings(keep="3s"))
    last_listed: dict[str, int] = {}
    before: Shown = {}
    for now, (hosts, loose, complete) in enumerate(rounds):
        claimed = {address for found in hosts.values() for address in found or ()}
        members.take(listing(hosts, loose=loose - claimed, complete=complete), now)
        last_listed |= dict.fromkeys((host.partition(".")[0] for host in hosts), now)
        now_shown = shown(members)
        assert {name for name, when in last_listed.items() if now - when <= 3} <= now_shown.keys() <= last_listed.keys()
        for name, addresses in now_shown.items():
            told = hosts.get(f"{name}.{DNS}")
            assert told is None or set(told) <= set(addresses) <= set(told) | (loose - claimed)
            if told is None:
                assert addresses == before.get(name, ())
        before = now_shown
