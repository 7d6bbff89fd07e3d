"""The one door to dnspython: asks DNS which backends there are, again and again, and tells of changes.

What answers mean is decided in `discovered`. Here they are asked for, in rounds: who is listed, then everybody's
addresses. A question that fails leaves what it asked about as it was; a round that fails, everything. The shortest TTL
of a round says when the next begins, soon where something is missing. Search domains are not used: a name in the
settings is the whole name.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
import dns.reversename
import trio

from proxy.backends.discovered import (
    MOST_HOSTS,
    Found,
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
from proxy.observe import metrics
from proxy.observe.log import get_logger
from proxy.settings.models import Discovery as Settings

_LEAST_SECONDS, _MOST_SECONDS = 5.0, 300.0  # between two rounds, whatever the TTL says
_ANSWER_SECONDS = 5.0  # for one question, at all name servers together
_STEP_SECONDS = 30.0  # for all questions of one step; of those left over nothing is known
_AT_ONCE = 16
_FURTHER = 16  # so many numbers in a row that nobody has, and there are no more
_TOLD = 5

_T = TypeVar("_T")
_log = get_logger()

_LOOKUPS = metrics.counter(
    "porter_discovery_lookups_total",
    "Rounds of questions to DNS about backends. incomplete: of some backends nothing was learned; empty: none is "
    "listed; failed: no answer that could be used. With the last two all backends stay as they were.",
    result=("ok", "incomplete", "empty", "failed"),
)
_BACKENDS = metrics.gauge(
    "porter_discovery_backends", "Backends that DNS names, those that are kept though it lists them no more included."
)
_LAST_SUCCESS = metrics.gauge(
    "porter_discovery_last_success_timestamp_seconds", "When DNS last listed backends.", merge="max"
)


class Discovery:
    """The backends that DNS names."""

    def __init__(self, settings: Settings, report: Callable[[Sequence[Found]], None], *, pinned: bool = False) -> None:
        """Nothing is asked yet.

        Args:
            report: Told all backends whenever one has joined, gone or changed its addresses. Never told of none
                because DNS has failed.
            pinned: Which certificates are trusted does not depend on the names that DNS brings; else only names below
                the one asked for are taken.
        """
        self._settings = settings
        self._report = report
        self._members = Members(settings, pinned)
        self._told: tuple[Found, ...] = ()
        self._trouble: tuple[str, frozenset[str]] = ("ok", frozenset())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Ask for ever. Started once the first round is over, well or badly."""
        while True:
            try:
                seconds = await self.look()
            except Exception:  # a bug of ours must not freeze for good what is known
                _log.exception("discovery.crashed", dns=self._settings.dns)
                seconds = _MOST_SECONDS
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            await trio.sleep(seconds * random.uniform(0.8, 1.0))  # noqa: S311 - jitter

    async def look(self) -> float:
        """One round.

        Returns:
            After how many seconds to ask again.
        """
        questions = Questions(self._settings)
        try:
            listing = await self._ask(questions)
        except NothingListed as exc:
            result = "failed" if questions.unanswered else exc.result
            self._ended(result, questions.unanswered | {self._settings.dns: str(exc)})
            return _LEAST_SECONDS
        problems = self._members.take(listing, trio.current_time()) | questions.unanswered
        self._ended("incomplete" if problems else "ok", problems)
        _LAST_SUCCESS.set(time.time())
        self._tell()
        if problems or not all(each.addresses for each in self._told):
            return _LEAST_SECONDS
        return min(max(questions.ttl, _LEAST_SECONDS), _MOST_SECONDS)

    async def _ask(self, questions: Questions) -> Listing:
        if self._settings.dns.startswith("_"):
            listing = await self._ask_service(questions)
        elif self._settings.ordinal_names:
            listing = await self._ask_ordinals(questions)
        else:
            listing = await self._ask_pointers(questions)
        kept = self._members.hosts - listing.hosts.keys() - listing.addresses.keys()
        addresses = dict(listing.addresses) | await questions.all_addresses(kept, may_fail=True)
        return replace(listing, addresses=addresses)

    async def _ask_service(self, questions: Questions) -> Listing:
        hosts = by_service(await questions.service(self._settings.dns), self._settings)
        return Listing(hosts, await questions.all_addresses(hosts))

    async def _ask_pointers(self, questions: Questions) -> Listing:
        listed, complete = await questions.listed(self._settings.dns)
        names = await questions.all_names(listed)
        claimed, problems = by_pointers(names, self._settings)
        told = await questions.all_addresses(claimed)
        found = confirmed(claimed, told, self._members.hosts, self._settings)
        # A name without any address is denied, which resolvers do by mistake; one with others has spoken.
        taken = (addresses for host, addresses in claimed.items() if told.get(host) != ())
        return replace(
            found,
            loose=set(listed).difference(*taken),
            complete=complete and len(names) == len(listed) and len(told) == len(claimed),
            problems=problems | dict(found.problems),
        )

    async def _ask_ordinals(self, questions: Questions) -> Listing:
        """Ask number by number until every listed address belongs to somebody."""
        listed, complete = await questions.listed(self._settings.dns)
        of_ipv6 = sum(":" in address for address in listed)
        count, asked = max(of_ipv6, len(listed) - of_ipv6, len(self._members.hosts)), 0
        addresses: dict[str, tuple[str, ...]] = {}
        loose = set(listed)
        while True:
            hosts = [ordinal_host(self._settings, number) for number in range(asked, count)]
            told = await questions.all_addresses(hosts)
            complete = complete and len(told) == len(hosts)
            addresses |= told
            loose.difference_update(*told.values())
            if not loose or count >= MOST_HOSTS or (asked and not any(told.values())):
                break
            asked, count = count, min(count + _FURTHER, MOST_HOSTS)
        problems = dict.fromkeys(loose, "it belongs to no number")
        return Listing(by_ordinals(addresses, self._settings), addresses, loose, complete, problems)

    def _ended(self, result: str, problems: dict[str, str]) -> None:
        """Count a round; log trouble when it begins, changes or ends, not every time."""
        _LOOKUPS.labels(result).inc()
        before, self._trouble = self._trouble, (result, frozenset(problems))
        if self._trouble == before:
            return
        if result == "ok":
            _log.info("discovery.recovered", dns=self._settings.dns)
            return
        told = [f"{subject}: {problem}" for subject, problem in sorted(problems.items())]
        further = [f"and {len(told) - _TOLD} more"] if len(told) > _TOLD else []
        _log.warning("discovery.failed", dns=self._settings.dns, result=result, problems=told[:_TOLD] + further)

    def _tell(self) -> None:
        found = self._members.found
        if found == self._told:
            return
        before = {each.server.name: each for each in self._told}
        after = {each.server.name: each for each in found}
        changed = {name: each.addresses for name, each in after.items() if name in before and each != before[name]}
        _log.info(
            "discovery.changed",
            dns=self._settings.dns,
            backends=len(found),
            added={name: after[name].addresses for name in sorted(after.keys() - before.keys())},
            removed=sorted(before.keys() - after.keys()),
            changed=changed,
        )
        _BACKENDS.set(len(found))
        self._report(found)
        self._told = found


