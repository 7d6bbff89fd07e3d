"""What settings name and no section of them can judge: users files, the backends that these name, LDAP filters, a user,
hashes.

`imap-porter serve` runs it before it binds an address, `imap-porter check` in place of serving: what the one refuses,
the other tells.
"""

from __future__ import annotations

import os
import pwd
import ssl
from collections.abc import Collection, Iterator
from pathlib import Path

from proxy.app.sources import import_rooms
from proxy.auth.file import MAX_BYTES, Users, read_users
from proxy.auth.names import NameRules
from proxy.auth.passwords import UnusableHash, parameters
from proxy.outcome import Refused
from proxy.settings.loader import MAX_BYTES as MAX_SETTINGS_BYTES
from proxy.settings.mistakes import Mistake, SettingsError
from proxy.settings.models import Settings
from proxy.settings.yaml_nodes import YamlError, key_text, read_flawed_yaml


def preflight(settings: Settings, config: Path) -> None:
    """Look at what sound settings name as serving would.

    Args:
        config: The file that they were read from.
    Raises:
        SettingsError: With every mistake, file by file.
    """
    import_rooms(settings)
    rules = NameRules(settings.names)
    files = dict.fromkeys(source.file.path for source in settings.identity if source.file is not None)
    mistakes = [*_ldap_mistakes(settings, config, rules), *_override_mistakes(settings, config, rules)]
    mistakes += [*_account_mistakes(settings, config), *_token_mistakes(settings, config)]
    mistakes += [mistake for path in files for mistake in _users_mistakes(path, rules, settings)]
    if mistakes:
        raise SettingsError(mistakes)


def users_files(settings: Settings) -> dict[Path, bytes]:
    """What the users files hold, for processes that may have no right to read them.

    Raises:
        SettingsError: One cannot be read any more.
    """
    paths = dict.fromkeys(source.file.path for source in settings.identity if source.file is not None)
    try:
        return {path: path.read_bytes() for path in paths}
    except OSError as exc:
        raise SettingsError([Mistake(Path(exc.filename), 0, "", f"cannot be read: {exc.strerror}")]) from exc


def admin_tls(settings: Settings, config: Path) -> ssl.SSLContext | None:
    """TLS for `admin.address`, with its key, for a process that may have no right to read that. None: plain HTTP.

    Raises:
        SettingsError: The files cannot be used, though they looked well.
    """
    tls = settings.admin.tls
    if tls is None or settings.admin.address is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)  # TLS 1.2 and above
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(tls.certificate, tls.private_key)
    except (OSError, ssl.SSLError) as exc:
        problem = f"the certificate cannot be used: {exc.strerror or exc}"
        raise SettingsError([Mistake(config, 0, "admin.tls", problem)]) from exc
    return context


def _token_mistakes(settings: Settings, config: Path) -> Iterator[Mistake]:
    """Hashes that no token could be verified by, or not in the time that a caller waits."""
    for index, token in enumerate(settings.admin.tokens):
        try:
            parameters(token.hash)
        except UnusableHash as exc:
            keys: tuple[str | int, ...] = ("admin", "tokens", index, "hash")
            line = read_flawed_yaml(config, MAX_SETTINGS_BYTES).line(keys)
            yield Mistake(config, line, key_text(keys), str(exc))


def _ldap_mistakes(settings: Settings, config: Path, rules: NameRules) -> Iterator[Mistake]:
    """What only the directory's library can judge."""
    for index, source in enumerate(settings.identity):
        if source.ldap is None:
            continue
        from proxy.auth.ldap.source import ldap_source

        try:
            ldap_source(source.ldap, rules).close()
        except ValueError as exc:
            key, _, problem = str(exc).partition(": ")
            keys: tuple[str | int, ...] = ("identity", index, "ldap", *key.split("."))
            line = read_flawed_yaml(config, MAX_SETTINGS_BYTES).line(keys)
            yield Mistake(config, line, key_text(keys), problem)


def _account_mistakes(settings: Settings, config: Path) -> Iterator[Mistake]:
    """Whoever is not root can become nobody else."""
    if settings.user is None:
        return
    try:
        account = pwd.getpwnam(settings.user)
    except KeyError:
        problem = f'this machine has no user "{settings.user}"'
    else:
        if os.geteuid() in (0, account.pw_uid):
            return
        problem = "only root can become another user; start it as root, or leave the key out"
    yield Mistake(config, read_flawed_yaml(config, MAX_SETTINGS_BYTES).line(("user",)), "user", problem)


def _override_mistakes(settings: Settings, config: Path, rules: NameRules) -> Iterator[Mistake]:
    """An override under another spelling than the canonical one would never count."""
    for name in settings.routing.overrides:
        try:
            canonical = rules.canonical(name)
        except Refused as refusal:
            problem = f"no name that could log in: {refusal.detail}"
        else:
            problem = f'its canonical name is "{canonical}"; write that'
            if canonical == name:
                continue
        keys = ("routing", "overrides", name)
        line = read_flawed_yaml(config, MAX_SETTINGS_BYTES).line(keys)
        yield Mistake(config, line, key_text(keys), problem)


def _users_mistakes(path: Path, rules: NameRules, settings: Settings) -> list[Mistake]:
    mistakes: list[Mistake] = []
    try:
        users = read_users(path, rules)
    except SettingsError as exc:
        mistakes += exc.mistakes
    else:
        # A table knows no lines. Only where there is something to tell is the file read a second time.
        if not _is_at_odds(users, settings):
            return mistakes
    mistakes += _mistakes_of_people(path, settings)
    return sorted(mistakes, key=lambda mistake: mistake.line)


def _is_at_odds(users: Users, settings: Settings) -> bool:
    servers = {server.name for server in settings.backends.servers}
    if settings.backends.discovery is not None:  # what DNS will name is not known yet
        servers |= {str(person.identity.backend) for person in users.accounts.values()}
    known = {person.identity.backend for person in users.accounts.values()} <= {None, *servers}
    return not known or (users.knows_scram and not _scram_is_of_use(settings))


def _scram_is_of_use(settings: Settings) -> bool:
    return settings.backends.login.needs_no_secret


def _mistakes_of_people(path: Path, settings: Settings) -> Iterator[Mistake]:
    """People whose logins would all be refused, or never offered."""
    try:
        document = read_flawed_yaml(path, MAX_BYTES)
    except YamlError:  # read_users has told it
        return
    servers = [server.name for server in settings.backends.servers]
    people = document.value if isinstance(document.value, dict) else {}
    for spelled, entry in people.items():
        backend = entry.get("backend") if isinstance(entry, dict) else None
        named_by_dns = settings.backends.discovery is not None
        if isinstance(backend, str) and backend and backend not in servers and not named_by_dns:
            keys = (spelled, "backend")
            problem = f'no such backend: "{backend}"; backends.servers has {_listed(servers)}'
            yield Mistake(path, document.line(keys), key_text(keys), problem)
        if isinstance(entry, dict) and "scram" in entry and not _scram_is_of_use(settings):
            keys = (spelled, "scram")
            method = settings.backends.login.method
            problem = (
                f"SCRAM shows no password that backends.login.method {method} could pass on; it needs master or authzid"
            )
            yield Mistake(path, document.line(keys), key_text(keys), problem)


def _listed(servers: Collection[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join([*servers][:most])
    return shown if len(servers) <= most else f"{shown} and {len(servers) - most} more"
