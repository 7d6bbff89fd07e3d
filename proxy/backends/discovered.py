"""Which backends there are, as DNS has told it over time. Pure: answers in, servers and their addresses out.

A backend is its name; an address is only where it is just now. The name follows from the backend's own name in DNS
alone, never from the company it is in: below the name that was asked for, `dovecot-0.dovecot.mail.svc.cluster.local`,
it is the first label, elsewhere the whole. A name that is made of an address is none: it would change with the address
and move everybody.

Whom to trust is not for DNS to say: a certificate has to be for the backend's name, and who answers in the place of DNS
may have one for a name of his own. So names that DNS has brought in have to stand below the one that the settings ask
for, unless the settings pin what certificates are trusted (RFC 9525 §6.1, RFC 6186 §6).

What keeps users where they are:

- An answer that names nobody, or nobody who can be used, is no answer. All stay as they were, for as long as it takes.
- A backend that a good answer lists no more is kept for `keep`. It has the addresses that its own name still has. A pod
  that starts again has none until it is back: its old one may by now be somebody else's.
- An address that is still listed and that nobody claims stays with the backend that had it. Resolvers say now and then
  that a name does not exist when it does (coredns/coredns#6518).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from proxy.settings.addresses import SCHEMES, parse_backend_url
from proxy.settings.models import Discovery, Server
from proxy.settings.values import parse_server_name

MOST_HOSTS = 1000
_MOST_ADDRESSES = 16  # of one backend; a connection may try each


class NothingListed(Exception):
    """There is no answer by which backends could be told. The text is for the log.

    Args:
        result: `empty`: it names none; `failed`: there was none, or it cannot be believed.
    """

    def __init__(self, result: str, detail: str) -> None:
        super().__init__(detail)
        self.result = result


@dataclass(frozen=True, slots=True)
class Found:
    """A backend that DNS names."""

    server: Server
    addresses: tuple[str, ...]  # IPv4 first; none: it counts, and cannot be reached


@dataclass(frozen=True, slots=True)
class Listing:
    """What one round of questions has brought."""

    hosts: Mapping[str, int]  # the servers' names in DNS, lower case, and their ports
    addresses: Mapping[str, Collection[str]]  # by name in DNS; whose question failed is missing
    loose: Collection[str] = ()  # addresses that are listed and that no name claims
    complete: bool = True  # False: who is missing may be there all the same
    problems: Mapping[str, str] = field(default_factory=dict)  # what is listed and cannot be used, and why


@dataclass(slots=True)
class _Member:
    host: str
    server: Server
    addresses: tuple[str, ...] = ()
    missing_since: float | None = None


@dataclass(slots=True)
class Members:
    """The backends of one discovery."""

    settings: Discovery
    pinned: bool = False  # the settings say which certificates are trusted; any name will do
    _by_name: dict[str, _Member] = field(default_factory=dict)

    @property
    def hosts(self) -> frozenset[str]:
        """Their names in DNS."""
        return frozenset(member.host for member in self._by_name.values())

    @property
    def found(self) -> tuple[Found, ...]:
        """All that count just now, by name."""
        return tuple(Found(member.server, member.addresses) for _, member in sorted(self._by_name.items()))

    def take(self, listing: Listing, now: float) -> dict[str, str]:
        """Learn from a round.

        Returns:
            What is listed and cannot be used, and why.
        """
        problems = dict(listing.problems)
        listed = set()
        # Of two that would be called alike the one below the name asked for is meant.
        for host, port in sorted(listing.hosts.items(), key=lambda item: (not _is_below(item[0], self.settings), item)):
            try:
                listed.add(self._join(host, port))
            except ValueError as exc:
                problems[host] = str(exc)
        problems |= self._settle_addresses(listing)
        loose = frozenset(listing.loose)
        for name, member in list(self._by_name.items()):
            if name in listed or not loose.isdisjoint(member.addresses):
                member.missing_since = None
            elif listing.complete and listed:
                self._miss(name, member, now)
        self._bound()
        return problems

    def _join(self, host: str, port: int) -> str:
        below = _is_below(host, self.settings)
        if not (below or self.pinned):
            domain = _domain(self.settings)
            raise ValueError(f"not below {domain}, and neither backends.tls.ca nor backends.tls.name is set")
        name = _name_of(host, self.settings)
        member = self._by_name.get(name)
        if member is not None and member.host != host:
            if not below or _is_below(member.host, self.settings):
                raise ValueError(f"it would be called {name}, as {member.host} is")
            member = None
        if member is None or member.server.url.port != port:
            server = _server(name, host, port, self.settings)
            if member is None:
                self._by_name[name] = _Member(host, server)
            else:
                member.server = server
        return name

    def _settle_addresses(self, listing: Listing) -> dict[str, str]:
        """Give each what its name has; who could not be asked about keeps what he had, whoever else claims it.

        Returns:
            Addresses that nobody can have, and why.
        """
        loose = frozenset(listing.loose).difference(
            *(listing.addresses.get(member.host, ()) for member in self._by_name.values())
        )
        problems: dict[str, str] = {}
        for member in self._by_name.values():
            told = listing.addresses.get(member.host)
            if told is None:
                continue
            problems |= dict.fromkeys(filter(_is_nobodys, told), f"unspecified or multicast, and {member.host} has it")
            addresses = {*told, *loose.intersection(member.addresses)}.difference(problems)
            member.addresses = in_order(addresses)[:_MOST_ADDRESSES]
        return problems

    def _miss(self, name: str, member: _Member, now: float) -> None:
        if member.missing_since is None:
            member.missing_since = now
        if now - member.missing_since >= self.settings.keep:
            del self._by_name[name]

    def _bound(self) -> None:
        """Names that come and go all the time do not pile up: those missing longest go first."""
        missing = [(m.missing_since, name) for name, m in self._by_name.items() if m.missing_since is not None]
        for _, name in sorted(missing)[: max(0, len(self._by_name) - MOST_HOSTS)]:
            del self._by_name[name]


def in_order(addresses: Iterable[str]) -> tuple[str, ...]:
    """Addresses, each once, IPv4 first; DNS shuffles them, which is no change."""
    parsed = {ipaddress.ip_address(address) for address in addresses}
    return tuple(str(address) for address in sorted(parsed, key=lambda address: (address.version, int(address))))


def by_service(records: Iterable[tuple[str, int]], settings: Discovery) -> dict[str, int]:
    """Targets of SRV records and their ports. Priority and weight do not count: mail is on one server, not on any.

    Raises:
        NothingListed: There are none, or too many.
    """
    # RFC 2782: a target of "." says that the service is decidedly not available. Of several ports the lowest counts.
    hosts = {target: port for target, port in sorted(records, reverse=True) if target not in ("", ".")}
    return _bounded(hosts, f"{settings.dns} has no SRV record with a target")


def by_pointers(
    names: Mapping[str, Collection[str]], settings: Discovery
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Servers by the PTR records of their addresses. It is a claim: their names have to be asked, see `confirmed`.

    Args:
        names: What each listed address is called; whose question failed is missing.
    Returns:
        Names with addresses, and addresses that have no name, with why.
    Raises:
        NothingListed: None of the addresses has a name.
    """
    addresses: dict[str, list[str]] = {}
    problems: dict[str, str] = {}
    for address, candidates in names.items():
        # A pod that belongs to several services has a name in each.
        usable = sorted(name for name in candidates if not _made_of_an_address(name))
        below = [name for name in usable if _is_below(name, settings)]
        if usable:
            addresses.setdefault((below or usable)[0], []).append(address)
        else:
            problems[address] = "it has no PTR record with a name that would outlive the address"
    if not addresses:
        raise NothingListed("empty", f"no address of {settings.dns} has a name")
    return addresses, problems


