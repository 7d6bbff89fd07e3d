"""What settings name and no section of them can judge: the users files, and the backends that these name.

`imap-porter serve` runs it before it binds an address, `imap-porter check` in place of serving: what the one refuses,
the other tells.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from proxy.auth.file import MAX_BYTES, read_users
from proxy.auth.names import NameRules
from proxy.settings.mistakes import Mistake, SettingsError
from proxy.settings.models import Settings
from proxy.settings.yaml_nodes import YamlError, key_text, read_flawed_yaml


def preflight(settings: Settings) -> None:
    """Read what sound settings name as serving would.

    Raises:
        SettingsError: With every mistake of every file, file by file.
    """
    rules = NameRules(settings.names)
    servers = [server.name for server in settings.backends.servers]
    files = dict.fromkeys(source.file.path for source in settings.identity if source.file is not None)
    mistakes = [mistake for path in files for mistake in _users_mistakes(path, rules, servers)]
    if mistakes:
        raise SettingsError(mistakes)


def _users_mistakes(path: Path, rules: NameRules, servers: Collection[str]) -> list[Mistake]:
    mistakes: list[Mistake] = []
    try:
        users = read_users(path, rules)
    except SettingsError as exc:
        mistakes += exc.mistakes
    else:
        # A table knows no lines. Only where there is something to tell is the file read a second time.
        if {account.identity.backend for account in users.accounts.values()} <= {None, *servers}:
            return mistakes
    mistakes += _unknown_backends(path, servers)
    return sorted(mistakes, key=lambda mistake: mistake.line)


def _unknown_backends(path: Path, servers: Collection[str]) -> Iterator[Mistake]:
    """People whose backend there isn't: the router would refuse each of their logins."""
    try:
        document = read_flawed_yaml(path, MAX_BYTES)
    except YamlError:  # read_users has told it
        return
    people = document.value if isinstance(document.value, dict) else {}
    for spelled, entry in people.items():
        backend = entry.get("backend") if isinstance(entry, dict) else None
        if isinstance(backend, str) and backend and backend not in servers:
            keys = (spelled, "backend")
            problem = f'no such backend: "{backend}"; backends.servers has {_listed(servers)}'
            yield Mistake(path, document.line(keys), key_text(keys), problem)


def _listed(servers: Collection[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join([*servers][:most])
    return shown if len(servers) <= most else f"{shown} and {len(servers) - most} more"
