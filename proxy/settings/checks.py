"""What one section alone cannot tell: checks across sections, and looks into the files they name.

A check runs when the sections it needs are sound, even if others are not, so that everything is told at once.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path

from proxy.model import Endpoint
from proxy.settings.addresses import Network
from proxy.settings.certificates import pair_problem, read_certificates
from proxy.settings.mistakes import Finding, Keys
from proxy.settings.models import BackendTls, LdapIdentity, Settings
from proxy.settings.units import duration_text
from proxy.settings.values import parse_server_name

Check = Callable[[Settings], Iterator[Finding]]

# Ways to log in at a backend that need nothing of what the client has shown.
_WITHOUT_THE_SECRET = ("master", "authzid")
# RFC 2971 §3.3: 30 octets a field, of which x-forward- takes 10, and 30 fields, of which the proxy itself uses six.
_MOST_FORWARDED_CHARS = 20
_MOST_FORWARDED = 24


def cross_findings(settings: Settings, broken: Set[str]) -> Iterator[Finding]:
    """Run every check that doesn't need a broken section.

    Args:
        settings: The settings; its broken sections are never looked at.
        broken: Names of sections that have mistakes of their own.
    """
    for needs, check in CHECKS:
        if broken.isdisjoint(needs):
            yield from check(settings)


def _certificates_given(settings: Settings) -> Iterator[Finding]:
    for index, listener in enumerate(settings.listeners):
        if listener.tls != "none" and not settings.tls.certificates:
            example = "tls: {certificates: [{certificate: tls.crt, private_key: tls.key}]}"
            yield Finding(("listeners", index, "tls"), f"{listener.tls} needs a certificate, e.g. {example}")
            return


def _certificates_fit(settings: Settings) -> Iterator[Finding]:
    for index, pair in enumerate(settings.tls.certificates):
        problem = pair_problem(pair.certificate, pair.private_key)
        if problem is not None:
            yield Finding(("tls", "certificates", index, problem[0]), problem[1])


def _admin_tls_files_fit(settings: Settings) -> Iterator[Finding]:
    tls = settings.admin.tls
    problem = None if tls is None else pair_problem(tls.certificate, tls.private_key)
    if problem is not None:
        yield Finding(("admin", "tls", problem[0]), problem[1])


def _backend_tls_files_fit(settings: Settings) -> Iterator[Finding]:
    places: list[tuple[Keys, BackendTls]] = [(("backends", "tls"), settings.backends.tls)]
    places += [
        (("backends", "servers", index, "tls"), server.tls)
        for index, server in enumerate(settings.backends.servers)
        if server.tls is not None
    ]
    for keys, tls in places:
        yield from _ca_findings((*keys, "ca"), tls.ca)
        if tls.certificate is not None and tls.private_key is not None:
            problem = pair_problem(tls.certificate, tls.private_key)
            if problem is not None:
                yield Finding((*keys, problem[0]), problem[1])


def _tls_is_spoken(settings: Settings) -> Iterator[Finding]:
    for index, server in enumerate(settings.backends.servers):
        if server.tls is not None and server.security == "none":
            problem = f"there is no TLS with {server.url}; its URL begins with imaps:// or imap+starttls://"
            yield Finding(("backends", "servers", index, "tls"), problem)


def _identity_cas_hold_certificates(settings: Settings) -> Iterator[Finding]:
    for index, source in enumerate(settings.identity):
        for kind, given in (("ldap", source.ldap), ("oauth", source.oauth), ("http", source.http)):
            if given is not None:
                yield from _ca_findings(("identity", index, kind, "ca"), given.ca)


def _client_cas_hold_certificates(settings: Settings) -> Iterator[Finding]:
    for index, listener in enumerate(settings.listeners):
        if listener.client_certificates is not None:
            yield from _ca_findings(("listeners", index, "client_certificates", "ca"), listener.client_certificates.ca)


def _fronts_are_let_in(settings: Settings) -> Iterator[Finding]:
    for index, listener in enumerate(settings.listeners):
        if listener.tls != "none":
            continue
        # Behind a balancer `id_address` is about who the header tells of, and the balancer is let in.
        key = "id_address" if listener.proxy_protocol is None else "proxy_protocol"
        fronts = listener.proxy_protocol or listener.id_address
        if fronts is not None and not _overlap(fronts.trusted_networks, listener.trusted_networks):
            problem = (
                "whoever is there would be turned away: with tls: none these networks have to be among the listener's "
                "own trusted_networks"
            )
            yield Finding(("listeners", index, key, "trusted_networks"), problem)


def _overlap(some: Iterable[Network], others: Iterable[Network]) -> bool:
    return any(one.overlaps(other) for one in some for other in others)


def _ca_findings(keys: Keys, ca: Path | None) -> Iterator[Finding]:
    if ca is not None:
        try:
            read_certificates(ca)
        except ValueError as exc:
            yield Finding(keys, str(exc))


def _addresses_differ(settings: Settings) -> Iterator[Finding]:
    taken: dict[str, str] = {}
    listeners = [
        (("listeners", index, "address"), listener.address) for index, listener in enumerate(settings.listeners)
    ]
    doors = [(("admin", "address"), settings.admin.address), (("metrics", "address"), settings.metrics.address)]
    for keys, address in (*listeners, *doors):
        if address is None or address.port == 0:
            continue
        owner = f"{keys[0]}[{keys[1]}]" if len(keys) == 3 else str(keys[0])
        if str(address) in taken:
            yield Finding(keys, f'"{address}" is taken: {taken[str(address)]} listens there')
        taken.setdefault(str(address), owner)


def _servers_differ(settings: Settings) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for index, server in enumerate(settings.backends.servers):
        if server.name in first:
            problem = f'"{server.name}" is the name of servers[{first[server.name]}] already; names are unique'
            yield Finding(("backends", "servers", index, "name"), problem)
        first.setdefault(server.name, index)


def _someone_is_placed(settings: Settings) -> Iterator[Finding]:
    backends = settings.backends
    if backends.discovery is None and not any(server.weight and server.state == "up" for server in backends.servers):
        yield Finding(("backends", "servers"), "every server has weight 0, drains or is down: no user could be placed")


def _placed_where_there_is_something(settings: Settings) -> Iterator[Finding]:
    """Overrides and tags name what exists. What DNS will name cannot be told here."""
    backends, routing = settings.backends, settings.routing
    if backends.discovery is not None:
        return
    names = {server.name for server in backends.servers}
    for user, name in routing.overrides.items():
        if name not in names:
            problem = f'no such backend: "{name}"; backends.servers has {", ".join(sorted(names)[:5])}'
            yield Finding(("routing", "overrides", user), problem)
    tags = {server.tag for server in backends.servers}
    for domain, tag in routing.tags.domains.items():
        if tag not in tags:
            yield Finding(("routing", "tags", "domains", domain), f'no server has the tag "{tag}"')


def _attributes_are_forwarded(settings: Settings) -> Iterator[Finding]:
    backends = settings.backends
    first: dict[str, int] = {}
    for index, name in enumerate(backends.forward_attributes):
        taken = first.setdefault(name.lower(), index)
        if taken != index:  # RFC 2971 §3.3: names of fields are the same in either case, and come once
            problem = f'"{name}" would be the same field as forward_attributes[{taken}]'
            yield Finding(("backends", "forward_attributes", index), problem)
        if len(name) > _MOST_FORWARDED_CHARS or not name.isascii():
            problem = f"the field x-forward-{name} would not fit into ID: {_MOST_FORWARDED_CHARS} ASCII characters"
            yield Finding(("backends", "forward_attributes", index), problem)
    if len(backends.forward_attributes) > _MOST_FORWARDED:
        yield Finding(("backends", "forward_attributes"), f"too many for one ID command; {_MOST_FORWARDED} is the most")
    ways = {backends.client_address} | {server.client_address for server in backends.servers}
    if backends.forward_attributes and "id" not in ways:
        yield Finding(("backends", "forward_attributes"), "belongs to client_address: id, which is not set")


def _one_entry_is_one_person(settings: Settings) -> Iterator[Finding]:
    # Security: with her own password ann@a.example could log in as ann@b.example, who is somebody else.
    if settings.names.default_domain is not None:
        return
    for index, source in enumerate(settings.identity):
        if source.ldap is not None and source.ldap.found_by_local_part:
            key = ("user_dn",) if source.ldap.search is None else ("search", "filter")
            problem = (
                "whoever has the entry of ann could be ann of any domain; put {name}, or {domain} beside {local}, into "
                "it so that nothing fits without, or let the entry tell its owner's name, attributes: {name: mail}, or "
                "set names.default_domain: then only names of that domain are known here"
            )
            yield Finding(("identity", index, "ldap", *key), problem)


def _issuers_differ(settings: Settings) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for index, source in enumerate(settings.identity):
        issuer = None if source.oauth is None else source.oauth.issuer
        if issuer is None:
            continue
        if issuer in first:
            problem = (
                f"identity[{first[issuer]}] has this issuer already, and its no is final; put both audiences into one "
                "source"
            )
            yield Finding(("identity", index, "oauth", "issuer"), problem)
        first.setdefault(issuer, index)


def _backend_decides_last(settings: Settings) -> Iterator[Finding]:
    backends = [index for index, source in enumerate(settings.identity) if source.backend is not None]
    if backends and backends[0] != len(settings.identity) - 1:
        problem = "backend decides for everyone, so what follows is never asked; make it the last source"
        yield Finding(("identity", backends[0], "backend"), problem)


def _backend_sees_the_secret(settings: Settings) -> Iterator[Finding]:
    # Security: with a master login the backend checks the proxy's password and never the user's. Were the backend
    # the source of identity too, nobody would check it, and any password would open any account.
    method = settings.backends.login.method
    for index, source in enumerate(settings.identity):
        if source.backend is not None and method in _WITHOUT_THE_SECRET:
            problem = (
                f"any password would open any account: with backends.login.method {method} the backend never sees the "
                "user's; take another source (file, ldap, http) or method password"
            )
            yield Finding(("identity", index, "backend"), problem)


def _backend_login_has_a_secret(settings: Settings) -> Iterator[Finding]:
    """What a client shows must be good for the backend, or the proxy needs a secret of its own."""
    method = settings.backends.login.method
    if method in _WITHOUT_THE_SECRET:
        return
    for index, source in enumerate(settings.identity):
        if source.oauth is not None and method == "password":
            problem = "a token is no password: with this source backends.login.method is token, master or authzid"
            yield Finding(("identity", index, "oauth"), problem)
        if source.ldap is not None and "scram" in source.ldap.attributes:
            problem = f"SCRAM shows no password that method {method} could pass on; it needs master or authzid"
            yield Finding(("identity", index, "ldap", "attributes"), problem)


def _certificates_are_enough(settings: Settings) -> Iterator[Finding]:
    method = settings.backends.login.method
    for index, listener in enumerate(settings.listeners):
        if listener.client_certificates is not None and method not in _WITHOUT_THE_SECRET:
            problem = (
                f"who comes with a certificate has no password that backends.login.method {method} could pass on; it "
                "needs master or authzid"
            )
            yield Finding(("listeners", index, "client_certificates"), problem)


def _deliveries_follow_sessions(settings: Settings) -> Iterator[Finding]:
    """Postfix asks with a name alone. Where users are placed by what only a login tells, mail would go elsewhere."""
    if all(listener.protocol != "socketmap" for listener in settings.listeners):
        return
    placing = {"name", "backend", settings.routing.tags.attribute}
    for index, source in enumerate(settings.identity):
        for kind, attributes in (
            ("oauth", {} if source.oauth is None else source.oauth.attributes),
            ("ldap", {} if source.ldap is None or _looks_names_up(source.ldap) else source.ldap.attributes),
        ):
            for key in sorted(placing & set(attributes)):
                problem = (
                    f"places users by what is known only when they log in, while a listener with protocol: socketmap "
                    f"says where their mail goes; take {key} out, or look names up (ldap with search, or bind)"
                )
                yield Finding(("identity", index, kind, "attributes", key), problem)


def _looks_names_up(ldap: LdapIdentity) -> bool:
    return ldap.search is not None or ldap.bind is not None


def _no_ring_of_one(settings: Settings) -> Iterator[Finding]:
    for index, server in enumerate(settings.backends.servers):
        for number, listener in enumerate(settings.listeners):
            if _reaches(server.endpoint, listener.address):
                problem = f"this is where listeners[{number}] of this proxy listens: a login would go round in a ring"
                yield Finding(("backends", "servers", index, "url"), problem)
                break


def _reaches(backend: Endpoint, listener: Endpoint) -> bool:
    """Whether connections to a backend would arrive at a listener, as far as the addresses themselves tell."""
    if backend.port != listener.port:
        return False
    try:
        address = ipaddress.ip_address("127.0.0.1" if backend.host == "localhost" else backend.host)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    listening = ipaddress.ip_address(listener.host)
    if address == listening:
        return True
    return listening.is_unspecified and address.is_loopback and (listening.version == 6 or address.version == 4)


def _separators_agree(settings: Settings) -> Iterator[Finding]:
    # Security: a name with the backend's separator in it would name another master user than ours.
    login, names = settings.backends.login, settings.names
    if login.method == "master" and login.separator != names.master_separator:
        problem = (
            f'"{login.separator}" differs from names.master_separator "{names.master_separator}", so that a client '
            "could name a master user of his own; make them the same"
        )
        yield Finding(("backends", "login", "separator"), problem)


def _answers_come_in_time(settings: Settings) -> Iterator[Finding]:
    delay, deadline = settings.limits.failed_login_delay, settings.timeouts.login
    if delay >= deadline:
        problem = f"{duration_text(delay)} is not shorter than timeouts.login, {duration_text(deadline)}"
        yield Finding(("limits", "failed_login_delay"), problem)


def _fleet_has_a_name(settings: Settings) -> Iterator[Finding]:
    fleet = settings.fleet
    if fleet is None:
        return
    yield from _ca_findings(("fleet", "ca"), fleet.ca)
    if fleet.name is None:
        try:
            parse_server_name(socket.gethostname())
        except ValueError:
            problem = f'this machine is called "{socket.gethostname()}", which is no name for a proxy; give fleet.name'
            yield Finding(("fleet",), problem)


def _sources_answer_in_time(settings: Settings) -> Iterator[Finding]:
    deadline = settings.timeouts.login
    for index, source in enumerate(settings.identity):
        for kind, given in (("ldap", source.ldap), ("oauth", source.oauth), ("http", source.http)):
            if given is not None and given.timeout >= deadline:
                problem = (
                    f"{duration_text(given.timeout)} is not shorter than timeouts.login, {duration_text(deadline)}"
                )
                yield Finding(("identity", index, kind, "timeout"), problem)


CHECKS: tuple[tuple[frozenset[str], Check], ...] = (
    (frozenset({"listeners", "tls"}), _certificates_given),
    (frozenset({"tls"}), _certificates_fit),
    (frozenset({"admin"}), _admin_tls_files_fit),
    (frozenset({"backends"}), _backend_tls_files_fit),
    (frozenset({"backends"}), _tls_is_spoken),
    (frozenset({"identity"}), _identity_cas_hold_certificates),
    (frozenset({"listeners"}), _client_cas_hold_certificates),
    (frozenset({"listeners"}), _fronts_are_let_in),
    (frozenset({"listeners", "admin", "metrics"}), _addresses_differ),
    (frozenset({"backends"}), _servers_differ),
    (frozenset({"backends"}), _someone_is_placed),
    (frozenset({"backends", "routing"}), _placed_where_there_is_something),
    (frozenset({"backends"}), _attributes_are_forwarded),
    (frozenset({"listeners", "identity", "routing"}), _deliveries_follow_sessions),
    (frozenset({"listeners", "backends"}), _no_ring_of_one),
    (frozenset({"identity", "names"}), _one_entry_is_one_person),
    (frozenset({"identity"}), _issuers_differ),
    (frozenset({"identity"}), _backend_decides_last),
    (frozenset({"identity", "backends"}), _backend_sees_the_secret),
    (frozenset({"identity", "backends"}), _backend_login_has_a_secret),
    (frozenset({"listeners", "backends"}), _certificates_are_enough),
    (frozenset({"names", "backends"}), _separators_agree),
    (frozenset({"limits", "timeouts"}), _answers_come_in_time),
    (frozenset({"identity", "timeouts"}), _sources_answer_in_time),
    (frozenset({"fleet"}), _fleet_has_a_name),
)