def confirmed(
    claimed: Mapping[str, Collection[str]],
    told: Mapping[str, Collection[str]],
    known: Collection[str],
    settings: Discovery,
) -> Listing:
    """What names themselves say of the addresses that lead to them: anybody may write any name into his reverse zone.

    Args:
        claimed: Names with addresses, as PTR records have them.
        told: The addresses that those names have; whose question failed is missing.
        known: Names that were confirmed before. One that cannot be asked about now stays.
    Returns:
        A listing; of what is wrong, only this.
    Raises:
        NothingListed: No name has an address that leads to it.
    """
    hosts: list[str] = []
    addresses: dict[str, Collection[str]] = {}
    problems: dict[str, str] = {}
    for host, leading in claimed.items():
        own = told.get(host)
        if own is None:
            if host in known:
                hosts.append(host)
            continue
        problems |= dict.fromkeys(set(leading).difference(own), f"it leads to {host}, which has not got it")
        addresses[host] = sorted(set(leading).intersection(own))
        if addresses[host]:
            hosts.append(host)
        else:
            addresses[host] = own  # listed no more, like all others that have only their own name left
    listed = _bounded(dict.fromkeys(hosts, _port(settings)), f"no name has the address of {settings.dns} leading to it")
    return Listing(listed, addresses, problems=problems)


