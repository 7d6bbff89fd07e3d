"""`imap-porter check`: read the settings as `serve` does, tell every mistake or what they amount to, start nothing.

With `--connect` it goes on and tries what identity sources, discovery and backends need from elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from rich.text import Text

from proxy.app.preflight import preflight
from proxy.cli.connect import Tried, as_objects, connect, print_tried
from proxy.cli.terminal import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_SETTINGS,
    console,
    plain,
    print_json,
    print_mistakes,
    table,
)
from proxy.settings.backend_models import ClientAddress
from proxy.settings.certificates import facts
from proxy.settings.identity_values import without_query
from proxy.settings.loader import load
from proxy.settings.mistakes import SettingsError, printable
from proxy.settings.models import Discovery, IdentitySource, Listener, Server, Settings
from proxy.settings.reference import differences, flow_text

EXIT_PROBLEM = 1

DAYS_TO_WORRY = 21  # automatic renewal happens 30 days before the end; by now it has failed for a while


def check(config: Path, json_output: bool, connecting: bool = False) -> int:
    """Check a settings file and give the exit status: 0, or 1 when there are mistakes or problems.

    Args:
        config: The settings file.
        json_output: Print JSON for scripts instead of tables, mistakes too.
        connecting: Try identity sources, discovery and backends as well, if there are no mistakes.
    """
    tried: list[Tried] | None = None
    try:
        settings = load(config)
        preflight(settings, config)
        if connecting:
            tried = connect(settings)
    except SettingsError as exc:
        print_mistakes(exc, json_output)
        return EXIT_SETTINGS
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    problems = sum(bool(each.probe.problem) for each in tried or ())
    if json_output:
        found = {} if tried is None else {"connect": as_objects(tried)}
        print_json({"ok": not problems, **summary(settings), **found})
    else:
        _print_tables(settings, config, tried, problems)
    return EXIT_PROBLEM if problems else EXIT_OK


def summary(settings: Settings) -> dict[str, Any]:
    """What the settings amount to, as plain objects."""
    plain = settings.model_dump(mode="json")
    probe = settings.backends.health.login
    certificates = [(pair.certificate, facts(pair.certificate)) for pair in settings.tls.certificates]
    return {
        "listeners": plain["listeners"],
        "certificates": [
            {"file": str(path), "names": list(known.names), "not_after": known.not_after.isoformat()}
            for path, known in certificates
        ],
        "identity": [_source(source) for source in settings.identity],
        "backends": plain["backends"]["servers"],
        "discovery": plain["backends"]["discovery"],
        "login": settings.backends.login.method,
        "health_login": None if probe is None else probe.name,
        "admin": plain["admin"]["address"],
        "admin_socket": plain["admin"]["socket"],
        "metrics": plain["metrics"]["address"],
        "differs": [{"key": each.key, "value": each.value, "default": each.default} for each in differences(settings)],
    }


def _print_tables(settings: Settings, config: Path, tried: Sequence[Tried] | None, problems: int) -> None:
    out = console()
    rows = table()
    for label, value in _rows(settings):
        rows.add_row(Text(label, "bold"), value)
    out.print(rows)
    changed = table("differs from the default", "value", "default")
    for each in differences(settings):
        changed.add_row(each.key, plain(flow_text(each.value)), plain(flow_text(each.default), "dim"))
    if changed.row_count:
        out.print()
        out.print(changed)
    if tried is not None:
        out.print()
        print_tried(tried, out)
    found = f", {problems} problem{'' if problems == 1 else 's'}" if problems else ""
    out.print(f"\n{printable(str(config))}: no mistakes{found}", soft_wrap=True)


def _rows(settings: Settings) -> Iterator[tuple[str, Text]]:
    for listener in settings.listeners:
        yield "listener", Text(_listener(listener))
    for pair in settings.tls.certificates:
        known = facts(pair.certificate)
        yield "certificate", Text.assemble(printable(", ".join(known.names)), "  ", _end(known.not_after))
    for source in settings.identity:
        yield "identity", plain(_source(source))
    for server in settings.backends.servers:
        yield "backend", plain(_server(server, settings.backends.client_address_for(server)))
    if settings.backends.discovery is not None:
        yield "discovery", plain(_discovery(settings.backends.discovery, settings.backends.client_address))
    yield "login", Text(settings.backends.login.method)
    if settings.backends.health.login is not None:
        yield "health login", plain(settings.backends.health.login.name)
    yield "admin", Text(str(settings.admin.address or "off"))
    yield "admin socket", plain(str(settings.admin.socket or "off"))
    yield "metrics", Text(str(settings.metrics.address or "off"))


def _end(not_after: datetime) -> Text:
    days = (not_after - datetime.now(UTC)).days
    if days < 0:
        return Text(f"ended {not_after:%Y-%m-%d}", "bold red")
    return Text(f"ends {not_after:%Y-%m-%d}, in {days} days", "yellow" if days < DAYS_TO_WORRY else "")


def _listener(listener: Listener) -> str:
    protocol = "" if listener.protocol == "imap" else f"  {listener.protocol}"
    parts = [f"{listener.address}{protocol}  tls {listener.tls}"]
    if listener.domains:
        parts.append(f"for {', '.join(listener.domains)}")
    if listener.trusted_networks:
        parts.append(f"only from {_listed(listener.trusted_networks)}")
    if listener.proxy_protocol is not None:
        parts.append(f"PROXY header from {_listed(listener.proxy_protocol.trusted_networks)}")
    if listener.id_address is not None:
        parts.append(f"ID with an address from {_listed(listener.id_address.trusted_networks)}")
    if listener.client_certificates is not None:
        must = "required" if listener.client_certificates.required else "welcome"
        parts.append(f"client certificates {must}, by {listener.client_certificates.name}")
    return ", ".join(parts)


def _listed(networks: Sequence[IPv4Network | IPv6Network]) -> str:
    return ", ".join(map(str, networks))


def _server(server: Server, client_address: ClientAddress) -> str:
    """Where it is, and what is special about it."""
    parts = [f"{server.name}  {server.url}  weight {server.weight}"]
    if server.tag is not None:
        parts.append(f"pool {server.tag}")
    if server.state != "up":
        parts.append(f"state {server.state}")
    if client_address != "none":
        parts.append(f"client address by {client_address}")
    return ", ".join(parts)


def _discovery(discovery: Discovery, client_address: ClientAddress) -> str:
    """Whom DNS is asked for, and what those are."""
    port = "" if discovery.port is None else f" port {discovery.port}"
    parts = [f"{discovery.dns}  {discovery.scheme}{port}  weight {discovery.weight}"]
    if discovery.tag is not None:
        parts.append(f"pool {discovery.tag}")
    if client_address != "none":
        parts.append(f"client address by {client_address}")
    return ", ".join(parts)


def _source(source: IdentitySource) -> str:
    """Its kind, and where it stands."""
    where = ""
    if source.file is not None:
        where = str(source.file.path)
    elif source.ldap is not None:
        where = " ".join(map(str, source.ldap.urls))
    elif source.oauth is not None:
        asked = source.oauth.introspection
        where = " ".join(filter(None, (source.oauth.issuer, None if asked is None else without_query(asked.url))))
    elif source.http is not None:
        where = without_query(source.http.url)
    return f"{source.kind} {where}".rstrip()
