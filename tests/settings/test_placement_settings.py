"""What can be said wrongly of pools, overrides, discovery, addresses of clients and TLS towards one server."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.model import Endpoint
from proxy.settings.models import Settings
from proxy.settings.values import socket_path

Mistakes = Callable[[str], list[str]]

# What follows the minimal settings, which end within `backends.servers`; the mistake without its line.
CASES = [
    ("routing: {overrides: {ann: dovecot-2}}", 'routing.overrides.ann: no such backend: "dovecot-2"; '),
    (
        "routing: {tags: {domains: {example.org: gold}}}",
        'routing.tags.domains.example.org: no server has the tag "gold"',
    ),
    ("  failover: 8d", "backends.failover: 8d is too long; 7d is the most, and never is another choice"),
    ("  failover: true", "backends.failover: expected a whole number with its unit, e.g. 30s"),
    (
        f"  client_address: id\n  forward_attributes: [{'x' * 21}]",
        f"backends.forward_attributes[0]: the field x-forward-{'x' * 21} would not fit into ID: 20 ASCII characters",
    ),
    (
        f"  client_address: id\n  forward_attributes: [{', '.join(f'a{number}' for number in range(25))}]",
        "backends.forward_attributes: too many for one ID command; 24 is the most",
    ),
    ('    - {name: a, url: "imaps://[::]:993"}', "backends.servers[1].url: this is where listeners[0] of this proxy"),
    ('    - {name: a, url: "imaps://127.0.0.9"}', "backends.servers[1].url: this is where listeners[0] of this proxy"),
    ('    - {name: a, url: "imaps://[::1]"}', "backends.servers[1].url: this is where listeners[0] of this proxy"),
    ('    - {name: a, url: "imaps://localhost"}', "backends.servers[1].url: this is where listeners[0] of this proxy"),
    (
        "  client_address: id\n  forward_attributes: [a, Tag, b, tag]",
        'backends.forward_attributes[3]: "tag" would be the same field as forward_attributes[1]',
    ),
    (
        "  client_address: id\n  forward_attributes: [tag, tag]",
        'backends.forward_attributes[1]: "tag" would be the same field as forward_attributes[0]',
    ),
    ("  health: {interval: 99ms}", "backends.health.interval: 99ms is too short; 100ms is the least"),
    (
        "  discovery: {dns: _imap._tcp.a.example, port: 993}",
        "backends.discovery.port: the SRV records of _imap._tcp.a.example bring their own",
    ),
    ("admin: {socket: users.yaml}", "admin.socket: there is something else, which is no socket: "),
    ("names: {recipient_delimiter: a}", 'names.recipient_delimiter: "a" occurs in ordinary names'),
    ("names: {recipient_delimiter: '+-+-+'}", "names.recipient_delimiter: expected up to 4 visible ASCII characters"),
    ("  forward_attributes: [x]", "backends.forward_attributes: belongs to client_address: id, which is not set"),
    ("  client_address: xclient", "backends.client_address: expected none, id, proxy_v1 or proxy_v2"),
    ("  tls: {certificate: tls.crt}", "backends.tls.certificate: needs private_key beside it"),
    ("  tls: {private_key: tls.key}", "backends.tls.private_key: needs certificate beside it"),
    ("  tls: {certificate: tls.crt, private_key: other.key}", "backends.tls.private_key: "),
    ("  tls: {ca: users.yaml}", "backends.tls.ca: "),
    (
        '    - {name: a, url: "imap://10.0.0.1", tls: {name: a.example.org}}',
        "backends.servers[1].tls: there is no TLS with imap://10.0.0.1:143; ",
    ),
    (
        '    - {name: a, url: "imap://10.0.0.1", state: maintenance}',
        "backends.servers[1].state: expected up, drain or down",
    ),
    ("  discovery: {dns: dovecot..example}", "backends.discovery.dns: expected a domain name"),
    (
        "  discovery: {dns: a.example, ordinal_prefix: a}",
        "backends.discovery.ordinal_prefix: belongs to ordinal_names: true",
    ),
    (
        "  discovery: {dns: _imap._tcp.a.example, ordinal_names: true}",
        "backends.discovery.ordinal_names: an SRV record names its servers itself",
    ),
    (
        "  discovery: {dns: a.example, nameservers: [ns.example]}",
        "backends.discovery.nameservers[0]: expected the IP address of a name server",
    ),
    ("admin: {socket: nowhere/admin.sock}", "admin.socket: no such folder: "),
    (f"admin: {{socket: {'x' * 108}}}", "admin.socket: longer than 107 octets"),
]


@pytest.mark.parametrize(("more", "mistake"), CASES)
def test_mistakes(mistakes: Mistakes, minimal: str, more: str, mistake: str) -> None:
    (found,) = mistakes(f"{minimal}{more}\n")
    assert found.partition(": ")[2].startswith(mistake)


LISTENERS = [
    ("implicit, protocol: socketmap", "tls: socketmap has no TLS"),
    (
        'none, trusted_networks: ["::1"], protocol: socketmap, proxy_protocol: {trusted_networks: ["::1"]}',
        "proxy_protocol: belongs to protocol: imap",
    ),
    (
        'none, trusted_networks: ["::1"], protocol: socketmap, id_address: {trusted_networks: ["::1"]}',
        "id_address: belongs to protocol: imap",
    ),
    ("implicit, domains: [example.org]", "domains: belongs to protocol: socketmap"),
    ("implicit, proxy_protocol: {}", "proxy_protocol.trusted_networks: missing; "),
    (
        "implicit, proxy_protocol: {trusted_networks: []}",
        "proxy_protocol.trusted_networks: expected at least one entry",
    ),
    (
        "implicit, proxy_protocol: {trusted_networks: [10.0.0.8, '::/0']}",
        'proxy_protocol.trusted_networks[1]: "::/0" is everybody',
    ),
    ("implicit, id_address: {trusted_networks: [0.0.0.0/0]}", 'id_address.trusted_networks[0]: "0.0.0.0/0" is every'),
    (
        "none, trusted_networks: ['::ffff:10.0.0.0/104']",
        'trusted_networks[0]: nobody is there: clients by IPv4 are known by IPv4 addresses; write "10.0.0.0/8"',
    ),
    (
        "none, trusted_networks: [10.0.0.0/8, '::1'], proxy_protocol: {trusted_networks: [192.0.2.1, '::2']}",
        "proxy_protocol.trusted_networks: whoever is there would be turned away: with tls: none",
    ),
    (
        "none, trusted_networks: [10.0.0.0/8], id_address: {trusted_networks: ['::1']}",
        "id_address.trusted_networks: whoever is there would be turned away: with tls: none",
    ),
]


@pytest.mark.parametrize(("listener", "mistake"), LISTENERS)
def test_mistakes_of_listeners(mistakes: Mistakes, minimal: str, listener: str, mistake: str) -> None:
    (found,) = mistakes(minimal.replace("tls: implicit", f"tls: {listener}"))
    assert found.startswith(f"3: listeners[0].{mistake}")


FRONTS = [
    "implicit, proxy_protocol: {trusted_networks: [192.0.2.1]}",
    "none, trusted_networks: [10.0.0.0/8], proxy_protocol: {trusted_networks: [192.0.2.1, 10.0.0.8]}",
    "none, trusted_networks: [10.0.0.8], id_address: {trusted_networks: [10.0.0.0/8]}",
    # The balancer is let in, and its header tells of a webmail server.
    "none, trusted_networks: [10.0.0.8], proxy_protocol: {trusted_networks: [10.0.0.8]}, "
    "id_address: {trusted_networks: [192.0.2.1]}",
]


@pytest.mark.parametrize("listener", FRONTS)
def test_fronts_that_are_let_in(loaded: Callable[[str], Settings], minimal: str, listener: str) -> None:
    assert loaded(minimal.replace("tls: implicit", f"tls: {listener}")).listeners


RINGS = [
    # listener, backend's host, whether it is where the listener listens
    ("0.0.0.0:993", "127.0.0.1", True),
    ("0.0.0.0:993", "[::ffff:127.0.0.1]", True),
    ("0.0.0.0:993", "[::1]", False),
    ("0.0.0.0:993", "10.0.0.1", False),
    ("0.0.0.0:143", "127.0.0.1", False),
    ("[::]:993", "[::1]", True),
    ("[::]:993", "mail.example.org", False),
    ("127.0.0.1:993", "localhost", True),
    ("127.0.0.1:993", "127.0.0.2", False),
    ("[2001:db8::1]:993", "[2001:DB8:0::1]", True),
]


@pytest.mark.parametrize(("listener", "backend", "ring"), RINGS)
def test_rings(
    mistakes: Mistakes, loaded: Callable[[str], Settings], minimal: str, listener: str, backend: str, ring: bool
) -> None:
    text = minimal.replace("[::]:993", listener).replace("10.0.0.11", backend)
    if ring:
        (found,) = mistakes(text)
        assert found.startswith("9: backends.servers[0].url: this is where listeners[0] of this proxy listens")
    else:
        assert loaded(text).listeners


def test_a_socket_of_before_stays_a_place_for_one(
    loaded: Callable[[str], Settings], minimal: str, folder: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "a"))
    assert loaded(f"{minimal}admin: {{socket: a}}\n").admin.socket == folder / "a"


@pytest.mark.parametrize(("length", "taken"), [(97, True), (98, False)])
def test_there_is_room_beside_a_socket(tmp_path: Path, length: int, taken: bool) -> None:
    folder = tmp_path / ("x" * (length - len(str(tmp_path)) - 1))
    folder.mkdir()
    if taken:
        assert socket_path("a", folder) == folder / "a"
    else:
        with pytest.raises(ValueError, match="longer than 107 octets"):
            socket_path("a", folder)


def test_what_dns_will_name_is_not_judged(loaded: Callable[[str], Settings], minimal: str) -> None:
    more = "  discovery: {dns: a.example, nameservers: [10.0.0.1, '127.0.0.1:5353', '[::1]:54']}\n"
    settings = loaded(
        f"{minimal}{more}routing: {{overrides: {{ann: a-0}}, tags: {{domains: {{example.org: gold}}}}}}\n"
    )
    assert settings.backends.discovery is not None
    assert settings.backends.discovery.nameservers == (
        Endpoint("10.0.0.1", 53),
        Endpoint("127.0.0.1", 5353),
        Endpoint("::1", 54),
    )


def test_discovery_alone(loaded: Callable[[str], Settings], minimal: str) -> None:
    head = minimal.partition("  servers:")[0]
    assert loaded(f"{head}  discovery: {{dns: A.example.}}\n").backends.servers == ()


def test_a_servers_own_words_on_tls(loaded: Callable[[str], Settings], minimal: str) -> None:
    text = minimal.replace('11"}', '11", tls: {verify: false}}') + "  tls: {ca: ca.pem, name: imap.example.org}\n"
    backends = loaded(text).backends
    merged = backends.tls_for(backends.servers[0])
    assert (merged.verify, merged.name, merged.ca) == (False, "imap.example.org", backends.tls.ca)
    assert backends.tls.verify


def test_failover(loaded: Callable[[str], Settings], minimal: str) -> None:
    assert loaded(minimal).backends.failover == "never"
    assert loaded(minimal + "  failover: 30s\n").backends.failover == 30.0


BY_TOKEN = "- oauth: {issuer: https://id.example.org, audience: imap, attributes: {backend: home}}"
BY_BIND = "- ldap: {urls: ['ldaps://l'], user_dn: 'mail={name},o=x', attributes: {tag: pool}}"
BY_SEARCH = "- ldap: {urls: ['ldaps://l'], search: {base: o=x, filter: '(mail={name})'}, attributes: {tag: pool}}"


@pytest.mark.parametrize(
    ("source", "blamed"), [(BY_TOKEN, "oauth.attributes.backend"), (BY_BIND, "ldap.attributes.tag"), (BY_SEARCH, "")]
)
@pytest.mark.parametrize("asked", [True, False])
def test_deliveries_follow_sessions(
    mistakes: Mistakes, loaded: Callable[[str], Settings], minimal: str, source: str, blamed: str, asked: bool
) -> None:
    text = minimal.replace("- file: {path: users.yaml}", source)
    text += "  login: {method: master, name: porter, password: {file: master.password}}\n"
    if asked:
        socketmap = '  - {address: "127.0.0.1:2424", tls: none, protocol: socketmap, trusted_networks: ["127.0.0.0/8"]}'
        text = text.replace("tls: implicit}\n", f"tls: implicit}}\n{socketmap}\n")
    if asked and blamed:
        (found,) = mistakes(text)
        assert f"identity[0].{blamed}: places users by what is known only when they log in" in found
    else:
        assert loaded(text).listeners