def ordinal_host(settings: Discovery, number: int) -> str:
    """The name in DNS of one pod of the StatefulSet."""
    prefix = settings.ordinal_prefix or settings.dns.partition(".")[0]
    return f"{prefix}-{number}.{settings.dns}".lower()


def by_ordinals(addresses: Mapping[str, Collection[str]], settings: Discovery) -> dict[str, int]:
    """Servers from number 0 to the last that has an address; a gap counts.

    Args:
        addresses: What the pods' names have; whose question failed is missing.
    Raises:
        NothingListed: None has any.
    """
    hosts: dict[str, int] = {}
    gap: dict[str, int] = {}
    left = sum(1 for found in addresses.values() if found)
    for number in range(MOST_HOSTS):
        if not left:
            break
        host = ordinal_host(settings, number)
        gap[host] = _port(settings)
        if addresses.get(host):
            hosts |= gap
            gap, left = {}, left - 1
    return _bounded(hosts, f"no address belongs to {ordinal_host(settings, 0)} or a later number")


def _bounded(hosts: dict[str, int], none: str) -> dict[str, int]:
    if not hosts:
        raise NothingListed("empty", none)
    if len(hosts) > MOST_HOSTS:
        raise NothingListed("failed", f"{len(hosts)} servers are listed; {MOST_HOSTS} are the most")
    return hosts


def _port(settings: Discovery) -> int:
    return settings.port or SCHEMES[settings.scheme][1]


def _name_of(host: str, settings: Discovery) -> str:
    """What a server is called: its first label where that stands right below the name asked for, else all of it."""
    label, _, parent = host.partition(".")
    return label if parent and parent == _domain(settings) else host


def _domain(settings: Discovery) -> str:
    """The name asked for without its service."""
    labels = settings.dns.split(".")
    while labels and labels[0].startswith("_"):
        del labels[0]
    return ".".join(labels)


def _is_below(host: str, settings: Discovery) -> bool:
    """Whether a name is the one that the settings ask for, or stands somewhere below it."""
    domain = _domain(settings)
    return bool(domain) and (host == domain or host.endswith("." + domain))


def _server(name: str, host: str, port: int, settings: Discovery) -> Server:
    """Raises: ValueError. It cannot be one; the text says why."""
    if _made_of_an_address(host):
        raise ValueError("a name made of an address changes with it; a backend needs one that stays")
    try:
        url = parse_backend_url(f"{settings.scheme}://{host}:{port}")
    except ValueError:
        raise ValueError(f"no host and port to connect to: port {port}") from None
    return Server(name=parse_server_name(name), url=url, weight=settings.weight, tag=settings.tag)


def _made_of_an_address(host: str) -> bool:
    """Whether it is an address, or 10-0-0-1.…, as Kubernetes calls pods that have no name of their own."""
    label = host.partition(".")[0]
    return any(map(_is_address, (host, label.replace("-", "."), label.replace("-", ":"))))


def _is_nobodys(address: str) -> bool:
    """Whether connecting to it would lead to this host, or to many: unspecified or multicast."""
    parsed = ipaddress.ip_address(address)
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return parsed.is_unspecified or parsed.is_multicast


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