async def look_once(settings: Settings, *, pinned: bool = False) -> Sequence[Found]:
    """What DNS names just now; nothing where it can't be said, the log tells why.

    Args:
        pinned: As for a Discovery.
    """
    found: list[Found] = []
    await Discovery(settings, found.extend, pinned=pinned).look()
    return found


class Questions:
    """The questions of one round: a bounded number at a time, each within its time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._resolver: dns.asyncresolver.Resolver | None = None
        self._limiter = trio.CapacityLimiter(_AT_ONCE)
        self.ttl = _MOST_SECONDS  # the shortest that was told
        self.unanswered: dict[str, str] = {}  # what could not be learned, and why

    async def service(self, name: str) -> list[tuple[str, int]]:
        """Targets and ports of SRV records.

        Raises:
            NothingListed: There was no answer.
        """
        try:
            records = await self._ask(name, "SRV")
        except _Unanswered as exc:
            raise NothingListed("failed", str(exc)) from None
        return [(_text(record.target), record.port) for record in records]

    async def listed(self, name: str) -> tuple[tuple[str, ...], bool]:
        """The addresses of a name, and whether these are all.

        Raises:
            NothingListed: There was no answer, it names none, or too many.
        """
        addresses, failure = await self._both_families(name)
        if failure and not addresses:
            raise NothingListed("failed", failure)
        if failure:
            self.unanswered[name] = failure
        if not addresses:
            raise NothingListed("empty", f"{name} has no addresses")
        if len(addresses) > MOST_HOSTS:
            raise NothingListed("failed", f"{name} has {len(addresses)} addresses; {MOST_HOSTS} are the most")
        return addresses, not failure

    async def all_addresses(self, hosts: Collection[str], *, may_fail: bool = False) -> dict[str, tuple[str, ...]]:
        """The addresses of names; whose question failed is missing, and a problem unless it may be."""

        async def one(host: str) -> tuple[str, ...]:
            addresses, failure = await self._both_families(host)
            if failure and not addresses:
                raise _Unanswered(failure)
            return addresses

        return await self._all(hosts, one, may_fail=may_fail)

    async def all_names(self, addresses: Collection[str]) -> dict[str, list[str]]:
        """What addresses are called; whose question failed is missing, and a problem."""

        async def one(address: str) -> list[str]:
            records = await self._ask(dns.reversename.from_address(address), "PTR")
            return [_text(record.target) for record in records]

        return await self._all(addresses, one)

    async def _all(
        self, subjects: Collection[str], ask: Callable[[str], Awaitable[_T]], *, may_fail: bool = False
    ) -> dict[str, _T]:
        told: dict[str, _T] = {}
        problems = dict.fromkeys(subjects, f"no answer within {_STEP_SECONDS:g} s")

        async def one(subject: str) -> None:
            try:
                told[subject] = await ask(subject)
                del problems[subject]
            except _Unanswered as exc:
                problems[subject] = str(exc)

        with trio.move_on_after(_STEP_SECONDS):
            async with trio.open_nursery() as nursery:
                for subject in subjects:
                    nursery.start_soon(one, subject)
        if not may_fail:
            self.unanswered |= problems
        return told

    async def _both_families(self, name: str) -> tuple[tuple[str, ...], str]:
        """The addresses of a name, IPv4 and IPv6, and why one of the two is not known."""
        told: list[str] = []
        failures: list[str] = []

        async def one(kind: str) -> None:
            try:
                told.extend(record.address for record in await self._ask(name, kind))
            except _Unanswered as exc:
                failures.append(str(exc))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "A")
            nursery.start_soon(one, "AAAA")
        return in_order(told), min(failures, default="")

    async def _ask(self, name: dns.name.Name | str, kind: str) -> Sequence[Any]:
        """The records of one kind that a name has, none if it does not exist.

        Raises:
            _Unanswered: Nobody says.
        """
        async with self._limiter:
            try:
                with trio.move_on_after(_ANSWER_SECONDS):
                    answer = await self._name_servers().resolve(
                        name, kind, raise_on_no_answer=False, search=False, backend=dns.asyncbackend.get_backend("trio")
                    )
                    if not answer.rrset:
                        return ()
                    self.ttl = min(self.ttl, answer.chaining_result.minimum_ttl)
                    return tuple(answer.rrset)
            except dns.resolver.NXDOMAIN:
                return ()
            except dns.resolver.LifetimeTimeout:  # its text differs each time
                pass
            except (dns.exception.DNSException, OSError, ValueError) as exc:
                raise _Unanswered(str(exc)) from None
        raise _Unanswered(f"no answer within {_ANSWER_SECONDS:g} s")

    def _name_servers(self) -> dns.asyncresolver.Resolver:
        """Whom to ask: as the settings say, else as /etc/resolv.conf says now."""
        if self._resolver is None:
            servers = self._settings.nameservers
            resolver = dns.asyncresolver.Resolver(configure=not servers)
            if servers:
                resolver.nameservers = [dns.nameserver.Do53Nameserver(each.host, each.port) for each in servers]
            self._resolver = resolver
        return self._resolver


class _Unanswered(Exception):
    """Why a question has no answer, not even that there is nothing."""


def _text(name: dns.name.Name) -> str:
    """A name as it is compared: lower case (RFC 4343), no dot at the end."""
    return name.to_text(omit_final_dot=True).lower()
